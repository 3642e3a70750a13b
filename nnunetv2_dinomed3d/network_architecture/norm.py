"""Normalisations that also take the smallest patches."""

import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` that passes a map of one value per channel on as it is.

    One value has no spread to normalise by: PyTorch raises for it, and subtracting its mean would leave nothing. The
    token grid of a patch of one slice and 16 x 16 (scaled) pixels is such a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, d, h, w)``, same shape out."""
        if x.shape[2:].numel() == 1:
            return x.clone()  # what follows may work in place, as on any norm's result
        if x.is_cpu:  # the same numbers; PyTorch's own is slower there and leaves the channels-last layout
            return F.group_norm(x, self.num_features, eps=self.eps)
        return super().forward(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """The decoder's GroupNorm: 32 groups, fewer where a group would hold a single channel."""
    return nn.GroupNorm(min(32, channels // 2), channels)
