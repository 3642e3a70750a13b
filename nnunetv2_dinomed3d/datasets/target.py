"""Where a data set is written: its name, its folder while it is being written, and what is in the way."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.nnunet_files import FOLDERS, folder_of

MANIFEST = "manifest.json"
SPLITS = "splits_final.json"
LARGEST_NUMBER = 999


@dataclass(frozen=True)
class Target:
    """The folders of a data set.

    Attributes:
        name: such as ``Dataset505_ACDCPaper``.
        raw: its folder in ``nnUNet_raw``, which exists only when it is whole.
        partial: the folder beside it that is filled.
        unpacked: the folder beside it with the content of archives, while it is needed.
        splits: its ``splits_final.json``; None if nnU-Net shall make one.
    """

    name: str
    raw: Path
    partial: Path
    unpacked: Path
    splits: Path | None


def target_of(name: str, number: int, with_splits: bool) -> Target:
    """The folders of a data set.

    Args:
        name: without number.
        with_splits: whether ``splits_final.json`` is written.

    Raises:
        ValueError: the number is none or another data set's, a folder of nnU-Net's is not set or cannot be written.
    """
    if not 1 <= number <= LARGEST_NUMBER:
        raise ValueError(f"--id {number} is no number of a data set: nnU-Net takes 1 to {LARGEST_NUMBER}")
    dataset = f"Dataset{number:03d}_{name}"
    raw = folder_of("nnUNet_raw")
    if not raw.is_dir():
        raise ValueError(f"nnUNet_raw is {raw}, which is no folder: make it, or export nnUNet_raw=/path/to/nnUNet_raw")
    splits = folder_of("nnUNet_preprocessed") / dataset / SPLITS if with_splits else None
    for folder in (Path(value) for variable in FOLDERS if (value := os.environ.get(variable))):
        others = sorted(path.name for path in folder.glob(f"Dataset{number:03d}_*") if path.name != dataset)
        if others:
            raise ValueError(f"The number {number} is {others[0]}'s, in {folder}: give another with --id")
    return Target(dataset, raw / dataset, raw / f".{dataset}.partial", raw / f".{dataset}.unpacked", splits)


def require_outside(source: Path, target: Target) -> None:
    """Nothing is written into the download.

    Raises:
        ValueError: a folder to write lies in it.
    """
    inside = source.resolve()
    for path in (target.raw, *([target.splits] if target.splits else [])):
        if inside in path.resolve().parents:
            raise ValueError(f"{path} would be written into the download {source}: move one of them")


def require_no_other_split(target: Target, content: Any) -> None:
    """Refuse to write over another split.

    Raises:
        ValueError: there is one.
    """
    if target.splits and target.splits.exists() and read_json(target.splits) != content:
        raise ValueError(
            f"{target.splits} is another split, of an earlier data set or by hand: remove it, or give another number "
            "with --id"
        )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it exists whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
