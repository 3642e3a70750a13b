"""What is read from nnU-Net's text logs."""

import os
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_dinomed3d.training_log import read_logs
from tests.test_evaluation_cases import LOG

STOCK = """
2026-02-01 10:00:01.000001: Epoch 0
2026-02-01 10:00:01.000001: Current learning rate: 0.01
2026-02-01 10:00:01.000001: train_loss 0.5
2026-02-01 10:00:01.000001: val_loss -0.25
2026-02-01 10:00:01.000001: Pseudo dice [0.5, 0.7]
2026-02-01 10:00:01.000001: Epoch time: 30.0 s
2026-02-01 10:00:01.000001: Yayy! New best EMA pseudo Dice: 0.0012
"""


def test_both_stages_of_our_trainer(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(LOG.format(day=1))
    log = read_logs(tmp_path)
    assert log.trained == {1: 521_571, 2: 1_724_955}
    assert log.parameters == {2: 2_100_000}, "blank where the log does not say it"
    assert list(log.finished) == [0, 1], "epoch 2 was cut off"
    assert log.switch == 1
    assert log.seconds() == {1: 7.52, 2: 46.0}
    assert log.finished[0].pseudo_dice == pytest.approx(0.2), "a label that is not there counts for nothing"
    assert (log.finished[1].pseudo_dice, log.finished[1].val_loss) == (pytest.approx(0.7), -0.2)


def test_a_stock_log_has_no_stage_and_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_2_1_10_00_00.txt").write_text(STOCK)
    log = read_logs(tmp_path)
    assert (log.trained, log.parameters, log.switch, log.seconds()) == ({}, {}, None, {0: 30.0})


def test_a_resumed_training_counts_each_epoch_once_as_it_was_done_last(tmp_path: Path) -> None:
    """Files are read by date: the 10th comes after the 9th, which their names hide."""
    (tmp_path / "training_log_2026_2_9_10_00_00.txt").write_text(STOCK)
    (tmp_path / "training_log_2026_2_10_10_00_00.txt").write_text(STOCK.replace("30.0 s", "20.0 s"))
    assert [epoch.seconds for epoch in read_logs(tmp_path).finished.values()] == [20.0]


def epochs(*numbers: int, seconds: float = 30) -> str:
    stamp = "2026-02-01 10:00:01.000001:"
    return "".join(f"{stamp} Epoch {n}\n{stamp} train_loss 0.5\n{stamp} Epoch time: {seconds} s\n" for n in numbers)


def test_a_longer_training_of_before_adds_no_epochs(tmp_path: Path) -> None:
    """A log that begins at epoch 0 is of a training that began anew."""
    (tmp_path / "training_log_2026_2_1_10_00_00.txt").write_text(LOG.format(day=1) + epochs(3, 4, 5))
    (tmp_path / "training_log_2026_2_2_10_00_00.txt").write_text(epochs(0, 1, seconds=20))
    (tmp_path / "training_log_2026_2_3_10_00_00.txt").write_text(epochs(2, seconds=10))
    log = read_logs(tmp_path)
    assert {n: epoch.seconds for n, epoch in log.finished.items()} == {0: 20, 1: 20, 2: 10}
    assert (log.trained, log.parameters, log.switch) == ({}, {}, None)


def test_epochs_beyond_a_resumption_were_not_kept(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_2_1_10_00_00.txt").write_text(epochs(0, 1, 2, 3, 4))
    (tmp_path / "training_log_2026_2_2_10_00_00.txt").write_text(epochs(2, seconds=10))
    assert list(read_logs(tmp_path).finished) == [0, 1, 2]


def test_a_line_that_is_not_nnunets_changes_nothing(tmp_path: Path) -> None:
    """A name with a newline can look like a line of the log; what is no number must not end the report."""
    stamp = "2026-02-01 10:00:01.000001:"
    path = tmp_path / "training_log_2026_2_1_10_00_00.txt"
    forged = [f"{stamp} Epoch 999", f"{stamp} Epoch {'9' * 5000}", f"{stamp} Epoch \u00b2", "Epoch 7"]
    forged += [f"{stamp} DINO-Med3D stage 7: 5 parameters are trained", f"{stamp} DINO-Med3D stage 1: , parameters are"]
    forged += [f"{stamp} train_loss {'9' * 400}", f"{stamp} val_loss inf", f"{stamp} Pseudo dice [inf, 1e999]"]
    path.write_text(epochs(0) + "\n".join(forged) + "\n" + "x" * 300_000 + "\n" + epochs(1))
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
