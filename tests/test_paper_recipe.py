"""`_paper`: passes over the data as epochs, the same after a stop, on the paper's clip alone."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.planning.training_memory import TrainingMemory, name_of_plans
from nnunetv2_dinomed3d.trainers.dinomed3d.passes import Passes, widened
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.paper import nnUNetTrainerDINOMed3D_paper
from nnunetv2_dinomed3d.trainers.harness.loader_workers import stop_workers
from nnunetv2_dinomed3d.trainers.harness.randomness import seed_all
from nnunetv2_dinomed3d.trainers.harness.whole_cases import WholeLoader, Window
from nnunetv2_dinomed3d.trainers.registry import BASE, trainer_class

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]

TRAINING_CASES, SLICES = 4, 9


class OnSmallClips(nnUNetTrainerDINOMed3D_paper):
    """On the small data set, of 9 x 30 x 26 voxels a case: clips of 5 slices."""

    variant = "nano"
    stage1_epochs = stage2_epochs = 1
    stage1_lr = stage2_lr = 1e-3
    slab_batch_size = 10
    save_latest_every = 1
    fixed_patch = (5, 32, 32)
    stop_in: tuple[int, int] | None = None

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")) -> None:  # noqa: B008
        plans["configurations"]["3d_fullres"]["patch_size"] = list(self.fixed_patch)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.seen: list[tuple[int, list[str]]] = []

    def train_step(self, batch: dict) -> dict:
        step = self.current_epoch, list(batch["keys"])
        if self.stop_in == (self.current_epoch, len([epoch for epoch, _ in self.seen if epoch == self.current_epoch])):
            os.kill(os.getpid(), signal.SIGTERM)  # it comes before the step, which is not made
        output = super().train_step(batch)
        self.seen.append(step)
        return output


# ---- passes ----


def windows(number: int) -> list[Window]:
    return [Window("a", (i, 0, 0)) for i in range(number)]


def drawn(passes: Passes, of_pass: int) -> list[Window]:
    return [w for i in range(passes.batches) for w in passes.batch(of_pass * passes.batches + i)]


def test_a_pass_has_every_window_once_in_an_order_of_its_own() -> None:
    passes = Passes(windows(20), 4, 0, 1, seed=3)
    assert passes.batches == 5
    first, second = drawn(passes, 0), drawn(passes, 1)
    assert sorted(w.start for w in first) == sorted(w.start for w in second) == [w.start for w in windows(20)]
    assert first != second
    assert first == drawn(Passes(windows(20), 4, 0, 1, seed=3), 0)
    assert first != drawn(Passes(windows(20), 4, 0, 1, seed=4), 0)


@pytest.mark.parametrize(("number", "ranks"), [(21, 1), (21, 2), (3, 2), (1, 1)])
def test_ranks_share_a_pass_and_the_last_batch_is_filled_up(number: int, ranks: int) -> None:
    """Equal numbers of equal batches, else a rank would wait for another."""
    shares = [Passes(windows(number), 4, rank, ranks, seed=3) for rank in range(ranks)]
    (batches,) = {share.batches for share in shares}
    assert batches == -(-number // (4 * ranks))
    times = Counter(w.start for share in shares for w in drawn(share, 2))
    assert times.total() == batches * 4 * ranks
    assert len(times) == number
    assert max(times.values()) - min(times.values()) <= 1


def test_what_is_loaded_has_the_windows_middle() -> None:
    (window,) = widened([Window("a", (3, -1, 5))], (7, 32, 32), (7, 52, 49))
    assert window.start == (3, -1 - 10, 5 - 8)


# ---- the trainer ----


def begin(trainer: nnUNetTrainerDINOMed3D, stage: Stage) -> None:
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.begin_stage(stage)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()


@pytest.fixture
def started(make_trainer: MakeTrainer) -> Iterator[Callable[[Stage], nnUNetTrainerDINOMed3D]]:
    """A trainer with the loaders of a stage."""
    trainer = make_trainer(OnSmallClips)

    def start(stage: Stage) -> nnUNetTrainerDINOMed3D:
        begin(trainer, stage)
        return trainer

    yield start
    stop_workers(trainer.dataloader_train)
    stop_workers(trainer.dataloader_val)


@pytest.mark.parametrize("processes", ["0", "3"])
@pytest.mark.parametrize("stage", [1, 2])
def test_an_epoch_is_a_pass(
    started: Callable[[Stage], nnUNetTrainerDINOMed3D], monkeypatch: pytest.MonkeyPatch, stage: Stage, processes: str
) -> None:
    """Stage 1: every slice of every training case; stage 2: as many clips as cover it. However many workers."""
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    trainer = started(stage)
    rows, shape = (10, (3, 32, 32)) if stage == 1 else (1, (5, 32, 32))
    per_case = SLICES if stage == 1 else 2
    steps = -(-TRAINING_CASES * per_case // rows)
    assert (trainer.batch_size, trainer.num_iterations_per_epoch) == (rows, steps)
    assert f"{TRAINING_CASES * per_case} {'slabs' if stage == 1 else 'clips'}" in Path(trainer.log_file).read_text()
    cases, _ = trainer.do_split()
    assert trainer.dataloader_train
    for epoch in range(2):
        batches = [next(trainer.dataloader_train) for _ in range(steps)]
        assert [batch["number"] for batch in batches] == [epoch * steps + i for i in range(steps)]
        assert all(batch["data"].shape == (rows, 1, *shape) for batch in batches)
        keys = [key for batch in batches for key in batch["keys"]][: TRAINING_CASES * per_case]
        assert Counter(keys) == dict.fromkeys(cases, per_case)
    assert isinstance(
        getattr(trainer.dataloader_val, "data_loader", None) or trainer.dataloader_val.generator, WholeLoader
    )


@pytest.mark.end_to_end
def test_goes_on_in_the_middle_of_a_pass_as_if_not_stopped(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To the bit, in both stages: what the pass has left, not what it has had."""
    monkeypatch.setenv("DINOMED3D_SEED", "7")
    whole = make_trainer(OnSmallClips)
    whole.run_training()
    for number, stop in enumerate([(0, 2), (1, 5)]):
        monkeypatch.setenv("DINOMED3D_SEED", "7")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / str(number)))
        stopped = make_trainer(OnSmallClips)
        stopped.stop_in = stop
        with pytest.raises(SystemExit):
            stopped.run_training()
        monkeypatch.delenv("DINOMED3D_SEED")
        resumed = make_trainer(OnSmallClips)
        seed_all(99)
        resumed.load_checkpoint(os.path.join(resumed.output_folder, "checkpoint_latest.pth"))
        resumed.run_training()
        assert stopped.seen + resumed.seen == whole.seen
        weights = whole.module.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in resumed.module.state_dict().items())


def test_other_plans_are_refused_with_the_command_that_makes_its_own(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """nnU-Net would predict on the plans' patch, whatever was trained."""
    with pytest.raises(
        ValueError,
        match=r"patch_size of 3d_fullres in nnUNetPlans is \[\d+, \d+, \d+\].*\[16, 512, 512\].*dinomed3d plan -d "
        r"Dataset901_Test -p nnUNetPlans -tr nnUNetTrainerDINOMed3D_S_paper; then.*-p nnUNetDINOMed3DPlans_paper",
    ):
        make_trainer(trainer_class(f"{BASE}_S_paper"))
    assert not list(tmp_path.rglob("*.pth"))
    assert not (tmp_path / "results").exists()


@pytest.mark.end_to_end
def test_it_is_planned_on_its_clip_with_a_batch_of_one(preprocessed: Path) -> None:
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    trainer = trainer_class(f"{BASE}_nano_paper")
    memory = TrainingMemory(trainer, plans, "3d_fullres", json.loads((preprocessed / "dataset.json").read_text()))
    choice = memory.choose(10**12)
    assert (choice.patch_size, choice.batch_size) == ((16, 512, 512), 1)
    assert choice.memory.keys() == {"stage 1", "stage 2"}
    with pytest.raises(ValueError, match=r"_nano_paper trains on patches of \[16, 512, 512\] alone, which takes"):
        memory.choose(10**6)
    assert name_of_plans(trainer) == "nnUNetDINOMed3DPlans_paper" != name_of_plans(nnUNetTrainerDINOMed3D)
