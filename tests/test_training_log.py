"""The text logs of a training: our line about a stage, and what is read from nnU-Net's."""

import os
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_dinomed3d.training_log import read_logs, stage_line
from tests.evaluation_results import LOG

pytestmark = pytest.mark.own

STAMP = "2026-02-01 10:00:01.000001:"
STOCK = f"""
{STAMP} Epoch 0
{STAMP} Current learning rate: 0.01
{STAMP} train_loss 0.5
{STAMP} val_loss -0.25
{STAMP} Pseudo dice [0.5, 0.7]
{STAMP} Epoch time: 30.0 s
{STAMP} Yayy! New best EMA pseudo Dice: 0.0012
"""


def epochs(*numbers: int, seconds: float = 30) -> str:
    return "".join(f"{STAMP} Epoch {n}\n{STAMP} train_loss 0.5\n{STAMP} Epoch time: {seconds} s\n" for n in numbers)


def write_log(folder: Path, text: str, day: int = 1) -> None:
    (folder / f"training_log_2026_2_{day}_10_00_00.txt").write_text(text)


def test_a_stage_line_reads_like_a_sentence() -> None:
    assert stage_line(1, 521_571, 2_100_000) == "Stage 1: 521,571 of 2,100,000 parameters trained."
    assert stage_line(2, 5, 7, "2 patches a batch") == "Stage 2: 5 of 7 parameters trained, 2 patches a batch."


def test_both_stages_of_our_trainer(tmp_path: Path) -> None:
    write_log(tmp_path, LOG)
    log = read_logs(tmp_path)
    assert log.trained == {1: 521_571, 2: 1_724_955}
    assert log.parameters == {1: 2_100_000, 2: 2_100_000}
    assert list(log.finished) == [0, 1], "epoch 2 was cut off"
    assert log.switch == 1
    assert log.seconds() == {1: 7.52, 2: 46.0}
    assert log.finished[0].pseudo_dice == pytest.approx(0.2), "a label that is not there counts for nothing"
    assert (log.finished[1].pseudo_dice, log.finished[1].val_loss) == (pytest.approx(0.7), -0.2)


def test_a_network_that_is_trained_in_one_go_has_one_stage(tmp_path: Path) -> None:
    write_log(tmp_path, f"{STAMP} {stage_line(1, 30_000_000, 30_000_000)}\n" + epochs(0, 1))
    log = read_logs(tmp_path)
    assert (log.trained, log.parameters, log.switch) == ({1: 30_000_000}, {1: 30_000_000}, None)
    assert log.seconds() == {1: 30.0}


def test_a_log_of_before_says_what_is_trained(tmp_path: Path) -> None:
    """Trainings that began with an earlier version are compared too."""
    write_log(tmp_path, f"{STAMP} DINO-Med3D stage 1: 5,000 parameters are trained, 24 slabs a batch.\n" + epochs(0))
    log = read_logs(tmp_path)
    assert (log.trained, log.parameters, log.seconds()) == ({1: 5000}, {}, {1: 30.0})


def test_a_stock_log_has_no_stage_and_no_parameters(tmp_path: Path) -> None:
    write_log(tmp_path, STOCK)
    log = read_logs(tmp_path)
    assert (log.trained, log.parameters, log.switch, log.seconds()) == ({}, {}, None, {0: 30.0})


def test_a_resumed_training_counts_each_epoch_once_as_it_was_done_last(tmp_path: Path) -> None:
    """Files are read by date: the 10th comes after the 9th, which their names hide."""
    write_log(tmp_path, STOCK, day=9)
    write_log(tmp_path, STOCK.replace("30.0 s", "20.0 s"), day=10)
    assert [epoch.seconds for epoch in read_logs(tmp_path).finished.values()] == [20.0]


def test_a_longer_training_of_before_adds_no_epochs(tmp_path: Path) -> None:
    """A log that begins at epoch 0 is of a training that began anew."""
    write_log(tmp_path, LOG + epochs(3, 4, 5))
    write_log(tmp_path, epochs(0, 1, seconds=20), day=2)
    write_log(tmp_path, epochs(2, seconds=10), day=3)
    log = read_logs(tmp_path)
    assert {n: epoch.seconds for n, epoch in log.finished.items()} == {0: 20, 1: 20, 2: 10}
    assert (log.trained, log.parameters, log.switch) == ({}, {}, None)


def test_epochs_beyond_a_resumption_were_not_kept(tmp_path: Path) -> None:
    write_log(tmp_path, epochs(0, 1, 2, 3, 4))
    write_log(tmp_path, epochs(2, seconds=10), day=2)
    assert list(read_logs(tmp_path).finished) == [0, 1, 2]


def test_a_line_that_is_not_nnunets_changes_nothing(tmp_path: Path) -> None:
    """A name with a newline can look like a line of the log; what is no number must not end the report."""
    forged = [f"{STAMP} Epoch 999", f"{STAMP} Epoch {'9' * 5000}", f"{STAMP} Epoch \u00b2", "Epoch 7"]
    forged += [f"{STAMP} Stage 0: 5 of 7 parameters trained", f"{STAMP} Stage 1: , of , parameters trained"]
    forged += [f"{STAMP} Stage 2 starts from epoch 3", f"{STAMP} Stage 3: {'9' * 5000} of 7 parameters trained"]
    forged += [f"{STAMP} train_loss {'9' * 400}", f"{STAMP} val_loss inf", f"{STAMP} Pseudo dice [inf, 1e999]"]
    write_log(tmp_path, epochs(0) + "\n".join(forged) + "\n" + "x" * 300_000 + "\n" + epochs(1))
    log = read_logs(tmp_path)
    assert list(log.epochs) == [0, 1]
    assert all(np.isnan([epoch.val_loss, epoch.pseudo_dice]).all() for epoch in log.epochs.values())
    assert not np.isinf(log.epochs[0].train_loss)
    assert set(log.trained) <= {1}


def test_what_is_no_log_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "training_log_2026_2_1_10_00_00.txt")
    (tmp_path / "training_log_2026_2_2_10_00_00.txt").mkdir()
    assert not read_logs(tmp_path).epochs


def test_without_logs_nothing_is_known(tmp_path: Path) -> None:
    assert not read_logs(tmp_path).finished
