"""Where a comparison's numbers come from, for summary.json; places as `text.place` has them, without names of users."""

import datetime
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.evaluation.cases import Cases, Model
from nnunetv2_dinomed3d.evaluation.text import place, without_places

PACKAGES = ("nnunetv2_dinomed3d", "nnunetv2", "numpy", "scipy", "SimpleITK", "matplotlib")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _file(path: Path) -> dict[str, Any]:
    status = path.stat()
    changed = datetime.datetime.fromtimestamp(status.st_mtime).astimezone().isoformat(timespec="seconds")
    return {"file": place(path), "bytes": status.st_size, "changed": changed}


def _model(model: Model) -> dict[str, Any]:
    """A model's files. Which checkpoint predicted, nnU-Net does not record: all that lie there are listed."""
    folds = sorted(set(model.folds.values()))
    plans = model.folder / "plans.json"
    return {
        "folder": place(model.folder),
        "plans": place(plans) if plans.is_file() else None,
        "folds": folds,
        "checkpoints": [_file(p) for f in folds for p in sorted((model.folder / f"fold_{f}").glob("checkpoint_*.pth"))],
        "predictions": {case: place(path) for case, path in model.predictions.items()},
        "fold_of_case": model.folds,
    }


def provenance(words: list[str], dataset: str | None, dataset_json: Path, cases: Cases) -> dict[str, Any]:
    """Files, versions, plans, folds and checkpoints.

    Args:
        words: of the command line.
    """
    return {
        "command": shlex.join([Path(words[0]).name, *map(without_places, words[1:])]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "dataset": dataset,
        "dataset_json": place(dataset_json),
        "truths": {case: place(path) for case, path in cases.truths.items()},
        "left_out": cases.left_out,
        "models": {model.name: _model(model) for model in cases.models},
    }
