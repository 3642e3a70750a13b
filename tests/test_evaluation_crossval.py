"""The trainings of a cross-validation: how far each got, and which of them are run."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.evaluation.crossval import STOCK_LENGTHS, fold_state, length_notes
from nnunetv2_dinomed3d.folder_lock import LOCK, Owner
from tests.crossval_jobs import FAKE, crossval, make_trainings, records, stand_in
from tests.evaluation_results import fold_folder

pytestmark = pytest.mark.own

OWN = """
import dataclasses, json, sys
from pathlib import Path
from nnunetv2_dinomed3d.folder_lock import Owner
Path(sys.argv[1]).write_text(json.dumps(dataclasses.asdict(Owner.this_process())))
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """See `make_trainings`."""
    return make_trainings(tmp_path, monkeypatch)


@pytest.fixture
def jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nnUNetv2_train on the PATH that records how it was called; the folder of its records."""
    return stand_in(root, monkeypatch, "nnUNetv2_train", FAKE)


def test_a_training_over_a_finished_one_is_not_taken_for_it(root: Path) -> None:
    """nnU-Net would validate the old checkpoint_final.pth, and its results would count as the new training's."""
    fold = fold_folder(root, "Ours", 3)
    (fold / "checkpoint_latest.pth").touch()
    os.utime(fold / "checkpoint_final.pth", (1, 1))
    with pytest.raises(ValueError, match=r"fold_3: a training was begun over a finished one"):
        fold_state(fold.parent, "3")


def test_baselines_of_equal_length_are_named() -> None:
    """In the paper every method is trained for 100 epochs; nnU-Net's default are 1000."""
    ours = ["nnUNetTrainerDINOMed3D", "nnUNetTrainerDINOMed3D_S_250epochs", "nnUNetTrainerDINOMed3D_1000epochs"]
    lines = length_notes(["nnUNetTrainer", *ours])
    assert [line.rpartition(" ")[2] for line in lines] == ["nnUNetTrainer_100epochs", "nnUNetTrainer_250epochs"]
    assert all(line.startswith("nnUNetTrainer trains for 1000 epochs, ") for line in lines)
    assert not length_notes(["nnUNetTrainer_100epochs", *ours])
    assert not length_notes(["nnUNetTrainer"])
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs as stock

    assert all(hasattr(stock, f"nnUNetTrainer_{epochs}epochs") for epochs in STOCK_LENGTHS)


def test_running_needs_nnunet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(ValueError, match="nnUNetv2_train is not on the PATH"):
        crossval("777", "-tr", "Ours", "--run")


def test_a_job_whose_turn_comes_is_looked_at_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another run has finished it, or left a checkpoint, while this one trained the fold before."""
    meanwhile = """#!/bin/sh
fold="$nnUNet_results/$1/New__nnUNetPlans__3d_fullres/fold_"
mkdir -p "$fold"1/validation "$fold"2
echo "{{}}" > "$fold"1/validation/summary.json
touch "$fold"1/checkpoint_final.pth "$fold"2/checkpoint_latest.pth "$fold"2/training_log_1.txt
touch "$fold"1/validation/summary.json
echo "trained $3 $8"
"""
    stand_in(root, monkeypatch, "nnUNetv2_train", meanwhile)
    assert crossval("777", "-tr", "New", "--folds", "0", "1", "2", "--run") == 0
    output, warning = capfd.readouterr()
    assert "# finished in the meantime: New fold 1" in output
    assert [line for line in output.splitlines() if line.startswith("trained")] == ["trained 0 ", "trained 2 --c"]
    assert re.search(r"^dinomed3d: warning: New fold 2: its training log was written \d+ s ago", warning)


def test_what_another_process_trains_is_left_to_it(root: Path, jobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A second `crossval --run` beside the first trains something else; 75 says that not all is done."""
    fold = fold_folder(root, "New", 0)
    fold.mkdir(parents=True)
    (fold / LOCK).write_text(json.dumps(asdict(Owner.this_process())))
    assert crossval("777", "-tr", "New", "--folds", "0", "1", "--run") == 75
    assert [record["words"][2] for record in records(jobs)] == ["1"]
    assert f"New fold 0 is left out, as it is being trained: process {os.getpid()} on" in capfd.readouterr().out
    with subprocess.Popen([sys.executable, "-c", OWN, str(fold / LOCK)]) as process:  # an owner that has died
        assert process.wait() == 0
    assert crossval("777", "-tr", "New", "--folds", "0", "--run") == 0
    assert [record["words"][2] for record in records(jobs)] == ["1", "0"]
