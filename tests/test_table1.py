"""Table 1 on real data: all rows by one command, compared in one report."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.trainer_names import TABLES
from tests.conftest import preprocess
from tests.tiny_baselines import short_trainings

Run = Callable[..., str]

DATASET = "Dataset004_Hippocampus"
CASES = 15


@pytest.mark.long
def test_all_rows_are_trained_and_compared(
    run: Run, shared: Path, nnunet_environment: dict[str, str], tmp_path: Path
) -> None:
    raw, source = Path(nnunet_environment["nnUNet_raw"]) / DATASET, shared / "data" / DATASET
    for labels in sorted((source / "labelsTr").glob("*.nii.gz"))[:CASES]:
        for kind, name in (("labelsTr", labels.name), ("imagesTr", labels.name.replace(".nii.gz", "_0000.nii.gz"))):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kind / name, raw / kind / name)
    description = json.loads((source / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))
    preprocess(run, "4", "2d", "3d_fullres")
    settings = {**short_trainings(tmp_path / "bin"), "DINOMED3D_WEIGHTS": "random"}
    done = run("dinomed3d", "crossval", "4", "-tr", "TABLE1", "--folds", "0", "--run", **settings)
    assert done.rstrip().endswith("All jobs are done.")
    out = Path(os.environ.get("KEEP_REPORT", tmp_path / "report"))
    answer = run("dinomed3d", "compare", "4", "-tr", "TABLE1", "-o", out)
    _, *others = TABLES["TABLE1"]
    for trainer in others:
        assert any(f"{trainer} is " in line or f"between {trainer} and" in line for line in answer.splitlines()), (
            trainer
        )
    report = (out / "report.html").read_text()
    assert all(trainer in report for trainer in TABLES["TABLE1"])
