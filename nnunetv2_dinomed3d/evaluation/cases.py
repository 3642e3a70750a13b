"""Which prediction belongs to which truth, and what is refused."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.evaluation.dataset import folder_of, folds_in, model_name


@dataclass(frozen=True)
class Model:
    """One column of the comparison.

    Attributes:
        name: as it is called in the report.
        folder: nnU-Net's results folder, or the folder of predictions.
        predictions: of each case, its file.
        folds: of each case, the fold that predicted it; empty if these are not validation predictions.
    """

    name: str
    folder: Path
    predictions: dict[str, Path]
    folds: dict[str, str]


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
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def files_of(folder: Path, ending: str) -> dict[str, Path]:
    """The label maps in a folder, by case."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}


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
    if not path.is_file():
        raise ValueError(f"{path} does not exist: without it nobody knows which cases a fold was trained on")
    return read_json(path)


def _trained_model(
    name: str, folder: Path, folds: list[str] | None, splits: list[dict[str, list[str]]], ending: str
) -> Model:
    if not folder.is_dir():
        there = listed(path.name for path in folder.parent.glob("*__*__*"))
        raise ValueError(f"{folder} does not exist; there are: {there or 'none'}. Train first, or see -tr, -p and -c")
    predictions: dict[str, Path] = {}
    of_fold: dict[str, str] = {}
    for fold in folds or [fold for fold in folds_in(folder) if is_validated(folder, fold)]:
        found = _fold_predictions(folder, fold, splits, ending)
        if twice := set(found) & set(predictions):
            raise ValueError(f"{name}: {listed(twice)} validated in more than one fold: choose the folds with -f")
        predictions |= found
        of_fold |= dict.fromkeys(found, fold)
    if not predictions:
        raise ValueError(f"{folder}: no fold has been validated: run nnUNetv2_train ... --val")
    return Model(name, folder, predictions, of_fold)


def is_validated(model: Path, fold: str) -> bool:
    """Whether a fold's validation has finished: nnU-Net writes its summary last."""
    return (model / f"fold_{fold}" / "validation" / "summary.json").is_file()


def _fold_predictions(model: Path, fold: str, splits: list[dict[str, list[str]]], ending: str) -> dict[str, Path]:
    """The validation predictions of a fold; none of them may be a case that it was trained on."""
    if not is_validated(model, fold):
        raise ValueError(
            f"{model}: the validation of fold {fold} has not finished: run nnUNetv2_train ... {fold} --val"
        )
    if fold == "all":
        raise ValueError(
            f"{model}: fold all is trained on every case, its validation says nothing: leave it out with -f"
        )
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


def given_models(named_folders: list[str], ending: str) -> list[Model]:
    """Folders of predictions, each as ``NAME=FOLDER``."""
    models = []
    for text in named_folders:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
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
        Model(
            m.name,
            m.folder,
            {c: m.predictions[c] for c in sorted(kept)},
            {c: f for c, f in m.folds.items() if c in kept},
        )
        for m in models
    ]
    return Cases(models, {case: truths[case] for case in sorted(kept)}, sorted(expected - kept))


def truth_folder(dataset: str) -> Path:
    """Where the truth of the training cases lies: nnU-Net's copy, else the raw labels."""
    copies = folder_of("nnUNet_preprocessed") / dataset / "gt_segmentations"
    return copies if copies.is_dir() else folder_of("nnUNet_raw") / dataset / "labelsTr"
