"""Validation over every slice: each once in an epoch, in the same order, on one rank or shared among several."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.loader_workers import stop_workers
from nnunetv2_dinomed3d.trainers.harness.whole_cases import Window, evenly, only_rows, starts_along, windows_of_case
from tests.trainers.quick_trainers import nnUNetTrainerSeeded

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


class Whole(nnUNetTrainerSeeded):
    whole_validation = True
    iterations_per_epoch = 100  # more batches than there are slices
    slab_batch_size = 4


@pytest.mark.parametrize(
    ("extent", "size", "starts"), [(10, 4, [0, 3, 6]), (8, 4, [0, 4]), (5, 5, [0]), (5, 8, [-1]), (5, 9, [-2])]
)
def test_starts_cover_an_axis(extent: int, size: int, starts: list[int]) -> None:
    assert starts_along(extent, size) == starts


def test_windows_of_slices_have_each_slice_in_the_middle() -> None:
    windows = windows_of_case("a", (3, 10, 5), (7, 4, 8), every_slice=True)
    assert [window.start[0] + 7 // 2 for window in windows] == [0] * 3 + [1] * 3 + [2] * 3
    assert {window.start[1:] for window in windows} == {(0, -1), (3, -1), (6, -1)}


def test_windows_of_a_volume_cover_it() -> None:
    seen = np.zeros((9, 10, 11), int)
    for window in windows_of_case("a", seen.shape, (4, 10, 6), every_slice=False):
        seen[
            tuple(slice(max(0, first), first + side) for first, side in zip(window.start, (4, 10, 6), strict=True))
        ] += 1
    assert seen.min() == 1


def test_what_is_too_much_is_thinned_evenly() -> None:
    windows = [Window("a", (i, 0, 0)) for i in range(100)]
    assert [window.start[0] for window in evenly(windows, 4)] == [0, 25, 50, 75]
    assert evenly(windows, 100) == windows


@pytest.mark.parametrize("regions", [False, True])
def test_rows_that_do_not_count_are_background(regions: bool) -> None:
    """Else they would be false positives of an epoch's Dice."""
    network = torch.nn.Conv3d(1, 3, 1)
    x, target = torch.randn(4, 1, 2, 3, 3), torch.ones(4, 1, 2, 3, 3)
    plain = network(x)
    with torch.no_grad(), only_rows(network, target, 3, regions):
        logits = network(x)
    assert torch.equal(logits[:3], plain[:3])
    foreground = logits.sigmoid() > 0.5 if regions else logits.argmax(1) > 0
    assert not foreground[3:].any()
    assert target[:3].all()
    assert not target[3:].any()
    assert torch.equal(network(x), plain)


def counts(trainer: nnUNetTrainerDINOMed3D) -> tuple[np.ndarray, list[str]]:
    """True positives, false positives and false negatives of an epoch's validation, and its cases."""
    trainer.network.eval()
    total, cases = np.zeros(3), []
    assert trainer.dataloader_val
    with torch.no_grad():
        for _ in range(trainer.num_val_iterations_per_epoch):
            batch = next(trainer.dataloader_val)
            cases += batch["keys"][: batch["real"]]
            output = trainer.validation_step(batch)
            total += [output[name].sum() for name in ("tp_hard", "fp_hard", "fn_hard")]
    return total, cases


def stage(trainer: nnUNetTrainerDINOMed3D, number: Stage) -> None:
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.begin_stage(number)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()


def test_stage_1_is_validated_on_every_slice_once(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides of the best epoch is the Dice of whole cases, equal in each epoch of the same weights."""
    trainer = make_trainer(Whole)
    # a patch as large as the cases: one window a slice
    trainer.configuration_manager.configuration["patch_size"] = [10, 32, 32]
    stage(trainer, 1)
    torch.nn.init.normal_(trainer.module.get_parameter("proxy_head.seg_layers.weight"))
    _, dataset = trainer.get_tr_and_val_datasets()
    slices = sum(dataset.load_case(case)[0].shape[1] for case in dataset.identifiers)
    got, cases = counts(trainer)
    assert len(cases) == slices
    assert slices % trainer.batch_size, "the last batch has rows that do not count"
    again, _ = counts(trainer)
    assert np.array_equal(got, again)
    total = got[0] + got[2]
    assert total == sum((np.asarray(dataset.load_case(case)[1][:]) == 1).sum() for case in dataset.identifiers)

    # two ranks add up to the same
    added = np.zeros(3)
    shared: list[str] = []
    for rank in range(2):
        monkeypatch.setattr(trainer, "rank_and_ranks", lambda rank=rank: (rank, 2))
        trainer.dataloader_val = trainer._whole_dataloader()
        one, part = counts(trainer)
        added, shared = added + one, shared + part
    assert np.array_equal(added, got)
    assert sorted(shared) == sorted(cases)


@pytest.mark.parametrize("number", [1, 2])
def test_a_worker_process_gives_the_windows_in_turn(
    number: Stage, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many nnU-Net is allowed: several would not each begin where another stopped."""
    epochs = []
    for processes in ("0", "3"):
        monkeypatch.setenv("nnUNet_n_proc_DA", processes)
        trainer = make_trainer(Whole)
        stage(trainer, number)
        try:
            for _ in range(2):
                total, cases = counts(trainer)
                epochs.append((total.tolist(), sorted(cases)))
        finally:
            stop_workers(trainer.dataloader_train)
            stop_workers(trainer.dataloader_val)
    assert epochs == epochs[:1] * 4


def test_stage_2_is_validated_on_whole_cases(make_trainer: MakeTrainer) -> None:
    """Without the attribute it is on nnU-Net's random patches."""
    trainer = make_trainer(Whole)
    stage(trainer, 2)
    _, cases = counts(trainer)
    _, dataset = trainer.get_tr_and_val_datasets()
    assert set(cases) == set(dataset.identifiers)
    plain = make_trainer(nnUNetTrainerSeeded)
    stage(plain, 2)
    assert plain.dataloader_val
    assert "real" not in next(plain.dataloader_val)
    assert plain.num_val_iterations_per_epoch == plain.val_iterations_per_epoch


def test_it_costs_no_more_batches_than_training(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Whole, "iterations_per_epoch", 2)
    trainer = make_trainer(Whole)
    stage(trainer, 1)
    assert trainer.num_val_iterations_per_epoch == 2
