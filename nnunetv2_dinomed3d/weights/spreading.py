"""Convolutions of a network's input, for another number of channels or slices."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """What a network's input consists of.

    Attributes:
        images: channels of the image.
        segmentation: those of the coarser stage's segmentation, one-hot, behind the image's; only a cascade has them.
    """

    images: int
    segmentation: int = 0

    @property
    def total(self) -> int:
        """All channels."""
        return self.images + self.segmentation

    def change_to(self, new: "Channels") -> str:
        """What differs, in words."""
        images = f"{self.images} to {new.images} image channels" if self.images != new.images else ""
        segmentation = (
            f"{self.segmentation} to {new.segmentation} channels of a coarser segmentation (zero)"
            if self.segmentation != new.segmentation
            else ""
        )
        return ", ".join(filter(None, [images, segmentation]))


def spread_over_channels(weight: Tensor, old: Channels, new: Channels) -> Tensor:
    """A convolution's weight for other channels of its input.

    Each channel of the new image gets the same part of the sum over the old one's: a convolution answers an image that
    is repeated in all channels as it answered before. From one channel to C, each gets a C-th, as from DINOv3's and
    official weights. Channels of a coarser stage's segmentation start with zero where their number changes: the network
    predicts as it did without.

    Args:
        weight: ``(o, C, ...)``.
        old, new: its input before, and now.
    """
    images, segmentation = weight[:, : old.images], weight[:, old.images :]
    if old.images != new.images:
        images = images.sum(1, keepdim=True).expand(-1, new.images, *weight.shape[2:]) / new.images
    if old.segmentation != new.segmentation:
        segmentation = weight.new_zeros(len(weight), new.segmentation, *weight.shape[2:])
    return torch.cat([images, segmentation], dim=1)


def spread_over_slices(weight: Tensor, slab_depth: int) -> Tensor:
    """ICE's weight for another number K of slices.

    Slices keep their place beside the central one, K // 2. New ones start with zero: features stay what they were, and
    stage 1 trains the rest. Those that are gone are added to the outermost that is left on their side: the answer to a
    volume that does not change across slices stays. To K = 1 that is the sum, as from DINOv3's three colours.

    Args:
        weight: ``(o, C, K, h, w)``.
        slab_depth: the new K.
    """
    before = weight.shape[2]
    places = (torch.arange(before) + slab_depth // 2 - before // 2).clamp(0, slab_depth - 1)
    spread = weight.new_zeros(*weight.shape[:2], slab_depth, *weight.shape[3:])
    return spread.index_add_(2, places, weight)
