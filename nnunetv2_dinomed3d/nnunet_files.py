"""nnU-Net's folders: where data sets, splits, results and validations lie. The one way to them, without nnU-Net itself.

A data set is named as its folder is (``Dataset004_Hippocampus``). A model is a folder of results,
``TRAINER__PLANS__CONFIGURATION``, with a folder ``fold_N`` for each fold that was trained.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.training_log import log_files, read_log

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""nnU-Net's environment variables, which name its folders."""
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""File endings of volumes that hold their spacing in mm."""
CLOCK_SECONDS = 2.0
"""Error of file dates: some file systems round them to two seconds."""

Splits = list[dict[str, list[str]]]
"""The cases "train" and "val" of each fold."""


def folder_of(variable: str) -> Path:
    """The folder that nnU-Net's environment variable names.

    Raises:
        ValueError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"{variable} is not set: export {variable}=/path/to/{variable}")
    return Path(value)


def dataset_name(name_or_id: str) -> str:
    """The name of a data set, such as ``Dataset004_Hippocampus``, found in nnU-Net's three folders.

    Args:
        name_or_id: the name itself, or its number (``4``, ``004``).

    Raises:
        ValueError: there is no such data set, several have the number, or the name is not printable.
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
    found = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    start = f"Dataset{int(number[1]):03d}_" if number else ""
    names = sorted(name for name in found if (name.startswith(start) if number else name == name_or_id))
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


def preprocessed_folder(dataset: str) -> Path:
    """The data set's folder in ``nnUNet_preprocessed``; it need not exist."""
    return folder_of("nnUNet_preprocessed") / dataset


def find_dataset_json(dataset: str) -> Path:
    """The data set's ``dataset.json``: the preprocessed copy, else the raw one.

    Raises:
        ValueError: there is neither.
    """
    tried = []
    for variable in ("nnUNet_preprocessed", "nnUNet_raw"):
        if os.environ.get(variable):
            tried.append(Path(os.environ[variable]) / dataset / "dataset.json")
            if tried[-1].is_file():
                return tried[-1]
    raise ValueError(f"No dataset.json of {dataset} (looked for {', '.join(map(str, tried))}): set nnUNet_preprocessed")


def find_image(dataset: str | None, case: str, ending: str) -> Path | None:
    """The file of a case's first raw channel, or None."""
    if not dataset or not os.environ.get("nnUNet_raw"):
        return None
    folders = [folder_of("nnUNet_raw") / dataset / kind for kind in ("imagesTr", "imagesTs")]
    files = [folder / f"{case}_0000{ending}" for folder in folders]
    return next((file for file in files if file.is_file()), None)


def reference_folder(dataset: str) -> Path:
    """The folder of the training cases' reference segmentations: nnU-Net's copy, else the raw labels."""
    copies = preprocessed_folder(dataset) / "gt_segmentations"
    return copies if copies.is_dir() else folder_of("nnUNet_raw") / dataset / "labelsTr"


def splits_file(dataset: str) -> Path:
    """The data set's ``splits_final.json``; it need not exist."""
    return preprocessed_folder(dataset) / "splits_final.json"


def read_splits(file: Path) -> Splits:
    """The cases of each fold, from a ``splits_final.json``.

    Raises:
        ValueError: the file does not exist or is malformed.
    """
    if not file.exists():
        raise ValueError(
            f"{file} does not exist: without it, nobody knows which cases a fold was trained on. nnU-Net writes it as "
            "soon as a numbered fold is trained."
        )
    splits = read_json(file)
    if not isinstance(splits, list) or not all(map(_is_split, splits)):
        raise ValueError(f'{file} is no list of folds as nnU-Net writes it: [{{"train": [...], "val": [...]}}, ...]')
    return splits


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(
        isinstance(cases := split.get(key), list) and all(isinstance(case, str) for case in cases)
        for key in ("train", "val")
    )


def model_name(trainer: str, plans: str, configuration: str) -> str:
    """nnU-Net's name of a model's folder."""
    return f"{trainer}__{plans}__{configuration}"


def parse_model_name(name: str) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a model's folder.

    Raises:
        ValueError: the name has not three parts.
    """
    parts = name.split("__", 2)
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"{name!r} is no folder of nnU-Net's results: it would be TRAINER__PLANS__CONFIGURATION")
    return parts[0], parts[1], parts[2]


def model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """The model's folder in ``nnUNet_results``; it need not exist."""
    return folder_of("nnUNet_results") / dataset / model_name(trainer, plans, configuration)


def folds_in(model: Path) -> list[str]:
    """The folds in a model's folder, such as ["0", "1", "all"]."""
    names = [match[1] for path in model.glob("fold_*") if (match := re.fullmatch(r"fold_(\d+|all)", path.name))]
    return sorted(names, key=lambda name: (name == "all", name.zfill(9)))


def validation_summary(model: Path, fold: str) -> Path:
    """The file that nnU-Net writes at the end of a fold's validation."""
    return model / f"fold_{fold}" / "validation" / "summary.json"


def validated_models(dataset: str) -> list[str]:
    """Names of the data set's models of which at least one fold has been validated."""
    folders = (folder_of("nnUNet_results") / dataset).glob("*__*__*")
    return sorted(
        folder.name
        for folder in folders
        if not folder.name.startswith(".")
        and any(validation_summary(folder, fold).is_file() for fold in folds_in(folder))
    )


def training_command(model: Path, fold: str, flag: str = "--val") -> str:
    """The ``nnUNetv2_train`` command for a fold of a model, as a person would type it."""
    trainer, plans, configuration = parse_model_name(model.name)
    words = ["nnUNetv2_train", model.parent.name, configuration, fold, "-tr", trainer, "-p", plans, flag]
    return shlex.join(word for word in words if word)


def is_validated(model: Path, fold: str) -> bool:
    """Whether the fold's validation is complete and belongs to the training that is there."""
    return not why_not_validated(model, fold)


def why_not_validated(model: Path, fold: str) -> str:
    """The reason why a fold's validation cannot be used, with the command that helps; empty if it can be.

    nnU-Net writes its summary last. A summary that is older than a checkpoint, or than the log of an unfinished
    training, belongs to an earlier training.
    """
    summary, folder = validation_summary(model, fold), model / f"fold_{fold}"
    if not summary.is_file():
        return f"the validation of fold {fold} has not finished: run {training_command(model, fold)}"
    written = summary.stat().st_mtime + CLOCK_SECONDS

    def newer(path: Path) -> bool:
        return path.is_file() and path.stat().st_mtime > written

    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    checkpoints = [path for path in sorted(folder.glob("checkpoint_*.pth")) if newer(path)]
    logs = [path for path in log_files(folder) if newer(path)]
    training = [path for path in logs if (log := read_log(path)).epochs and not log.done]
    if not checkpoints and not training:
        return ""
    unfinished = newer(latest) or (not newer(final) and not (final.is_file() and not checkpoints))
    flag, what = ("--c", "finish that training") if unfinished else ("--val", "validate it")
    return (
        f"the validation of fold {fold} is older than {(checkpoints or training)[-1].name} beside it, so it belongs to "
        f"an earlier training: {what} with {training_command(model, fold, flag)} (or, if copying changed the dates: "
        f"touch {shlex.quote(str(summary))})"
    )
