"""Slabs of stage 1: every slice is a centre, and the target is that slice whatever the augmentation."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import CropSlab, loaded_depth, slab_loader

LABELS = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)


class NumberedSlices:
    """A data set of one case in nnU-Net's form; image and label of slice d are d + 1 everywhere."""

    identifiers = ("case",)

    def __init__(self, depth: int, in_plane: int = 20) -> None:
        number = np.arange(1, depth + 1)[:, None, None]
        self.volume = np.broadcast_to(number, (depth, in_plane, in_plane))[None].astype(np.float32)
        z, y, x = np.nonzero(self.volume[0] > 0)
        self.locations = {1: np.stack([np.zeros_like(z), z, y, x], axis=1)}

    def load_case(self, identifier: str):
        return self.volume, self.volume.astype(np.int16), None, {"class_locations": self.locations}


def loader(depth: int, slab_depth: int, transforms, oversample: float = 0.33, batch_size: int = 8):
    loaded = loaded_depth(slab_depth)
    return slab_loader(
        NumberedSlices(depth),
        [loaded, 24, 24],
        [loaded, 16, 16],
        batch_size=batch_size,
        label_manager=LABELS,
        transforms=transforms,
        slab_depth=slab_depth,
        oversample_foreground_percent=oversample,
        probabilistic_oversampling=False,
    )


def nnunet_transforms(slab_depth: int, mirror_axes=(0, 1, 2)):
    return nnUNetTrainer.get_training_transforms(
        [loaded_depth(slab_depth), 16, 16], (-np.pi, np.pi), None, mirror_axes, True, use_mask_for_norm=[False]
    )


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
def test_loaded_patch_has_a_middle_and_a_margin(slab_depth: int) -> None:
    depth = loaded_depth(slab_depth)
    assert depth % 2 == 1
    assert depth >= slab_depth + 4


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("oversample", [0.0, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 9])  # also cases shallower than the slab
def test_every_slice_is_a_centre_and_nothing_else_is(slab_depth: int, oversample: float, depth: int) -> None:
    np.random.seed(0)
    batches = loader(depth, slab_depth, ComposeTransforms([]), oversample, batch_size=40 * depth)
    centres = Counter(int(target.max()) for target in next(batches)["target"])
    assert sorted(centres) == list(range(1, depth + 1)), "0 would be a slice outside the volume"
    assert min(centres.values()) > 15, "boundary slices as often as the others"


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
def test_a_slab_holds_real_neighbours(slab_depth: int) -> None:
    np.random.seed(0)
    batch = next(loader(9, slab_depth, ComposeTransforms([])))
    assert batch["data"].shape == (8, 1, slab_depth, 24, 24)
    assert batch["target"].shape == (8, 1, 1, 24, 24)
    for data, target in zip(batch["data"], batch["target"], strict=True):
        centre = int(target.max())
        numbers = [int(data[0, k].max()) for k in range(slab_depth)]
        expected = [centre - slab_depth // 2 + k for k in range(slab_depth)]
        assert numbers == [number if 1 <= number <= 9 else 0 for number in expected]


@pytest.mark.parametrize("slab_depth", [1, 3, 5])
def test_target_is_the_central_slice_after_nnunets_spatial_augmentation(slab_depth: int) -> None:
    """Rotation, scaling and mirroring move voxels in plane; which slice is the target's must not change."""
    spatial = [t for t in nnunet_transforms(slab_depth).transforms if "Random" not in type(t).__name__]
    np.random.seed(0)
    torch.manual_seed(0)
    batches = loader(9, slab_depth, ComposeTransforms(spatial), batch_size=32)
    changed = 0
    for _ in range(3):
        batch = next(batches)
        assert batch["data"].shape[2:] == (slab_depth, 16, 16)
        for data, target in zip(batch["data"], batch["target"], strict=True):
            centre = data[0, slab_depth // 2]
            inside = target[0, 0] > 0
            # linear interpolation of a constant slice: that constant, or less at the border of the volume
            assert torch.equal(centre[inside].round().max(), target.max().float())
            changed += int(not torch.all(inside))
    assert changed, "no rotation or shift was seen: the test would not notice anything"


def test_intensity_augmentation_treats_the_slices_alike() -> None:
    """Slices as channels would each get a brightness of their own."""
    constant = NumberedSlices(9)
    constant.volume = np.full_like(constant.volume, 2.0)
    brightness = [t for t in nnunet_transforms(3).transforms if "Brightness" in repr(t)]
    assert len(brightness) == 1
    brightness[0].apply_probability = 1.0
    batches = slab_loader(
        constant,
        [7, 16, 16],
        [7, 16, 16],
        batch_size=16,
        label_manager=LABELS,
        transforms=ComposeTransforms(brightness),
        slab_depth=3,
        oversample_foreground_percent=1.0,
        probabilistic_oversampling=False,
    )
    inside = next(batches)["data"].amax(dim=(-1, -2))[:, 0]  # one value per slice; 0 outside the volume
    assert len(inside.unique()) > 4, "brightness differs between slabs"
    for slab in inside:
        assert len(slab[slab > 0].unique()) == 1


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
def test_all_of_nnunets_augmentation_runs_on_a_slab(slab_depth: int) -> None:
    """Its blur pads by reflection and fails on patches of fewer than 4 slices."""
    np.random.seed(0)
    torch.manual_seed(0)
    batches = loader(9, slab_depth, nnunet_transforms(slab_depth), batch_size=64)
    assert all(next(batches)["data"].isfinite().all() for _ in range(2))


def test_cut_slab_shapes() -> None:
    cut = CropSlab(2)(image=torch.arange(7.0).reshape(1, 7, 1, 1), segmentation=torch.arange(7).reshape(1, 7, 1, 1))
    assert cut["image"].flatten().tolist() == [2, 3]
    assert cut["segmentation"].flatten().tolist() == [3]
