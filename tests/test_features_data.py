"""nnU-Net's kinds of data, from raw files through both stages to validation: channels, regions, ignore, axes, sizes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from tests.test_features_helpers import (
    BRIEF,
    Case,
    DataSet,
    brief_trainers,
    load,
    losses,
    make_dataset,
    make_it_answer,
    nested_boxes,
    predict,
    read_volume,
    train,
    write_volume,
)

pytestmark = pytest.mark.end_to_end


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What nnU-Net's loaders draw, in this process, is the same in every run."""
    np.random.seed(0)
    torch.manual_seed(0)


LABELS = {"background": 0, "box": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.fixture(scope="module", autouse=True)
def trainers(nnunet_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with brief_trainers(tmp_path_factory.mktemp("trainers")):
        yield


def finished(data: DataSet, trainer: str = BRIEF[1], configuration: str = "3d_fullres") -> None:
    """Both stages of fold 0 ended with finite numbers, and every validation case was written and scored."""
    fold = data.model(trainer, configuration) / "fold_0"
    numbers = losses(fold / "checkpoint_final.pth")
    assert len(numbers) == 4, "one training and one validation loss for each stage's epoch"
    assert np.isfinite(numbers).all()
    assert load(fold / "checkpoint_best_stage1.pth")["current_epoch"] == 1
    weights = load(fold / "checkpoint_final.pth")["network_weights"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    (prediction,) = (fold / "validation").glob("*.nii.gz")
    assert read_volume(prediction).shape == read_volume(data.raw / "labelsTr" / prediction.name).shape
    assert (fold / "validation" / "summary.json").is_file()


# ---- channels ----


@pytest.fixture(scope="module")
def channels(trainers: None) -> DataSet:
    """Two channels, the second one negated."""
    rng = np.random.default_rng(0)
    cases = [nested_boxes((7, 20, 18), rng, channels=2) for _ in range(5)]
    for image, _ in cases:
        image[1] *= -1
    data = make_dataset(911, cases, LABELS, channel_names={"0": "MRI", "1": "CT"})
    train(data.number, "3d_fullres", 0, *BRIEF)
    return data


def test_several_channels_train_in_both_stages(channels: DataSet) -> None:
    """A second sequence that is loaded but not learnt from would be lost without a word."""
    finished(channels)
    trainer = channels.trainer()
    batch = next(trainer.get_dataloaders()[1])["data"]
    assert batch.shape[:3] == (4, 2, 3)
    assert not torch.allclose(batch[:, 0], batch[:, 1])
    for checkpoint, name in (
        ("checkpoint_best_stage1.pth", "encoder.ice.conv.weight"),
        ("checkpoint_final.pth", "detail.scale_1.0.weight"),
    ):
        content = load(channels.model() / "fold_0" / checkpoint)
        shape = content["network_weights"][name].shape
        assert shape[1] == 2
        (moments,) = (s for s in content["optimizer_state"]["state"].values() if s["exp_avg"].shape == shape)
        assert (moments["exp_avg_sq"].sum(dim=(0, 2, 3, 4)) > 0).all(), f"a channel of {name} got no gradient"


def test_every_channel_counts_in_prediction(channels: DataSet, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image, _ = nested_boxes((7, 20, 18), rng, channels=2)
    for folder, second in (("with", image[1]), ("without", rng.normal(0, 1, image[1].shape))):
        for channel, volume in enumerate((image[0], second)):
            write_volume(volume.astype(np.float32), tmp_path / folder / f"x_{channel:04d}.nii.gz", (1, 1, 3))
        predict(channels.number, "3d_fullres", tmp_path / folder, tmp_path / f"{folder}_out", *BRIEF, "-f", 0)
    with_it, without = (np.load(tmp_path / f"{name}_out" / "x.npz")["probabilities"] for name in ("with", "without"))
    assert np.abs(with_it - without).max() > 1e-4


# ---- regions ----


@pytest.fixture(scope="module")
def regions(trainers: None) -> DataSet:
    rng = np.random.default_rng(0)
    cases = [nested_boxes((7, 20, 18), rng) for _ in range(5)]
    data = make_dataset(912, cases, REGIONS, regions_class_order=[1, 2])
    train(data.number, "3d_fullres", 0, *BRIEF)
    return data


@pytest.mark.parametrize("stage", [1, 2])
def test_overlapping_regions_are_targets_of_their_own(regions: DataSet, stage: Stage) -> None:
    """As classes, the core would be cut out of the whole, and the loss would let them compete."""
    finished(regions)
    trainer = regions.trainer()
    trainer.begin_stage(stage)
    batch = next(trainer.get_dataloaders()[1])
    whole, core = batch["target"][:, 0] > 0, batch["target"][:, 1] > 0
    assert batch["target"].shape[1] == 2
    assert core.any()
    assert (whole & core == core).all()
    assert trainer.module(batch["data"]).shape == batch["target"].shape, "one head a region, none for the background"
    assert isinstance(trainer.loss, DC_and_BCE_loss)
    assert (trainer.loss.weight_ce, trainer.loss.weight_dice) == (0.2, 0.8)


@pytest.mark.parametrize(("logits", "label"), [((5.0, -5.0), 1), ((5.0, 5.0), 2), ((-5.0, 5.0), 2), ((-5.0, -5.0), 0)])
def test_regions_are_written_in_their_order(regions: DataSet, logits: tuple[float, float], label: int) -> None:
    """A whole and a core that are both there are the core; with a softmax neither 5, 5 nor -5, -5 could be said."""
    fold = regions.model() / "fold_0"
    make_it_answer(fold / "checkpoint_final.pth", logits)
    train(regions.number, "3d_fullres", 0, *BRIEF, "--val", "--npz")
    (prediction,) = (fold / "validation").glob("*.nii.gz")
    assert np.unique(read_volume(prediction)).tolist() == [label]
    (probabilities,) = (np.load(file)["probabilities"] for file in (fold / "validation").glob("*.npz"))
    assert len(probabilities) == 2
    np.testing.assert_allclose(probabilities[:, 0, 0, 0], 1 / (1 + np.exp(-np.array(logits))), rtol=1e-3)


# ---- ignore label ----


def sparse(shape: tuple[int, int, int], rng: np.random.Generator, annotated: slice) -> Case:
    """Annotated are the upper rows of some slices; the rest is 3."""
    image, labels = nested_boxes(shape, rng)
    keep = np.zeros(shape, bool)
    keep[annotated, : shape[1] // 2 + 1] = True
    return image, np.where(keep, labels, 3)


@pytest.fixture(scope="module", params=[(913, LABELS), (914, REGIONS)], ids=["labels", "regions"])
def sparsely_annotated(trainers: None, request: pytest.FixtureRequest) -> DataSet:
    """Half a slice in each case is annotated, in one of them nothing."""
    rng = np.random.default_rng(0)
    number, labels = request.param
    annotated = [slice(3, 4), slice(2, 3), slice(0), slice(3, 4), slice(4, 5)]
    cases = [sparse((7, 20, 18), rng, part) for part in annotated]
    order: dict[str, Any] = {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    return make_dataset(number, cases, {**labels, "ignore": 3}, **order)


def test_sparse_annotation_trains(sparsely_annotated: DataSet) -> None:
    """The loss of a batch without an annotated voxel must not be 0 / 0 (fold 0 trains on case_2, which has none)."""
    train(sparsely_annotated.number, "3d_fullres", 0, *BRIEF)
    finished(sparsely_annotated)
    heads = load(sparsely_annotated.model() / "fold_0" / "checkpoint_final.pth")["network_weights"]
    expected = 2 if sparsely_annotated.number == 914 else 3
    assert len(heads["decoder.seg_layers.bias"]) == len(heads["proxy_head.seg_layers.bias"]) == expected


@pytest.mark.parametrize("stage", [1, 2])
def test_voxels_to_be_ignored_count_for_nothing(sparsely_annotated: DataSet, stage: Stage) -> None:
    """Learning "background" or a fourth class where nobody looked would ruin a sparse training."""
    trainer = sparsely_annotated.trainer()
    trainer.begin_stage(stage)
    batch = next(trainer.get_dataloaders()[1])
    target = batch["target"]
    ignored = target == 3 if not trainer.label_manager.has_regions else target[:, -1:] > 0
    assert ignored.any()
    logits = trainer.module(batch["data"])
    loss = trainer.loss(logits, target)
    shown = trainer.loss(torch.where(ignored, torch.randn_like(logits) * 9, logits), target)
    torch.testing.assert_close(loss, shown)
    assert not torch.allclose(loss, trainer.loss(torch.randn_like(logits) * 9, target))


@pytest.mark.parametrize("stage", [1, 2])
def test_a_batch_without_annotation_trains_on(sparsely_annotated: DataSet, stage: Stage) -> None:
    trainer = sparsely_annotated.trainer()
    trainer.begin_stage(stage)
    trainer.module.train()
    batch = next(trainer.get_dataloaders()[0])
    if trainer.label_manager.has_regions:
        batch["target"][:] = 0
        batch["target"][:, -1] = 1
    else:
        batch["target"][:] = 3
    before = [parameter.clone() for parameter in trainer.optimizer.param_groups[0]["params"]]
    for _ in range(2):
        assert np.isfinite(trainer.train_step(batch)["loss"])
        assert np.isfinite(trainer.validation_step({**batch, "target": batch["target"].clone()})["loss"])
    for old, new in zip(before, trainer.optimizer.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-3)  # weight decay at most


def test_slabs_are_drawn_where_there_is_annotation(sparsely_annotated: DataSet) -> None:
    """Centre slices from anywhere would leave six of seven slabs without a label."""
    trainer = sparsely_annotated.trainer()
    loader = trainer.get_dataloaders()[0]
    annotated = []
    for _ in range(10):
        batch = next(loader)
        target = batch["target"]
        ignored = target[:, -1] > 0 if trainer.label_manager.has_regions else target[:, 0] == 3
        seen = (~ignored).flatten(1).any(dim=1).tolist()
        annotated += [see for see, case in zip(seen, batch["keys"], strict=True) if case != "case_2"]
    assert len(annotated) > 10
    assert np.mean(annotated) > 0.9


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        pytest.param([None] * 6, (2, 5), id="never"),
        pytest.param([None, 0.5, 0.2, 0.5, None, 0.9], (1, 5), id="now and then"),
    ],
)
def test_epochs_without_a_voxel_to_score(
    channels: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dice: list[float | None], best: tuple[int, int]
) -> None:
    """The Dice of validation batches without annotation is NaN; stage 2 must not start from epoch 0 for that."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    trainer = channels.trainer(trainer="nnUNetTrainerBriefLonger")

    def validation_step(batch: dict) -> dict:
        value = dice[trainer.current_epoch]
        counts = (0, 0) if value is None else (value, 1 - value)  # as many false positives as negatives
        tp, wrong = (np.full(2, count) for count in counts)
        return {"loss": np.zeros(()), "tp_hard": tp, "fp_hard": wrong, "fn_hard": wrong}

    monkeypatch.setattr(trainer, "validation_step", validation_step)
    trainer.run_training()
    fold = Path(trainer.output_folder)
    found = [load(fold / f"{name}.pth")["current_epoch"] - 1 for name in ("checkpoint_best_stage1", "checkpoint_best")]
    assert found == list(best)
    trainer.load_checkpoint(str(fold / "checkpoint_final.pth"))
    assert trainer._best_ema == (None if dice[0] is dice[1] else pytest.approx(0.54))


# ---- axes ----


def test_slices_along_the_last_axis_of_the_file(trainers: None) -> None:
    """Sagittal volumes: slabs must be of neighbouring slices, not of columns, and predictions lie as the file does."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(5):
        image, labels = nested_boxes((22, 18, 7), rng)
        image = image * 0.01 + np.arange(7) ** 2  # every slice has a brightness of its own
        cases.append((image, labels))
    data = make_dataset(915, cases, LABELS, spacing=(3.0, 1.0, 1.0))
    assert data.plans["transpose_forward"] == [2, 0, 1]
    train(data.number, "3d_fullres", 0, *BRIEF)
    finished(data)
    slabs = next(data.trainer().get_dataloaders()[1])["data"]
    inside = slabs[:, 0, :, 6:-6, 6:-6]
    assert (inside.std(dim=(2, 3)) < 0.05).all(), "a slice of a slab is no slice of the volume"
    assert (inside.mean(dim=(2, 3)).diff(dim=1).abs() > 0.05).all(), "a slab's slices are the same"
    (prediction,) = (data.model() / "fold_0" / "validation").glob("*.nii.gz")
    written, original = (sitk.ReadImage(str(f)) for f in (prediction, data.raw / "labelsTr" / prediction.name))
    assert written.GetSize() == original.GetSize() == (7, 18, 22)
    assert written.GetSpacing() == original.GetSpacing()


# ---- unusual sizes ----


def apply_always(transform: BasicTransform) -> None:
    """Leave nothing of an augmentation to chance."""
    for part in getattr(transform, "transforms", []):
        apply_always(part)
    if isinstance(transform, RandomTransform):
        transform.apply_probability = transform.transform.p_per_channel = 1
        if isinstance(transform.transform, GaussianBlurTransform):
            transform.transform.blur_sigma = max(transform.transform.blur_sigma)


@pytest.mark.parametrize(
    ("number", "shape", "patch", "trainer"),
    [
        pytest.param(916, (1, 24, 20), (1, 24, 20), "nnUNetTrainerBrief", id="one slice"),
        pytest.param(917, (6, 12, 9), (6, 12, 9), "nnUNetTrainerBrief", id="in plane under 16"),
        pytest.param(918, (3, 20, 18), (3, 20, 18), "nnUNetTrainerBriefK5", id="K deeper than a case"),
        pytest.param(919, (9, 27, 23), (7, 23, 19), "nnUNetTrainerBrief", id="divides by nothing"),
    ],
)
def test_unusual_but_sound(
    trainers: None, number: int, shape: tuple[int, int, int], patch: tuple[int, int, int], trainer: str
) -> None:
    """Trains and validates; and no augmentation of either stage fails."""
    rng = np.random.default_rng(0)
    by_hand = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "inherits_from": "2d",
        "patch_size": patch,
        "spacing": [3.0, 1.0, 1.0],
        "batch_size": 2,
        "batch_dice": False,
    }
    data = make_dataset(
        number, [nested_boxes(shape, rng) for _ in range(5)], LABELS, configurations={"3d_fullres": by_hand}
    )
    train(number, "3d_fullres", 0, "-tr", trainer)
    finished(data, trainer)
    made = data.trainer(trainer=trainer)
    for stage in (1, 2):
        made.begin_stage(stage)
        loader: Any = made.get_dataloaders()[0]
        assert next(loader)["data"].shape[2:] == ((made.slab_depth, *patch[1:]) if stage == 1 else patch)
        apply_always(loader.data_loader.transforms)
        assert next(loader)["data"].isfinite().all()
