"""Where a comparison's numbers come from, for summary.json."""

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.evaluation.cases import Cases, Model

PACKAGES = ("nnunetv2_dinomed3d", "nnunetv2", "numpy", "scipy", "SimpleITK", "matplotlib")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _file(path: Path) -> dict[str, Any]:
    status = path.stat()
    changed = datetime.datetime.fromtimestamp(status.st_mtime).astimezone().isoformat(timespec="seconds")
    return {"file": str(path), "bytes": status.st_size, "changed": changed}


def _model(model: Model) -> dict[str, Any]:
    """A model's files. Which checkpoint predicted, nnU-Net does not record: all that lie there are listed."""
    folds = sorted(set(model.folds.values()))
    plans = model.folder / "plans.json"
    return {
        "folder": str(model.folder.resolve()),
        "plans": str(plans.resolve()) if plans.is_file() else None,
        "folds": folds,
        "checkpoints": [_file(p) for f in folds for p in sorted((model.folder / f"fold_{f}").glob("checkpoint_*.pth"))],
        "predictions": {case: str(path.resolve()) for case, path in model.predictions.items()},
        "fold_of_case": model.folds,
    }


def provenance(command: str, dataset: str | None, dataset_json: Path, cases: Cases) -> dict[str, Any]:
    """Files, versions, plans, folds and checkpoints."""
    return {
        "command": command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "dataset": dataset,
        "dataset_json": str(dataset_json.resolve()),
        "truths": {case: str(path.resolve()) for case, path in cases.truths.items()},
        "left_out": cases.left_out,
        "models": {model.name: _model(model) for model in cases.models},
    }
