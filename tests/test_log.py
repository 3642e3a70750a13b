"""What a training writes down: the text log, and a run at Weights & Biases."""

import math
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from nnunetv2.training.logging import nnunet_logger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from wandb.proto.wandb_internal_pb2 import Record, RunRecord

from nnunetv2_dinomed3d.trainers.dinomed3d.progress_plot import StagedLogger
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.log import wandb_is_wanted
from nnunetv2_dinomed3d.training_log import read_logs
from tests.trainers.quick_trainers import nnUNetTrainerQuick

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]
STAGE1, STAGE2 = 0.9, 0.2
AVERAGES = [STAGE1, STAGE1, STAGE2, STAGE2]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than these trainings."""
    monkeypatch.setattr(StagedLogger, "plot_progress_png", lambda self, output_folder: None)


class OfKnownDice(nnUNetTrainerQuick):
    """Stage 1 and 2 have each the same Dice throughout, and steps take no time."""

    stop_in: int | None = None

    def train_step(self, batch: dict) -> dict:
        if self.current_epoch == self.stop_in:
            raise SystemExit(75)  # as after SIGTERM
        return {"loss": np.array(1.0)}

    def validation_step(self, batch: dict) -> dict:
        dice = STAGE1 if self.stage == 1 else STAGE2
        return {
            "loss": np.array(1.0),
            "tp_hard": np.array([dice]),
            "fp_hard": np.array([1 - dice]),
            "fn_hard": np.array([1 - dice]),
        }


class Listener:
    """In the place of an external logger."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[int, Any]]] = {}

    def log(self, key: str, value: Any, step: int) -> None:
        self.values.setdefault(key, []).append((step, value))

    def update_config(self, config: dict) -> None:
        pass

    def log_summary(self, key: str, value: Any) -> None:
        pass


def test_every_logger_gets_the_average_of_the_stage_once(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(OfKnownDice)
    listener = Listener()
    trainer.logger.loggers.append(listener)
    trainer.run_training()
    averages = trainer.logger.get_value("ema_fg_dice", step=None)
    assert averages == pytest.approx(AVERAGES)
    assert listener.values["ema_fg_dice"] == list(enumerate(averages))
    assert listener.values["mean_fg_dice"] == [(i, pytest.approx(dice)) for i, dice in enumerate(AVERAGES)]


def test_an_average_after_an_epoch_without_dice(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(OfLongStage1)
    listener = Listener()
    trainer.logger.loggers.append(listener)
    for epoch, dice in enumerate((math.nan, 0.5, math.nan)):
        trainer.logger.log("mean_fg_dice", dice, epoch)
    sent = [value for _, value in listener.values["ema_fg_dice"]]
    assert math.isnan(sent[0])
    assert sent[1:] == [0.5, 0.5] == trainer.logger.get_value("ema_fg_dice", step=None)[1:]


class OfLongStage1(nnUNetTrainerQuick):
    stage1_epochs = 3


# ---- the text log ----


class OfSmallRates(OfKnownDice):
    stage1_lr, stage2_lr = 1.2345e-6, 3e-4


def test_the_learning_rate_has_significant_digits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(OfSmallRates)
    trainer.run_training()
    text = Path(trainer.log_file).read_text()
    logged = [float(rate) for rate in re.findall(r"Current learning rate: (\S+) *\n", text)]
    assert logged == pytest.approx(trainer.logger.get_value("lrs", step=None), rel=1e-3)
    assert min(logged) < 1e-6


def test_what_comes_from_outside_cannot_forge_a_line(make_trainer: MakeTrainer) -> None:
    forged = "\n2026-01-01 00:00:00.000000: Epoch 7"
    name = f"Quick{forged}\r\x1b[2J\udce6\u2028\x85"
    trainer = make_trainer(nnUNetTrainerQuick)
    start = len(Path(trainer.log_file).read_text().splitlines())
    trainer.print_to_log_file(f"{name} starts from random weights", {"case": name})
    trainer.print_to_log_file(f"predicting {name}", add_timestamp=False)
    trainer.print_to_log_file("\ntwo\n  lines\n", add_timestamp=False)
    text = Path(trainer.log_file).read_text()
    assert read_logs(Path(trainer.output_folder)).epochs == {}
    escaped = r"Quick\n2026-01-01 00:00:00.000000: Epoch 7\r\x1b[2J\udce6\u2028\x85"
    assert f": {escaped} starts from random weights {{'case'" in text
    assert f"predicting {escaped} \n" in text
    assert "\ntwo\n  lines\n" in text, "nnU-Net's own messages of several lines stay as they are"
    assert len(text.splitlines()) == start + 2 + 4


# ---- W&B ----


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.delenv("nnUNet_wandb_mode", raising=False)
    settings = {
        "MODE": "offline",
        "SILENT": "true",
        "CONSOLE": "off",
        "_DISABLE_STATS": "true",
        "ERROR_REPORTING": "false",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    wandb.teardown()


def records(folder: Path) -> list[Record]:
    """What W&B wrote of a run: a log in LevelDB's format, blocks of 32 KiB after 7 bytes of header."""
    (file,) = folder.glob("*.wandb")
    content, place, found, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<4xHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its end
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(folder: Path, key: str) -> dict[int, float]:
    steps = {}
    for record in records(folder):
        items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if key in items:
            assert record.history.step.num not in steps, "logged once"
            steps[record.history.step.num] = float(items[key])
    return steps


def exit_codes(folder: Path) -> list[int]:
    return [record.exit.exit_code for record in records(folder) if record.HasField("exit")]


def runs(output_folder: str) -> list[Path]:
    """Of all that began there, oldest first, once W&B's own process has written them down."""
    folders = list(Path(output_folder, "wandb").glob("offline-run-*"))
    end = time.monotonic() + 120
    while not all(map(exit_codes, folders)):
        assert time.monotonic() < end, "a run is not finished"
        time.sleep(0.1)
    return sorted(folders, key=lambda folder: begun(folder).start_time.ToNanoseconds())


def begun(folder: Path) -> RunRecord:
    """Its start; the folder's name has whole seconds only, and "-1" after it for a second run within one."""
    return next(record.run for record in records(folder) if record.HasField("run"))


@pytest.mark.end_to_end
def test_a_training_has_one_run(make_trainer: MakeTrainer, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With W&B itself: stopped, gone on with, validated again; then another training in the same folder."""

    def validate(trainer: nnUNetTrainer, save_probabilities: bool = False) -> None:
        trainer.logger.log_summary("final_val/foreground_dice", 0.625)

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validate)
    trainer = make_trainer(OfKnownDice)
    assert wandb.run is None, "a trainer is no training"
    trainer.stop_in = 3
    with pytest.raises(SystemExit):
        trainer.run_training()
    assert wandb.run is None
    (stopped,) = runs(trainer.output_folder)
    identifier = begun(stopped).run_id
    assert list(history(stopped, "ema_fg_dice").values()) == pytest.approx(AVERAGES[:3])
    assert history(stopped, "mean_fg_dice") == history(stopped, "ema_fg_dice")
    assert exit_codes(stopped) == [75]
    assert any(record.HasField("preempting") for record in records(stopped))

    for name, stage in (("checkpoint_latest.pth", "run_training"), ("checkpoint_final.pth", "")):
        resumed = make_trainer(OfKnownDice)
        resumed.load_checkpoint(str(Path(trainer.output_folder, name)))
        if stage:
            resumed.run_training()
        resumed.perform_actual_validation()
        assert wandb.run is None
    _, gone_on, validated = runs(trainer.output_folder)
    assert [begun(path).run_id for path in (gone_on, validated)] == [identifier] * 2
    assert history(gone_on, "ema_fg_dice") == {3: pytest.approx(STAGE2)}
    assert set(history(stopped, "lrs")) == {0, 1, 2}, "of the epoch that was broken off nothing, W&B would keep it"
    assert set(history(gone_on, "lrs")) == {3}
    for folder in (gone_on, validated):
        assert exit_codes(folder) == [0]
        summary = {item.key: item.value_json for r in records(folder) for item in r.summary.update}
        assert summary["final_val/foreground_dice"] == "0.625"

    anew = make_trainer(OfKnownDice)
    anew.run_training()
    anew.logger.end_run()
    assert len({begun(path).run_id for path in Path(trainer.output_folder).rglob("offline-run-*")}) == 2
    assert stopped.name in {path.name for path in Path(trainer.output_folder).rglob("offline-run-*")}, (
        "nothing is deleted"
    )


class FailingRun:
    """A run that W&B loses in mid-training."""

    def __init__(self, fails: bool = True) -> None:
        self.config: dict = {}
        self.summary: dict = {}
        self.step, self.logged = 0, 0
        self.ended: list[object] = []

    def log(self, values: dict, step: int) -> None:
        self.logged += 1
        if self.logged > 5:
            raise ConnectionError("the service\nis gone")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_wandb_does_not_end_a_training(
    make_trainer: MakeTrainer, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = FailingRun(), []
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings) or run)
    trainer = make_trainer(OfKnownDice)
    trainer.run_training()
    text = Path(trainer.log_file).read_text()
    assert text.count("WARNING: W&B failed (ConnectionError: the service is gone): nothing more is logged there.") == 1
    assert run.logged == 6
    assert run.config["hparas"]["num_epochs"] == 4
    assert run.config["configuration"] == "3d_fullres"
    assert len(asked) == 1


def test_wandb_that_does_not_begin(make_trainer: MakeTrainer, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"^W&B does not begin \(UsageError: api_key not .* \(no-tty\)\).*=offline"):
        make_trainer(OfKnownDice).run_training()


def test_settings_of_wandb(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for off in ("0", "False", "false"):
        monkeypatch.setenv("nnUNet_wandb_enabled", off)
        assert not wandb_is_wanted()
    monkeypatch.setenv("nnUNet_wandb_enabled", "yes")
    with pytest.raises(ValueError, match=r"^nnUNet_wandb_enabled is 'yes': set it to 1"):
        make_trainer(nnUNetTrainerQuick)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setattr(nnunet_logger, "wandb", None)
    with pytest.raises(ValueError, match="W&B is not installed: pip install wandb"):
        make_trainer(nnUNetTrainerQuick)
    assert not (tmp_path / "results").exists()
