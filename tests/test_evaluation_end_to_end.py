"""Real trainings, stock and ours, by the commands that ``crossval`` prints, and what ``compare`` says of them."""

import argparse
import csv
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands import crossval
from tests.conftest import preprocess
from tests.evaluation_results import compare

pytestmark = [pytest.mark.end_to_end, pytest.mark.long]

DATASET = "Dataset915_Hippocampus"
CASES = 15
TRAINERS = ("nnUNetTrainerStockQuick", "nnUNetTrainerQuick")
STOCK = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerStockQuick(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 4
        self.num_val_iterations_per_epoch = 1
"""


def commands(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """What ``crossval`` prints."""
    parser = argparse.ArgumentParser()
    crossval.add_arguments(parser)
    capsys.readouterr()
    crossval.run(parser.parse_args([DATASET, "-tr", *TRAINERS, "--folds", "0", "1"]))
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]


def test_stock_and_ours_in_two_folds(
    run: Callable[..., str],
    shared: Path,
    nnunet_environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = Path(nnunet_environment["nnUNet_raw"]) / DATASET
    source = shared / "data" / "Dataset004_Hippocampus"
    for labels in sorted((source / "labelsTr").glob("*.nii.gz"))[:CASES]:
        for kind, name in (("labelsTr", labels.name), ("imagesTr", labels.name.replace(".nii.gz", "_0000.nii.gz"))):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kind / name, raw / kind / name)
    description = json.loads((source / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))
    preprocess(run, "915", "3d_fullres")
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "stock_quick.py").write_text(STOCK)
    ext = os.pathsep.join([nnunet_environment["nnUNet_extTrainer"], str(tmp_path / "trainers")])

    todo = commands(capsys)
    assert len(todo) == 4
    for command in todo:
        run(*command, "-device", "cpu", nnUNet_extTrainer=ext)
    assert commands(capsys) == []

    out = tmp_path / "out"
    assert compare("915", "-tr", *TRAINERS, "-o", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["provenance"]["references"]) == 6
    stages = summary["trainings"]["nnUNetTrainerQuick"]["0"]
    assert (stages["epochs"], stages["first_epoch_of_stage_2"]) == (4, 2)
    assert set(stages["trained_parameters"]) == set(stages["parameters"]) == {"1", "2"}
    assert summary["trainings"]["nnUNetTrainerStockQuick"]["1"]["epochs"] == 2
    with (out / "cases.csv").open() as file:
        dices = {(r["model"], r["case"], r["label"]): float(r["dice"]) for r in csv.DictReader(file)}
    root = Path(nnunet_environment["nnUNet_results"]).parent
    for model, origin in summary["provenance"]["models"].items():
        for fold in ("0", "1"):
            theirs = json.loads((root / origin["folder"] / f"fold_{fold}" / "validation" / "summary.json").read_text())
            for case in theirs["metric_per_case"]:
                name = Path(case["prediction_file"]).name.removesuffix(".nii.gz")
                for label, value in (("Anterior", "1"), ("Posterior", "2")):
                    assert dices[model, name, label] == pytest.approx(case["metrics"][value]["Dice"], abs=1e-12)
