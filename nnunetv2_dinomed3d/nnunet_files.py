"""nnU-Net's folders and what its ``dataset.json`` says, read without nnU-Net."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.dataset_json import read_dataset_json

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
MEAN = "mean of labels"
"""A row of the report beside those of the labels."""


def folder_of(variable: str) -> Path:
    """The folder that nnU-Net's environment variable names."""
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"{variable} is not set: export {variable}=/path/to/{variable}")
    return Path(value)


def dataset_name(name_or_id: str) -> str:
    """``Dataset004_Hippocampus`` of ``4`` or of its name, looked for in nnU-Net's three folders.

    Raises:
        ValueError: there is none, more than one with that number, or its name does not print.
    """
    folders = []
    for variable in ("nnUNet_preprocessed", "nnUNet_raw", "nnUNet_results"):
        if not os.environ.get(variable):
            continue
        folders.append(Path(os.environ[variable]))
        if folders[-1].exists() and not folders[-1].is_dir():
            raise ValueError(f"{variable} is {folders[-1]}, which is no folder: export {variable}=/path/to/{variable}")
    if not folders:
        raise ValueError("None of nnUNet_raw, nnUNet_preprocessed and nnUNet_results is set: export nnU-Net's folders")
    number = re.fullmatch(r"0*([0-9]{1,9})", name_or_id)
    there = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    start = f"Dataset{int(number[1]):03d}_" if number else ""
    names = sorted(name for name in there if (name.startswith(start) if number else name == name_or_id))
    where = ", ".join(map(str, folders))
    if not names:
        raise ValueError(f"No data set {name_or_id!r} in {where}: give its number or its whole name")
    if len(names) > 1:
        raise ValueError(f"{name_or_id!r} could be {', '.join(names)} (in {where}): give the whole name")
    if not re.fullmatch(r"Dataset[0-9]{3,}_.+", names[0]) or not names[0].isprintable():
        raise ValueError(f"{names[0]!r} is no name of nnU-Net's, such as Dataset004_Hippocampus: rename the folder")
    return names[0]


def names_dataset(word: str) -> bool:
    """Whether a word looks like a data set's number or name."""
    return re.fullmatch(r"[0-9]{1,9}|Dataset[0-9]{3,}_.+", word) is not None


@dataclass(frozen=True)
class Description:
    """What is measured.

    Attributes:
        labels: of each structure's name, the values that belong to it; a region has several.
        values: every value that a label map may hold, without that of the ignore label.
        ignore: value of the ignore label.
        ending: of the files, such as ``.nii.gz``.
    """

    labels: dict[str, tuple[int, ...]]
    values: frozenset[int]
    ignore: int | None
    ending: str


def read_description(path: Path) -> Description:
    """Labels, regions, ignore label and file ending of a ``dataset.json``.

    Raises:
        ValueError: it is malformed, or what it describes cannot be measured.
    """
    found = read_dataset_json(path)
    if found.ending not in ENDINGS:
        raise ValueError(
            f"{path}: files that end with {found.ending!r} do not say their spacing in mm, which distances "
            f"and volumes need; only {', '.join(ENDINGS)} are measured"
        )
    if MEAN in found.labels:
        raise ValueError(f"{path}: the report itself has a row {MEAN!r}: call the label of that name otherwise")
    return Description(found.labels, found.values, found.ignore, found.ending)


def find_description(dataset: str) -> Path:
    """The data set's ``dataset.json``: the preprocessed one, else the raw one."""
    tried = []
    for variable in ("nnUNet_preprocessed", "nnUNet_raw"):
        if os.environ.get(variable):
            tried.append(Path(os.environ[variable]) / dataset / "dataset.json")
            if tried[-1].is_file():
                return tried[-1]
    raise ValueError(f"No dataset.json of {dataset} (looked for {', '.join(map(str, tried))}): set nnUNet_preprocessed")


def find_image(dataset: str | None, case: str, ending: str) -> Path | None:
    """The first channel of a case's raw image, if it is there."""
    if not dataset or not os.environ.get("nnUNet_raw"):
        return None
    folders = [Path(os.environ["nnUNet_raw"]) / dataset / kind for kind in ("imagesTr", "imagesTs")]
    files = [folder / f"{case}_0000{ending}" for folder in folders]
    return next((file for file in files if file.is_file()), None)


def model_name(trainer: str, plans: str, configuration: str) -> str:
    """nnU-Net's name of a results folder."""
    return f"{trainer}__{plans}__{configuration}"


def folds_in(model: Path) -> list[str]:
    """The folds of a results folder, such as ["0", "1"]."""
    names = [match[1] for path in model.glob("fold_*") if (match := re.fullmatch(r"fold_(\d+|all)", path.name))]
    return sorted(names, key=lambda name: (name == "all", name.zfill(9)))
