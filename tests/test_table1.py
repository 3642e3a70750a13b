"""Table 1 on real data: all rows by one command, compared in one report."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.trainer_names import TABLES
from tests.conftest import preprocess

Run = Callable[..., str]

DATASET = "Dataset004_Hippocampus"

SHORT = """#!{python}
# nnUNetv2_train with tiny networks and a few iterations: the trainers' own names, on a CPU
import sys

from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from tests.tiny_baselines import shortened

if __name__ == "__main__":  # processes that it starts import it
    trainer = recursive_find_trainer_class_by_name(sys.argv[sys.argv.index("-tr") + 1])
    if trainer.__module__.startswith("nnunetv2."):
        start = trainer.__init__

        def short(self, plans, configuration, fold, dataset_json, device):
            start(self, plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, {iterations}, 1

        trainer.__init__ = short
    else:
        for attribute, value in shortened(trainer, {iterations}).items():
            setattr(trainer, attribute, value)
    sys.argv += ["-device", "cpu"]
    run_training_entry()
"""


@pytest.mark.long
def test_all_rows_are_trained_and_compared(
    run: Run, shared: Path, nnunet_environment: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(shared / "data" / DATASET, Path(nnunet_environment["nnUNet_raw"]) / DATASET)
    preprocess(run, "4", "2d", "3d_fullres")
    short = tmp_path / "bin" / "nnUNetv2_train"
    short.parent.mkdir()
    short.write_text(SHORT.format(python=sys.executable, iterations=2))
    short.chmod(0o755)
    settings = {"PATH": f"{short.parent}{os.pathsep}{os.environ['PATH']}", "DINOMED3D_WEIGHTS": "random"}
    done = run("dinomed3d", "crossval", "4", "-tr", "TABLE1", "--folds", "0", "--run", **settings)
    assert done.rstrip().endswith("All jobs are done.")
    out = Path(os.environ.get("KEEP_REPORT", tmp_path / "report"))
    answer = run("dinomed3d", "compare", "4", "-tr", "TABLE1", "-o", out)
    stock, *others = TABLES["TABLE1"]
    for trainer in others:
        assert f"{trainer} is " in answer, answer
    report = (out / "report.html").read_text()
    assert all(trainer in report for trainer in TABLES["TABLE1"])
    summary = json.loads((out / "result.json").read_text()) if (out / "result.json").is_file() else {}
    print(summary.keys(), sorted(path.name for path in out.iterdir()))
