"""Which prediction belongs to which truth, and what is refused."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.nnunet_files import ENDINGS, folder_of, folds_in, model_name
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.training_log import log_files, read_log

VOLUMES = (*ENDINGS, ".mhd", ".nhdr", ".hdr", ".img", ".img.gz")
"""Endings of what could be a case's label map."""
CLOCK_SECONDS = 2.0
"""By what dates of files may be wrong: some file systems keep no more."""


@dataclass(frozen=True)
class Model:
    """One column of the comparison.

    Attributes:
        name: as it is called in the report.
        folder: nnU-Net's results folder, or the folder of predictions.
        predictions: of each case, its file.
        folds: of each case, the fold that predicted it; empty if these are not validation predictions.
        note: what was left out, for the report; empty if nothing was.
    """

    name: str
    folder: Path
    predictions: dict[str, Path]
    folds: dict[str, str]
    note: str = ""


@dataclass(frozen=True)
class Cases:
    """What is compared.

    Attributes:
        models: each with a prediction of every case of `truths`.
        truths: of each case, its file.
        left_out: cases that ``--common`` dropped, as some model has no prediction of them.
    """

    models: list[Model]
    truths: dict[str, Path]
    left_out: list[str]


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Some names and how many more there are."""
    names = sorted(map(printable, names))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def files_of(folder: Path, ending: str) -> dict[str, Path]:
    """The label maps in a folder, by case; files that begin with a dot are nobody's (a Mac leaves some).

    Raises:
        ValueError: there is no such folder, one of them is no file, or a case has several.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    names: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (case := _case_of(path.name)):
            names.setdefault(case, []).append(path.name)
    found = {
        name.removesuffix(ending): folder / name for all in names.values() for name in all if name.endswith(ending)
    }
    for case, path in found.items():
        if len(names.get(case, [])) > 1:
            raise ValueError(f"{folder} holds {' and '.join(names[case])}: which one is {case}? Move the other away")
        if not path.is_file():
            raise ValueError(f"{path} is no file, or cannot be read: remove it")
    return found


def _case_of(name: str) -> str:
    """A file's name without the ending of a volume, however that is written; empty if it has none."""
    ending = max((end for end in VOLUMES if name.lower().endswith(end)), key=len, default="")
    return name[: -len(ending)] if ending else ""


def trained_models(
    dataset: str, trainers: list[str], plans: list[str], configuration: str, folds: list[str] | None, ending: str
) -> list[Model]:
    """Trainings of a data set with their validation predictions.

    Args:
        plans: one for all trainers, or one for each.
        folds: None for every fold that has been validated.

    Raises:
        ValueError: a training, a fold or a validation is not there, or a case was trained on.
    """
    if len(plans) not in (1, len(trainers)):
        raise ValueError(f"-p names {len(plans)} plans for {len(trainers)} trainers: give one, or one for each")
    pairs = list(zip(trainers, plans * len(trainers) if len(plans) == 1 else plans, strict=True))
    if len(set(pairs)) < len(pairs):
        raise ValueError(
            f"{' '.join(trainers)}: the same training twice; leave one out, or give each its plans with -p"
        )
    splits = read_splits(dataset)
    root = folder_of("nnUNet_results") / dataset
    models = []
    for trainer, plan in pairs:
        name = trainer if trainers.count(trainer) == 1 else f"{trainer} ({plan})"
        models.append(_trained_model(name, root / model_name(trainer, plan, configuration), folds, splits, ending))
    return models


def read_splits(dataset: str) -> list[dict[str, list[str]]]:
    """``splits_final.json``: of each fold, the cases "train" and "val"."""
    path = folder_of("nnUNet_preprocessed") / dataset / "splits_final.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: without it nobody knows which cases a fold was trained on")
    splits = read_json(path)
    if not isinstance(splits, list) or not all(map(_is_split, splits)):
        raise ValueError(f'{path} is no list of folds as nnU-Net writes it: [{{"train": [...], "val": [...]}}, ...]')
    return splits


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(
        isinstance(cases := split.get(key), list) and all(isinstance(case, str) for case in cases)
        for key in ("train", "val")
    )


def _trained_model(
    name: str, folder: Path, folds: list[str] | None, splits: list[dict[str, list[str]]], ending: str
) -> Model:
    if not folder.is_dir():
        raise ValueError(
            f"{folder} does not exist; there are: {listed(_validated(folder.parent)) or 'none that was validated'}. "
            "Train first, or see -tr, -p and -c"
        )
    note = ""
    if folds is None:
        folds = [fold for fold in folds_in(folder) if _summary(folder, fold).is_file()]
        if len(folds) > 1 and "all" in folds:  # alone it is refused, with the reason
            folds.remove("all")
            note = f"{name}: fold all was trained on every case, its validation says nothing and is left out."
    predictions: dict[str, Path] = {}
    of_fold: dict[str, str] = {}
    for fold in folds:
        found = _fold_predictions(folder, fold, splits, ending)
        if twice := set(found) & set(predictions):
            raise ValueError(f"{name}: {listed(twice)} validated in more than one fold: choose the folds with -f")
        predictions |= found
        of_fold |= dict.fromkeys(found, fold)
    if not predictions:
        raise ValueError(f"{folder}: no fold has been validated: run {validation_command(folder, 'FOLD')}")
    return Model(name, folder, predictions, of_fold, note)


def _validated(dataset: Path) -> list[str]:
    """The trainings of a data set of which a fold has been validated."""
    folders = [path for path in dataset.glob("*__*__*") if not path.name.startswith(".")]
    return [path.name for path in folders if any(_summary(path, fold).is_file() for fold in folds_in(path))]


def _summary(model: Path, fold: str) -> Path:
    return model / f"fold_{fold}" / "validation" / "summary.json"


def validation_command(model: Path, fold: str, flag: str = "--val") -> str:
    """nnU-Net's command for a fold of a results folder."""
    trainer, plans, configuration = model.name.split("__", 2)
    words = ["nnUNetv2_train", model.parent.name, configuration, fold, "-tr", trainer, "-p", plans, flag]
    return shlex.join(word for word in words if word)


def is_validated(model: Path, fold: str) -> bool:
    """Whether a fold's validation has finished, and is that of the training that is there."""
    return not why_not_validated(model, fold)


def why_not_validated(model: Path, fold: str) -> str:
    """Why a fold's validation is not to be believed, and what to do; empty if it is.

    nnU-Net writes its summary last. One that is older than a checkpoint, or than the log of a training that has not
    come to its end, is of another training than the one that is there now.
    """
    summary, folder = _summary(model, fold), model / f"fold_{fold}"
    if not summary.is_file():
        return f"the validation of fold {fold} has not finished: run {validation_command(model, fold)}"
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
    flag, what = ("--c", "finish that") if unfinished else ("--val", "validate it")
    return (
        f"the validation of fold {fold} is older than {(checkpoints or training)[-1].name} beside it, so of another "
        f"training: {what} with {validation_command(model, fold, flag)} (or, if the dates are only those of a copy: "
        f"touch {shlex.quote(str(summary))})"
    )


def _fold_predictions(model: Path, fold: str, splits: list[dict[str, list[str]]], ending: str) -> dict[str, Path]:
    """The validation predictions of a fold; none of them may be a case that it was trained on."""
    if fold == "all":
        raise ValueError(
            f"{model}: fold all is trained on every case, its validation says nothing: name other folds with -f"
        )
    if reason := why_not_validated(model, fold):
        raise ValueError(f"{model}: {reason}")
    if int(fold) >= len(splits):
        raise ValueError(
            f"{model}: splits_final.json has {len(splits)} folds: nobody knows which cases fold {fold} was trained on"
        )
    split = splits[int(fold)]
    found = files_of(model / f"fold_{fold}" / "validation", ending)
    if trained := set(found) & set(split["train"]):
        raise ValueError(
            f"{model}: fold {fold} predicted {listed(trained)}, which it was trained on (splits_final.json). "
            "If the splits were changed after the training, train again"
        )
    if unknown := set(found) - set(split["val"]):
        raise ValueError(
            f"{model}: fold {fold} predicted {listed(unknown)}, which splits_final.json does not name for it: "
            "remove what is left of other splits, or train again"
        )
    return found


def fold_names(words: list[str]) -> list[str]:
    """The folds that were asked for, each once, as nnU-Net writes them."""
    if wrong := [word for word in words if word != "all" and not re.fullmatch(r"[0-9]{1,9}", word)]:
        raise ValueError(f"-f {wrong[0]!r} is no fold: numbers from 0 on")
    names = [word if word == "all" else str(int(word)) for word in words]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"-f names fold {twice[0]} more than once: name it once")
    return names


def given_models(named_folders: list[str], ending: str) -> list[Model]:
    """Folders of predictions, each as ``NAME=FOLDER``."""
    models = []
    for text in named_folders:
        name, equals, folder = text.partition("=")
        if not (name.strip() and equals and folder):
            raise ValueError(f"--pred {text!r} is not NAME=FOLDER, such as stock=predictions/stock")
        predictions = files_of(Path(folder), ending)
        if not predictions:
            raise ValueError(f"--pred {text}: no file there ends with {ending} (file_ending of dataset.json)")
        models.append(Model(name, Path(folder), predictions, {}))
    if len({model.name for model in models}) < len(models):
        raise ValueError(f"--pred {' '.join(named_folders)}: two have the same name")
    return models


def expected_cases(models: list[Model], splits: list[dict[str, list[str]]]) -> set[str]:
    """The validation cases of the folds that the models were validated in."""
    return {case for model in models for fold in set(model.folds.values()) for case in splits[int(fold)]["val"]}


def match(models: list[Model], truths: dict[str, Path], expected: set[str], common: bool) -> Cases:
    """The cases that every model predicted.

    Args:
        expected: the cases there should be.
        common: drop what not every model predicted, instead of refusing.

    Raises:
        ValueError: models have unequal cases, or a case has no truth.
    """
    expected = expected.union(*(model.predictions for model in models))
    missing = {model.name: expected - set(model.predictions) for model in models}
    if any(missing.values()) and not common:
        which = "; ".join(f"{name} lacks {len(m)}: {listed(m)}" for name, m in missing.items() if m)
        which += "".join(f" ({model.note.rstrip('.')})" for model in models if model.note)
        raise ValueError(
            f"The models did not predict the same cases. {which}. Predict them, choose folds with -f, or compare "
            "what all have with --common"
        )
    kept = expected.difference(*missing.values())
    if not kept:
        raise ValueError("There is no case that every model predicted")
    if without := kept - set(truths):
        raise ValueError(f"There is no truth for {listed(without)}")
    models = [
        replace(
            m,
            predictions={case: m.predictions[case] for case in sorted(kept)},
            folds={case: fold for case, fold in m.folds.items() if case in kept},
        )
        for m in models
    ]
    return Cases(models, {case: truths[case] for case in sorted(kept)}, sorted(expected - kept))


def truth_folder(dataset: str) -> Path:
    """Where the truth of the training cases lies: nnU-Net's copy, else the raw labels."""
    copies = folder_of("nnUNet_preprocessed") / dataset / "gt_segmentations"
    return copies if copies.is_dir() else folder_of("nnUNet_raw") / dataset / "labelsTr"
