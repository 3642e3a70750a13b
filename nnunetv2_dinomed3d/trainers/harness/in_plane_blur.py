"""nnU-Net's augmentation for patches of few slices, which its blur cannot take."""

from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

BLUR_DEPTH = 4
"""Slices that nnU-Net's blur needs: it pads by up to 3, by reflection."""


class InPlaneBlur(GaussianBlurTransform):
    """nnU-Net's blur within the slices."""

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        """``(c, d, h, w)``, same shape out."""
        channels = np.flatnonzero(params["apply_to_channel"])
        for channel, (_, *sigmas) in zip(channels, params["sigmas"], strict=True):
            for axis, sigma in enumerate(sigmas):
                img[channel] = blur_dimension(img[channel], sigma, axis)
        return img


def blur_in_plane(transforms: BasicTransform) -> None:
    """Replace the blur among nnU-Net's training transforms (a `ComposeTransforms`) by `InPlaneBlur`."""
    for transform in transforms.transforms:
        if isinstance(transform, RandomTransform) and isinstance(transform.transform, GaussianBlurTransform):
            blur = transform.transform
            transform.transform = InPlaneBlur(
                blur.blur_sigma, blur.synchronize_channels, blur.synchronize_axes, blur.p_per_channel
            )
