"""Pairs of prediction and reference: which files belong together, and what is refused."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.trainings import Training, names_of
from nnunetv2_dinomed3d.nnunet_files import (
    ENDINGS,
    Splits,
    folds_in,
    read_splits,
    splits_file,
    training_command,
    validated_models,
    validation_summary,
    why_not_validated,
)
from nnunetv2_dinomed3d.text import join_first

VOLUMES = (*ENDINGS, ".mhd", ".nhdr", ".hdr", ".img", ".img.gz")
"""Endings of files that could be a case's label map."""


@dataclass(frozen=True)
class EvaluatedModel:
    """One model of the comparison.

    Attributes:
        name: its name in the report.
        folder: nnU-Net's folder of the model, or the folder of predictions.
        predictions: the file of each case.
        folds: the fold that predicted each case; empty if these are not validation predictions.
        note: what was left out, for the report; empty if nothing was.
    """

    name: str
    folder: Path
    predictions: dict[str, Path]
    folds: dict[str, str]
    note: str = ""

    @property
    def fold_names(self) -> list[str]:
        """The folds that predicted, each once."""
        return sorted(set(self.folds.values()))


@dataclass(frozen=True)
class PairedCases:
    """The cases that are compared.

    Attributes:
        models: each has a prediction of every case in `references`.
        references: the file of each case's reference segmentation.
        left_out: cases that ``--common`` dropped because a model did not predict them.
    """

    models: list[EvaluatedModel]
    references: dict[str, Path]
    left_out: list[str]


def files_of(folder: Path, ending: str) -> dict[str, Path]:
    """The label maps in a folder, by case. Files that begin with a dot are skipped (macOS leaves some).

    Raises:
        ValueError: the folder does not exist, a case has several files, or one of them is no file.
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
    """A file's name without the ending of a volume, in upper or lower case; empty if it has none."""
    ending = max((end for end in VOLUMES if name.lower().endswith(end)), key=len, default="")
    return name[: -len(ending)] if ending else ""


def trained_models(
    dataset: str, trainings: Sequence[Training], *, folds: list[str] | None, ending: str
) -> list[EvaluatedModel]:
    """Trained models of a data set with their validation predictions.

    Args:
        folds: None for every fold that has been validated.

    Raises:
        ValueError: a model, a fold or a validation is missing, or a fold predicted a case that it was trained on.
    """
    splits = read_splits(splits_file(dataset))
    return [
        _trained_model(name, training.folder(dataset), folds, splits, ending=ending)
        for name, training in zip(names_of(trainings), trainings, strict=True)
    ]


def _trained_model(name: str, folder: Path, folds: list[str] | None, splits: Splits, *, ending: str) -> EvaluatedModel:
    if not folder.is_dir():
        there = join_first(validated_models(folder.parent.name)) or "none that was validated"
        raise ValueError(f"{folder} does not exist; there are: {there}. Train first, or see -tr, -p and -c")
    note = ""
    if folds is None:
        folds = [fold for fold in folds_in(folder) if validation_summary(folder, fold).is_file()]
        if len(folds) > 1 and "all" in folds:  # fold all alone is refused below, with the reason
            folds.remove("all")
            note = f"{name}: fold all is left out, because it was trained on the cases that it would be validated on."
    predictions: dict[str, Path] = {}
    of_fold: dict[str, str] = {}
    for fold in folds:
        found = _fold_predictions(folder, fold, splits, ending)
        if twice := set(found) & set(predictions):
            raise ValueError(f"{name}: {join_first(twice)} validated in more than one fold: choose the folds with -f")
        predictions |= found
        of_fold |= dict.fromkeys(found, fold)
    if not predictions:
        raise ValueError(f"{folder}: no fold has been validated: run {training_command(folder, 'FOLD')}")
    return EvaluatedModel(name, folder, predictions, of_fold, note)


def _fold_predictions(model: Path, fold: str, splits: Splits, ending: str) -> dict[str, Path]:
    """The validation predictions of a fold; a case that it was trained on is refused."""
    if fold == "all":
        raise ValueError(
            f"{model}: fold all was trained on every case, so its validation means nothing: name other folds with -f"
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
            f"{model}: fold {fold} predicted {join_first(trained)}, which it was trained on (splits_final.json). "
            "If the splits were changed after the training, train again"
        )
    if unknown := set(found) - set(split["val"]):
        raise ValueError(
            f"{model}: fold {fold} predicted {join_first(unknown)}, which splits_final.json does not name for it: "
            "remove what is left of other splits, or train again"
        )
    return found


def fold_names(words: list[str]) -> list[str]:
    """The folds that ``-f`` names, as nnU-Net writes them.

    Raises:
        ValueError: a word is no fold, or a fold is named twice.
    """
    if wrong := [word for word in words if word != "all" and not re.fullmatch(r"[0-9]{1,9}", word)]:
        raise ValueError(f"-f {wrong[0]!r} is no fold: folds are numbers from 0 on")
    names = [word if word == "all" else str(int(word)) for word in words]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"-f names fold {twice[0]} more than once: name it once")
    return names


def given_models(named_folders: list[str], ending: str) -> list[EvaluatedModel]:
    """Folders of predictions, each as ``NAME=FOLDER``.

    Raises:
        ValueError: a word has another form, a folder holds no prediction, or two have the same name.
    """
    models = []
    for text in named_folders:
        name, equals, folder = text.partition("=")
        if not (name.strip() and equals and folder):
            raise ValueError(f"--pred {text!r} is not NAME=FOLDER, such as stock=predictions/stock")
        predictions = files_of(Path(folder), ending)
        if not predictions:
            raise ValueError(f"--pred {text}: no file there ends with {ending} (file_ending of dataset.json)")
        models.append(EvaluatedModel(name, Path(folder), predictions, {}))
    if len({model.name for model in models}) < len(models):
        raise ValueError(f"--pred {' '.join(named_folders)}: two folders have the same name")
    return models


def expected_cases(models: list[EvaluatedModel], splits: Splits) -> set[str]:
    """The validation cases of the folds in which the models were validated."""
    return {case for model in models for fold in model.fold_names for case in splits[int(fold)]["val"]}


def pair_cases(
    models: list[EvaluatedModel], references: dict[str, Path], expected: set[str], common: bool
) -> PairedCases:
    """The cases that every model predicted, with their references.

    Args:
        expected: the cases there should be.
        common: drop cases that some model did not predict, instead of refusing them.

    Raises:
        ValueError: the models predicted different cases, or a case has no reference.
    """
    expected = expected.union(*(model.predictions for model in models))
    missing = {model.name: expected - set(model.predictions) for model in models}
    if any(missing.values()) and not common:
        which = "; ".join(f"{name} lacks {len(m)}: {join_first(m)}" for name, m in missing.items() if m)
        which += "".join(f" ({model.note.rstrip('.')})" for model in models if model.note)
        raise ValueError(
            f"The models did not predict the same cases. {which}. Predict them, choose folds with -f, or compare "
            "the cases that all have with --common"
        )
    kept = expected.difference(*missing.values())
    if not kept:
        raise ValueError("There is no case that every model predicted")
    if without := kept - set(references):
        raise ValueError(f"There is no reference segmentation of {join_first(without)}")
    models = [
        replace(
            m,
            predictions={case: m.predictions[case] for case in sorted(kept)},
            folds={case: fold for case, fold in m.folds.items() if case in kept},
        )
        for m in models
    ]
    return PairedCases(models, {case: references[case] for case in sorted(kept)}, sorted(expected - kept))
