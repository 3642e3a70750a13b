"""The origin of a comparison's numbers, for summary.json. Paths name no user: they are `text.public_path`'s."""

import datetime
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.evaluation.cases import EvaluatedModel, PairedCases
from nnunetv2_dinomed3d.evaluation.text import public_path, public_word

PACKAGES = ("nnunetv2_dinomed3d", "nnunetv2", "numpy", "scipy", "SimpleITK", "matplotlib")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _file(path: Path) -> dict[str, Any]:
    status = path.stat()
    changed = datetime.datetime.fromtimestamp(status.st_mtime).astimezone().isoformat(timespec="seconds")
    return {"file": public_path(path), "bytes": status.st_size, "changed": changed}


def _model(model: EvaluatedModel) -> dict[str, Any]:
    """A model's files. nnU-Net does not record which checkpoint predicted: all that are there are listed."""
    plans = model.folder / "plans.json"
    folders = [model.folder / f"fold_{fold}" for fold in model.fold_names]
    return {
        "folder": public_path(model.folder),
        "plans": public_path(plans) if plans.is_file() else None,
        "folds": model.fold_names,
        "checkpoints": [_file(path) for folder in folders for path in sorted(folder.glob("checkpoint_*.pth"))],
        "predictions": {case: public_path(path) for case, path in model.predictions.items()},
        "fold_of_case": model.folds,
    }


def provenance(words: list[str], dataset: str | None, dataset_json: Path, cases: PairedCases) -> dict[str, Any]:
    """Files, versions, plans, folds and checkpoints of a comparison.

    Args:
        words: the command line.
    """
    return {
        "command": shlex.join([Path(words[0]).name, *map(public_word, words[1:])]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "dataset": dataset,
        "dataset_json": public_path(dataset_json),
        "references": {case: public_path(path) for case, path in cases.references.items()},
        "left_out": cases.left_out,
        "models": {model.name: _model(model) for model in cases.models},
    }
