"""Names of the data sets that are written."""

import re
from pathlib import Path

TITLES = {
    "aisd": "AISD",
    "msd-pancreas": "MSDPancreas",
    "msd-colon": "MSDColon",
    "brats2020": "BraTS2020",
    "acdc": "ACDC",
}


def dataset_title(word: str, source: Path, paper: bool) -> str:
    """The name of a data set without its number, such as ``ACDCPaper``; of any task of MSD, by its folder or archive.

    Raises:
        ValueError: the source of a task has no name as MSD's have, such as Task04_Hippocampus.
    """
    title = TITLES.get(word)
    if title is None:
        match = re.fullmatch(r"Task\d+_([0-9A-Za-z]+)(\.tar|\.zip|\.tar\.gz|\.tgz)?", source.resolve().name)
        if match is None:
            raise ValueError(
                f"{source} is not called as a task of MSD, such as Task04_Hippocampus or Task04_Hippocampus.tar: name "
                "the task's folder or archive"
            )
        title = f"MSD{match[1]}"
    return title + ("Paper" if paper else "")
