"""A training folder belongs to one training: what is taken from it, what is moved aside, what a failed start leaves."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunetv2_dinomed3d.folder_lock import LOCK, FolderInUseError
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.identity import RECORD, ForeignCheckpointError, read_record
from nnunetv2_dinomed3d.trainers.harness.training_folder import TrainingFolder
from tests.test_checkpoint_files import truncate
from tests.test_folder_lock import living, of_process, write  # noqa: F401 - a fixture
from tests.test_resume import as_older_versions_wrote
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


class Other(nnUNetTrainerSeeded):
    """A trainer of another name."""


def stop(make_trainer: MakeTrainer, before: int) -> Path:
    """A training that was stopped; its folder."""
    trainer = make_trainer(nnUNetTrainerSeeded)
    trainer.stop_before = before
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    return Path(trainer.output_folder)


def go_on(make_trainer: MakeTrainer, **start: object) -> nnUNetTrainerDINOMed3D:
    """What nnUNetv2_train --c does before it trains."""
    trainer = make_trainer(nnUNetTrainerSeeded, **start)
    maybe_load_checkpoint(trainer, True, False, None)
    return trainer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- what another training left ----


@pytest.mark.end_to_end
def test_a_fresh_start_moves_a_finished_training_aside_and_is_the_one_that_goes_on(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer
) -> None:
    """nnU-Net's --c prefers checkpoint_final.pth, and --val_best takes the best there is: neither is the old one's."""
    folder = Path(trained.output_folder)
    trained.perform_actual_validation()
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "notes.txt"}
    old = read_record(folder)
    stop(make_trainer, before=1)
    (aside,) = folder.glob("previous_*")
    for name, content in before.items():
        assert (aside / name).read_bytes() == content, name
    assert (aside / "validation" / "summary.json").is_file()
    assert {path.name for path in folder.glob("*.pth")} == {"checkpoint_latest.pth", STAGE1_BEST}
    assert (folder / "notes.txt").is_file()
    record = read_record(folder)
    assert old
    assert record
    assert record["id"] != old["id"]
    resumed = go_on(make_trainer)
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert resumed.current_epoch == 4
    assert aside.name in next(
        path.read_text() for path in folder.glob("training_log*") if aside.name in path.read_text()
    )


def test_a_start_that_fails_moves_nothing(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(self: object) -> None:
        raise ValueError("bad data")

    folder = Path(trained.output_folder)
    before = names(folder)
    monkeypatch.setattr(nnUNetTrainerDINOMed3D, "_check_cases", bad)
    with pytest.raises(ValueError, match="bad data"):
        make_trainer(nnUNetTrainerSeeded).run_training()
    assert {name for name in names(folder) - before if not name.startswith("training_log")} == set()
    assert before - names(folder) <= {LOCK}


def test_a_kill_while_files_are_moved_leaves_nothing_that_is_taken(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    folder = Path(trained.output_folder)
    rename = os.rename

    def die(source: str | Path, target: str | Path) -> None:
        if "checkpoint_final" in str(source):
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", die)
    with pytest.raises(Killed):
        make_trainer(nnUNetTrainerSeeded).on_train_start()
    monkeypatch.setattr(os, "rename", rename)
    assert (folder / "checkpoint_final.pth").is_file()
    with pytest.raises(ForeignCheckpointError, match=r"final\.pth is of the training that began .* this folder of the"):
        go_on(make_trainer)


def foreign(path: Path, how: str) -> None:
    """Make a checkpoint one of another data set, fold, trainer, plans or training."""
    checkpoint = torch.load(path, weights_only=False)
    args = checkpoint["init_args"]
    if how == "data set":
        args["plans"]["dataset_name"] = "Dataset902_Other"
    elif how == "fold":
        args["fold"] = 3
    elif how == "plans":
        args["plans"]["configurations"]["3d_fullres"]["spacing"] = [9.0, 1.0, 1.0]
    elif how == "labels":
        args["dataset_json"]["labels"] = {"background": 0, "another": 1}
    elif how == "trainer":
        checkpoint["trainer_name"] = "nnUNetTrainerAnother"
    else:
        args["training"]["id"] = "of another training"
    torch.save(checkpoint, path)


HOW = ["data set", "fold", "plans", "labels", "trainer", "training"]


def restored(folder: Path, good: Path) -> Path:
    """The folder as it was when it was copied."""
    shutil.rmtree(folder)
    shutil.copytree(good, folder)
    return folder


def spoil(path: Path, how: str) -> None:
    if how == "damaged":
        truncate(path)
    elif how == "missing":
        path.unlink()
    else:
        foreign(path, how)


def test_a_checkpoint_of_another_training_is_not_gone_on_with(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """And is named, with what it is of."""
    folder = stop(make_trainer, before=1)
    good = shutil.copytree(folder, tmp_path / "good")
    expected = {"data set": "Dataset902_Other", "fold": "fold 3", "trainer": "nnUNetTrainerAnother"}
    for how in HOW:
        spoil(restored(folder, good) / "checkpoint_latest.pth", how)
        with pytest.raises(ForeignCheckpointError, match=r"checkpoint_latest\.pth is of") as error:
            go_on(make_trainer)
        assert "\n" not in str(error.value)
        assert expected.get(how, "of") in str(error.value)


def test_stage_1s_best_that_is_not_this_ones_is_told_as_training_goes_on(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Not at the switch, hours later; and the advice works."""
    folder = stop(make_trainer, before=2)
    good = shutil.copytree(folder, tmp_path / "good")
    best = folder / STAGE1_BEST
    for how in [*HOW, "damaged", "missing"]:
        restored(folder, good)
        spoil(best, how)
        with pytest.raises(
            (ValueError, FileNotFoundError), match=rf"cp checkpoint_latest.pth {STAGE1_BEST}\) and go on"
        ):
            go_on(make_trainer).on_train_start()
    shutil.copy(folder / "checkpoint_latest.pth", best)
    go_on(make_trainer).on_train_start()


def test_stage_2s_best_that_is_not_this_ones_is_written_anew(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnUNetTrainerSeeded, "stage2_epochs", 3)
    folder = stop(make_trainer, before=4)
    good = shutil.copytree(folder, tmp_path / "good")
    best = folder / "checkpoint_best.pth"
    for how in ("fold", "training", "damaged", "missing"):
        restored(folder, good)
        spoil(best, how)
        content = best.read_bytes() if best.exists() else b""
        resumed = go_on(make_trainer)
        resumed.on_train_start()
        assert "WARNING" in Path(resumed.log_file).read_text()
        assert torch.load(best, weights_only=False)["current_epoch"] == 4
        if how in HOW:
            (aside,) = folder.glob("previous_*/checkpoint_best.pth")
            assert aside.read_bytes() == content


def test_trainings_of_older_versions_go_on(make_trainer: MakeTrainer) -> None:
    """Their checkpoints say nothing of the training; neither does the folder."""
    folder = stop(make_trainer, before=1)
    for path in folder.glob("*.pth"):
        torch.save(as_older_versions_wrote(path), path)
    (folder / RECORD).unlink()
    resumed = go_on(make_trainer)
    resumed.stop_before = 2
    with pytest.raises(KeyboardInterrupt):
        resumed.run_training()
    again = go_on(make_trainer)
    again.run_training()
    assert again.current_epoch == 4
    assert not list(folder.glob("previous_*"))


# ---- starts that fail ----


def tree(results: Path) -> list[Path]:
    return sorted(results.rglob("*"))


@pytest.mark.parametrize("where", ["constructor", "weights", "data", "loaders"])
def test_a_failed_start_leaves_nothing(
    make_trainer: MakeTrainer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no start")

    name = {
        "constructor": "print_to_log_file",
        "weights": "load_start_weights",
        "data": "_check_cases",
        "loaders": "get_dataloaders",
    }
    monkeypatch.setattr(nnUNetTrainerDINOMed3D, name[where], fail)
    with pytest.raises(ValueError, match="no start"):
        make_trainer(nnUNetTrainerQuick).run_training()
    assert tree(tmp_path / "results") in ([], [tmp_path / "results"])


def test_nnunets_own_refusal_leaves_nothing_either(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """--val of a training that is not there fails where no hook of ours is called."""
    with pytest.raises(RuntimeError, match="not finished yet"):
        maybe_load_checkpoint(make_trainer(nnUNetTrainerQuick), False, True, None)
    gc.collect()
    assert not list(tmp_path.glob("results/*"))


# ---- the lock ----


def test_two_trainings_in_one_folder(
    make_trainer: MakeTrainer,
    living,  # noqa: F811
) -> None:
    """The second one stops at once, with --c and --val too, and leaves no trace."""
    folder = stop(make_trainer, before=1)
    gc.collect()
    write(folder, of_process(living.pid))
    before = names(folder)
    for _ in range(2):
        with pytest.raises(FolderInUseError, match=rf"process {living.pid} on "):
            make_trainer(nnUNetTrainerSeeded)
    assert names(folder) == before
    assert read_record(folder) is not None


@pytest.mark.end_to_end
def test_the_lock_is_given_back_at_every_end(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(nnUNetTrainerSeeded)
    lock = Path(trainer.output_folder) / LOCK
    assert lock.is_file()
    trainer.stop_before = 1
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert not lock.exists()
    resumed = go_on(make_trainer)
    resumed.run_training()
    assert lock.is_file(), "nnU-Net validates next, in the same folder"
    resumed.perform_actual_validation()
    assert not lock.exists()


def test_half_written_files_of_the_dead_are_removed(make_trainer: MakeTrainer) -> None:
    folder = stop(make_trainer, before=1)
    (folder / "checkpoint_latest.pth.partial").write_bytes(b"half")
    go_on(make_trainer)
    assert not list(folder.glob("*.partial"))


def test_a_folder_is_not_made_by_one_that_may_not_have_it(tmp_path: Path, living) -> None:  # noqa: F811
    write(tmp_path, of_process(living.pid))
    with pytest.raises(FolderInUseError):
        TrainingFolder(tmp_path)
    assert names(tmp_path) == {LOCK}
