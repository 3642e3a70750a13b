"""Inputs of any size for a network whose sides must be multiples of a divisor, and outputs of deep supervision."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nnunetv2_dinomed3d.network_architecture.efficiency.precision import precision


def padded_size(size: Sequence[int], divisor: Sequence[int], min_cells: int = 1) -> tuple[int, ...]:
    """The next multiples of the divisor, axis by axis; the last one larger if these are too few cells.

    Args:
        size: of the input.
        divisor: sides of a cell, which is one voxel of the deepest map.
        min_cells: cells that there must be.
    """
    cells = [-(-side // step) for side, step in zip(size, divisor, strict=True)]
    if math.prod(cells) < min_cells:
        cells[-1] = min_cells
    return tuple(count * step for count, step in zip(cells, divisor, strict=True))


class AnySizeNetwork(nn.Module):
    """Zeros are padded at the end of each axis up to a multiple of the divisor; logits are cropped back.

    A network derives from this and implements `logits`.

    Args:
        divisor: of the sides of what `logits` takes, one number per spatial axis.
        min_cells: voxels that the deepest map must have: instance norm cannot be trained on one.

    Attributes:
        mixed_precision: whether to compute in bfloat16 where autocast is on; else in float32. Never in float16, which
            nnU-Net's autocast means: it is known to give NaN in these networks.
        deep_supervision: whether `forward` returns a list of logits, the finest first, instead of the finest alone.
            The parameters are the same either way.
        weights_loaded: whether a state dict replaced the random initial weights.
    """

    def __init__(self, divisor: Sequence[int], min_cells: int = 1) -> None:
        super().__init__()
        self.divisor = tuple(divisor)
        self.min_cells = min_cells
        self.mixed_precision = True
        self.weights_loaded = False
        self.deep_supervision = False

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """PyTorch's; noted in ``weights_loaded``."""
        result = super().load_state_dict(*args, **kwargs)
        self.weights_loaded = True
        return result

    def logits(self, x: Tensor) -> list[Tensor]:
        """Logits of a padded input, the finest first; only the finest unless ``deep_supervision`` is on."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *size)`` to logits ``(B, N, *size)``.

        With deep supervision, a list. A coarser map has the size that nnU-Net gives the labels of its scale: each side
        times the scale, rounded.
        """
        size = x.shape[2:]
        whole = padded_size(size, self.divisor, self.min_cells)
        # F.pad counts from the last axis
        missing = [amount for side, full in zip(size[::-1], whole[::-1], strict=True) for amount in (0, full - side)]
        with precision(x, self.mixed_precision, float16=False):
            outputs = self.logits(F.pad(x, missing) if any(missing) else x)
        outputs = [_cropped(output, size, whole) for output in outputs]
        return outputs if self.deep_supervision else outputs[0]


def _cropped(output: Tensor, size: Sequence[int], whole: Sequence[int]) -> Tensor:
    found = output.shape[2:]
    sides = [round(side * (out / full)) for side, out, full in zip(size, found, whole, strict=True)]
    index = (slice(None), slice(None), *map(slice, sides))
    return output[index]
