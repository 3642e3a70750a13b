"""Logits on the voxels of the case, row by row: nnU-Net's sampling points, without all logits at full size.

A row is a slice along the first axis of the preprocessed case. Rows come in from the sliding window as soon as no
window will change them, and go out as soon as the rows that they lie between are there.

nnU-Net interpolates in float64 and rounds to float16, in which the largest logit of a voxel is often not the only one.
Here all is interpolated in float32, and voxels whose label hangs on the rounding once more by scipy, as nnU-Net does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

CHUNK_BYTES = 2**26
"""Most bytes of the rows that are made at a time, but for a single one."""

DEFAULT = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"

KNOWN: dict[str, dict[str, Any]] = {
    DEFAULT: {"is_seg": False, "order": 1, "order_z": 0},
    TORCH: {"is_seg": False, "mode": "linear", "aniso_axis_mode": "nearest-exact"},
}
"""nnU-Net's functions, and the options with which they do what is done here."""

WITHOUT_EFFECT = ("num_threads", "device", "memefficient_seg_resampling")
"""Options of nnU-Net's second function on the values of logits."""

POINT_ERROR = 3 * 2.0**-24
"""Largest error of a sampling point in torch's float32, of the extent: it multiplies twice and subtracts."""

Rows = Callable[[int, Tensor], None]
"""Takes the next rows: the number of the first, and logits ``(N, rows, h, w)``."""


@dataclass(frozen=True)
class ResampledRows:
    """Rows of the case.

    Attributes:
        first: number of the first.
        logits: ``(N, rows, h, w)``, float32; may be changed by who takes them.
        error: most that the difference of two logits is off; 0 if they are nnU-Net's own.
        exact: nnU-Net's own logits ``(N, n)`` of the voxels that a mask ``(rows, h, w)`` names.
    """

    first: int
    logits: Tensor
    error: float = 0.0
    exact: Callable[[Tensor], Tensor] | None = None


Give = Callable[[ResampledRows], None]


@dataclass(frozen=True)
class Sampling:
    """How logits come from one shape to another.

    Attributes:
        source, target: shapes ``(d, h, w)``.
        nearest: the axis along which the nearest row is taken; None for linear interpolation along all.
        by_torch: whether nnU-Net does it in torch, in float32, and does not round.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    nearest: int | None
    by_torch: bool

    def points(self, axis: int) -> np.ndarray:
        """Places of the target's voxels among those of the source along an axis, float64."""
        source, target = self.source[axis], self.target[axis]
        points = (np.arange(target) + 0.5) * (source / target) - 0.5
        if axis != self.nearest or source == target:
            return points
        if self.by_torch:
            numbers = torch.arange(source, dtype=torch.float32)[None, None]
            return F.interpolate(numbers, size=target, mode="nearest-exact")[0, 0].double().numpy()
        return ndimage.map_coordinates(np.arange(source, dtype=float), points[None], order=0, mode="nearest")

    def neighbours(self, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each target index along an axis, the source indices below and above it and the weight of the upper."""
        last = self.source[axis] - 1
        points = torch.from_numpy(self.points(axis)).clamp(0, last)
        low = points.long()
        weight = points - low
        return low, torch.where(weight > 0, low + 1, low), weight.float()


def sampling_of(
    configuration: ConfigurationManager,
    source: Sequence[int],
    target: Sequence[int],
    spacings: tuple[Sequence[float], Sequence[float]],
) -> Sampling | None:
    """What the plans' resampling of probabilities does to logits of this shape; None if it is another function.

    Args:
        configuration: of the plans.
        source, target: shapes ``(d, h, w)``.
        spacings: of both, in mm.
    """
    name: str = configuration.configuration["resampling_fn_probabilities"]
    options: dict[str, Any] = dict(configuration.configuration["resampling_fn_probabilities_kwargs"])
    by_torch = name == TORCH
    force = options.pop("force_separate_z", None if by_torch else False)  # the functions' own defaults
    threshold = [options.pop(key) for key in ("separate_z_anisotropy_threshold",) if key in options]
    for key in WITHOUT_EFFECT if by_torch else ():
        options.pop(key, None)
    known = KNOWN.get(name, {})
    with_defaults = options if by_torch else {"order": 3, **options}
    if name not in KNOWN or any(key not in known or known[key] != value for key, value in with_defaults.items()):
        return None
    separate, axis = determine_do_sep_z_and_axis(force, *spacings, *threshold)
    nearest = int(axis) if separate and axis is not None else None
    return Sampling(tuple(map(int, source)), tuple(map(int, target)), nearest, by_torch)


class RowResampler:
    """Takes rows of logits in order and gives out rows of the target.

    Args:
        sampling: from which shape to which.
        give: takes rows of the target, in order.
        chunk_bytes: most bytes of rows in float32 at a time.
    """

    def __init__(self, sampling: Sampling, give: Give, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.sampling, self.give, self.chunk_bytes = sampling, give, chunk_bytes
        self.points = [sampling.points(axis) for axis in range(3)]
        self.low, self.high, self.weight = sampling.neighbours(0)
        self.next = 0  # row of the target
        self.first = 0  # row of the source that `kept` begins with
        self.kept: Tensor | None = None

    def __call__(self, first: int, rows: Tensor) -> None:
        """Take the next rows ``(N, rows, h, w)`` of the source, float16."""
        if self.sampling.source == self.sampling.target:
            self.give(ResampledRows(first, rows.float()))
            return
        kept = rows if self.kept is None else torch.cat([self.kept, rows], 1)
        end = self.first + kept.shape[1]
        stop = int(torch.searchsorted(self.high, end))  # rows of the target whose neighbours are there
        while self.next < stop:
            after = min(stop, self.next + self._rows_at_once(len(kept)))
            self.give(self._resampled(kept, slice(self.next, after)))
            self.next = after
        needed = int(self.low[stop]) if stop < len(self.low) else end
        self.kept = kept[:, max(0, needed - self.first) :].clone()
        self.first = end - self.kept.shape[1]

    def _rows_at_once(self, heads: int) -> int:
        height, width = self.sampling.target[1:]
        return max(1, self.chunk_bytes // (heads * height * width * 4))

    def _resampled(self, kept: Tensor, rows: slice) -> ResampledRows:
        low, high = self.low[rows], self.high[rows]
        start, stop = int(low[0]), int(high[-1]) + 1
        source = kept[:, start - self.first : stop - self.first].float()
        low, high, weight = ((x.to(kept.device)) for x in (low - start, high - start, self.weight[rows]))
        logits = source.index_select(1, low)
        if weight.any():
            logits.lerp_(source.index_select(1, high), weight[:, None, None])
        if self.sampling.nearest:
            index = torch.from_numpy(self.points[self.sampling.nearest]).long().to(kept.device)
            logits = logits.index_select(1 + self.sampling.nearest, index)
        if logits.shape[2:] != self.sampling.target[1:]:
            logits = F.interpolate(logits, size=self.sampling.target[1:], mode="bilinear", align_corners=False)
        if self.sampling.by_torch:
            return ResampledRows(rows.start, logits)
        # of two logits, along two axes in plane; two neighbours differ by twice the largest at most
        error = 8 * POINT_ERROR * max(self.sampling.source[1:]) * float(source.abs().max())
        return ResampledRows(rows.start, logits, error, partial(self._exact, source, start, rows.start))

    def _exact(self, source: Tensor, start: int, first: int, mask: Tensor) -> Tensor:
        """nnU-Net's logits of the masked voxels of rows from `first` on, from the source's rows from `start` on."""
        row, *plane = mask.cpu().numpy().nonzero()
        points = [self.points[0][first + row] - start, *(self.points[1 + i][index] for i, index in enumerate(plane))]
        values = source.cpu().numpy().astype(float)
        exact = [ndimage.map_coordinates(channel, points, order=1, mode="nearest") for channel in values]
        # numpy rounds float64 to float16 at once; torch would round to float32 in between
        return torch.from_numpy(np.stack(exact).astype(np.float16)).float().to(mask.device)


class WholeResampler:
    """Takes all rows of logits, then calls the function that the plans name, as nnU-Net does.

    Args:
        logits: to be filled, ``(N, d, h, w)``, float16, on the CPU.
        resample: all logits to those of the target.
        give: takes the rows of the target, all at once.
    """

    def __init__(self, logits: Tensor, resample: Callable[[np.ndarray], Any], give: Give) -> None:
        self.logits, self.resample, self.give = logits, resample, give

    def __call__(self, first: int, rows: Tensor) -> None:
        """Take the next rows ``(N, rows, h, w)``."""
        stop = first + rows.shape[1]
        self.logits[:, first:stop] = rows
        if stop == self.logits.shape[1]:
            self.give(ResampledRows(0, torch.as_tensor(self.resample(self.logits.numpy())).float()))
