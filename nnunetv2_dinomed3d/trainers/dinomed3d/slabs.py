"""Slabs for stage 1, drawn and augmented by nnU-Net's own loader and transforms.

nnU-Net loads a patch a few slices deeper than the slab, augments it as a volume in plane, and only then the slab is cut
from its middle. So a slab's neighbours are real slices, an intensity change is the same on all of them, and nnU-Net's
blur, which pads by reflection, has the depth it needs. Arrays here are ``(c, d, h, w)`` per sample.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunetv2_dinomed3d.trainers.harness.loader_workers import start_workers

BLUR_MARGIN = 4
"""Slices, at least, by which the loaded patch is deeper than the slab."""


IN_PLANE_ROTATION = (-np.pi / 12, np.pi / 12)
"""Rotation of slabs: within the released code's 15 degrees, since a ViT knows up from down (docs/decisions.md)."""
IN_PLANE_SCALING = (0.85, 1.25)
"""Scaling of nnU-Net's in-plane ('dummy 2D') augmentation, the range its loader reserves room for."""
FLIPPED_AXES = (2,)
"""Spatial axes along which slabs are mirrored: the last one, horizontally."""


def loaded_depth(slab_depth: int) -> int:
    """Slices of the patch that is loaded for a slab of K: odd, so that it has a middle, and at least K + 4."""
    depth = slab_depth + BLUR_MARGIN
    return depth if depth % 2 else depth + 1


class Augmentation(NamedTuple):
    """nnU-Net's settings of augmentation, in its order.

    Attributes:
        rotation: in radians: one range, or one for each axis.
        dummy_2d: whether augmentation is in plane.
        initial_patch_size: ``(D, H, W)`` that is loaded, with room for rotation and scaling.
        mirror_axes: spatial axes to flip along; None for none.
    """

    rotation: Any
    dummy_2d: bool
    initial_patch_size: Sequence[int]
    mirror_axes: tuple[int, ...] | None


def slab_augmentation(configuration: ConfigurationManager, mirror_axes: tuple[int, ...] | None) -> Augmentation:
    """Augmentation of slabs: rotation and scaling in plane, horizontal flips.

    Args:
        configuration: `slab_configuration`'s.
        mirror_axes: of patches; others are not flipped along.
    """
    depth, *in_plane = configuration.patch_size
    in_plane = get_patch_size(in_plane, IN_PLANE_ROTATION, (0, 0), (0, 0), IN_PLANE_SCALING)
    axes = tuple(axis for axis in mirror_axes or () if axis in FLIPPED_AXES) or None
    return Augmentation(IN_PLANE_ROTATION, True, [depth, *in_plane], axes)


def slab_configuration(
    configuration: ConfigurationManager, slab_depth: int, slab_batch_size: int
) -> ConfigurationManager:
    """The plans' configuration as stage 1 sees it: many shallow patches, Dice over the batch as in 2D plans."""
    _, height, width = configuration.patch_size
    return ConfigurationManager(
        {
            **configuration.configuration,
            "patch_size": [loaded_depth(slab_depth), height, width],
            "batch_size": slab_batch_size,
            "batch_dice": True,
        }
    )


def check_mirroring(slab_depth: int, mirror_axes: Sequence[int] | None) -> None:
    """Refuse mirroring along the slices for even K.

    Raises:
        ValueError: the central slice of a slab would move.
    """
    if slab_depth % 2 == 0 and mirror_axes is not None and 0 in mirror_axes:
        raise ValueError(
            f"This trainer mirrors along axes {tuple(mirror_axes)} with slabs of K = {slab_depth} slices: for even K, "
            "mirroring along axis 0 moves the central slice, whose label is trained on. Leave axis 0 out, or use an "
            "odd K."
        )


class CropSlab(BasicTransform):
    """Keep the slab around the middle slice; the target is the middle slice.

    Args:
        slab_depth: K; ``K // 2`` of the slices are before the middle one, as in `slab.InterSliceContextEmbedding`.
    """

    def __init__(self, slab_depth: int) -> None:
        super().__init__()
        self.slab_depth = slab_depth

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        """``(c, d, h, w)`` to ``(c, K, h, w)``."""
        start = img.shape[1] // 2 - self.slab_depth // 2
        return img[:, start : start + self.slab_depth]

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        """``(c, d, h, w)`` to ``(c, 1, h, w)``."""
        middle = segmentation.shape[1] // 2
        return segmentation[:, middle : middle + 1]


def slab_loader(
    dataset: Any,
    initial_patch_size: Sequence[int],
    patch_size: Sequence[int],
    *,
    batch_size: int,
    label_manager: Any,
    transforms: BasicTransform,
    slab_depth: int,
    oversample_foreground_percent: float,
    probabilistic_oversampling: bool,
) -> nnUNetDataLoader:
    """nnU-Net's loader, where every slice of a case can be the middle one: the first and the last like any other.

    Args:
        dataset: nnU-Net's, of the cases to draw from.
        initial_patch_size: ``(D, H, W)`` loaded, ``D`` as `loaded_depth` says.
        patch_size: ``(D, H, W)`` that ``transforms`` leaves.
        batch_size: slabs in a batch.
        label_manager: nnU-Net's.
        transforms: nnU-Net's for such a patch; `CropSlab` follows them.
        slab_depth: K.
        oversample_foreground_percent, probabilistic_oversampling: nnU-Net's foreground oversampling.
    """
    return nnUNetDataLoader(
        dataset,
        batch_size,
        initial_patch_size,
        patch_size,
        label_manager,
        oversample_foreground_percent=oversample_foreground_percent,
        pad_sides=(patch_size[0] - 1, 0, 0),
        probabilistic_oversampling=probabilistic_oversampling,
        transforms=ComposeTransforms([transforms, CropSlab(slab_depth)]),
    )


def slab_loaders(
    datasets: tuple[Any, Any],
    transforms: tuple[BasicTransform, BasicTransform],
    initial_patch_size: Sequence[int],
    configuration: ConfigurationManager,
    *,
    processes: int,
    pin_memory: bool,
    **options: Any,
) -> tuple[Iterator[dict], Iterator[dict]]:
    """Loaders of stage 1, running: ``data`` ``(b, C, K, h, w)`` and ``target`` ``(b, 1 or regions, 1, h, w)``.

    Args:
        datasets: nnU-Net's, of training and validation.
        transforms: nnU-Net's, of training and validation.
        initial_patch_size: ``(D, H, W)`` that is loaded for training.
        configuration: `slab_configuration`'s.
        processes: nnU-Net's number of worker processes.
        pin_memory: whether batches come in pinned memory.
        options: more arguments of `slab_loader`.
    """
    patch_size = configuration.patch_size
    train, val = (
        slab_loader(dataset, loaded, patch_size, transforms=transform, **options)
        for dataset, loaded, transform in zip(datasets, (initial_patch_size, patch_size), transforms, strict=True)
    )
    return (
        start_workers(train, processes, max(6, processes // 2), pin_memory),
        start_workers(val, min(processes, max(1, processes // 2)), max(3, processes // 4), pin_memory),
    )
