"""AISD: CT as DICOM series, labels as a PNG for each slice.

The publisher gives out ``mask.zip`` (``mask/CASE/000.png``), ``image.zip`` (the same slices, in 8 bits) and
``dicom-0.tar.gz`` and more (``dicom-0/CASE/CT/*.dcm``, and MRI beside CT). Cases are numbers such as 0091465.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from nnunetv2_dinomed3d.datasets.download import Case, Download

PATIENTS = 397
LABELS = {
    "remote infarct": 1,
    "clear acute infarct": 2,
    "blurred acute infarct": 3,
    "invisible acute infarct": 4,
    "general acute infarct": 5,
}


def find_aisd(files: list[Path]) -> Download:
    """The cases that have labels, with their CT and, where they are there, the slices as 8-bit pictures.

    Raises:
        ValueError: there are no labels or no CT, or a case is there twice.
    """
    drawn = _folders(files, ".png")
    masks = _by_case([folder for folder in drawn if _content(folder) == "mask"])
    pictures = _by_case([folder for folder in drawn if _content(folder) == "image"])
    scans = {folder: found for folder, found in _folders(files, ".dcm").items() if not _is_mri(folder)}
    if not masks or not scans:
        lacks = "labels (mask.zip: mask/CASE/000.png)" if not masks else "CT (dicom-0.tar.gz: dicom-0/CASE/CT/*.dcm)"
        raise ValueError(
            f"No {lacks} of AISD is there. Put mask.zip, image.zip and all dicom archives, as they were downloaded, in "
            "one folder. image.zip alone is not enough: its 8-bit slices hold neither HU nor mm"
        )
    series: dict[str, list[Path]] = {}
    broken = {}
    for folder in scans:
        case = next((part for part in reversed(folder.parts) if part in masks), None)
        if case:
            series.setdefault(case, []).append(folder)
        elif _case_of(folder):
            broken[_case_of(folder)] = "has CT and no labels"
    cases = []
    for name, folder in sorted(masks.items()):
        if len(series.get(name, [])) > 1:
            raise ValueError(f"CT of {name} is there twice: {', '.join(map(str, series[name][:2]))}. Keep one of them")
        ct = scans[series[name][0]] if name in series else []
        labels = drawn[folder]
        shown = drawn[pictures[name]] if name in pictures else []
        if not ct:
            broken[name] = "has labels and no CT"
        elif len(ct) < len(labels):
            broken[name] = f"has {len(ct)} slices of CT and {len(labels)} of labels"
        elif shown and [path.name for path in shown] != [path.name for path in labels]:
            broken[name] = f"has {len(shown)} pictures and {len(labels)} slices of labels"
        else:
            cases.append(Case(name, name, tuple(ct), tuple(labels), tuple(shown), "slices"))
    origin = {"reference": "https://github.com/GriffinLiang/AISD"}
    unsure = [case.name for case in cases if not case.pictures]
    notes = (
        (
            f"{len(unsure)} of {len(cases)} cases have no pictures (image.zip), which would show whether the labels "
            "begin at the feet or at the head: see --first-slice.",
        )
        if unsure
        else ()
    )
    return Download("AISD", cases, ("CT",), LABELS, [], broken, (PATIENTS,), notes, origin)


def _folders(files: Iterable[Path], ending: str) -> dict[Path, list[Path]]:
    """The files of a kind in each folder, in the order of the numbers in their names."""
    found: dict[Path, list[Path]] = {}
    for path in files:
        if path.name.lower().endswith(ending):
            found.setdefault(path.parent, []).append(path)
    return {folder: sorted(paths, key=_natural) for folder, paths in found.items()}


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(word or 0), text) for text, word in re.findall(r"(\D*)(\d*)", path.name)]


def _content(folder: Path) -> str:
    """What the folder of a case holds: the nearer of the two folders above it that is called mask or image tells."""
    for part in reversed(folder.parts[-3:-1]):
        for word in ("mask", "image"):
            if word in part.lower():
                return word
    return ""


def _by_case(folders: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.name in found:
            raise ValueError(f"{folder.name} is there twice: {found[folder.name]}, {folder}. Keep one of them")
        found[folder.name] = folder
    return found


def _is_mri(folder: Path) -> bool:
    return folder.name.upper() in ("DWI", "ADC", "MR", "MRI")


def _case_of(folder: Path) -> str:
    return next((part for part in reversed(folder.parts) if re.fullmatch(r"\d{5,}", part)), "")
