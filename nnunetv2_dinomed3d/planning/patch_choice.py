"""The patch that makes most of a GPU's memory: the paper's clip of 16 slices, as much of the slice as fits."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from nnunetv2_dinomed3d.network_architecture.token_grid import (
    PAPERS_SIDE,
    SCALES,
    TOKEN_SIZE,
    in_plane_scale,
    padded_side,
)

CLIP_DEPTH = 16
"""Slices of the paper's clip."""

MIN_SIDE = 64
"""Voxels under which the longer side of a patch is not taken, unless the slice itself is smaller."""

MIN_BATCH = 2
"""nnU-Net's."""

PatchSize = tuple[int, ...]


def multiples(median_shape: Sequence[float], divisor: Sequence[int]) -> list[list[PatchSize]]:
    """Patches whose sides are multiples of a network's divisor, the largest first; one list.

    The first covers the median case. As in nnU-Net's planner, each next one is shorter along the axis on which it
    covers most of the case.

    Args:
        median_shape: of the cases after resampling, in voxels.
        divisor: one number for each axis.
    """
    steps = [max(1, math.ceil(side / step)) for side, step in zip(median_shape, divisor, strict=True)]
    patches = []
    while True:
        patches.append(tuple(count * step for count, step in zip(steps, divisor, strict=True)))
        shares = [
            count * step / side if count > 1 else 0.0
            for count, step, side in zip(steps, divisor, median_shape, strict=True)
        ]
        if not any(shares):
            return [patches]
        steps[shares.index(max(shares))] -= 1


def candidates(median_shape: Sequence[float]) -> list[list[PatchSize]]:
    """Patches in the proportions of the median case: one list for each in-plane scale S, large ones first.

    Sides are multiples of 16 / S and at most those of the slice, rounded up, or 512. Within one list, a smaller patch
    takes less memory; from one to the next S rises, and with it the number of tokens.

    Args:
        median_shape: ``(d, h, w)`` of the cases after resampling, in voxels.
    """
    depth, *in_plane = (max(1, round(side)) for side in median_shape)
    depth = min(depth, CLIP_DEPTH)
    in_plane = [min(side, PAPERS_SIDE) for side in in_plane]
    longest = max(in_plane)
    lists = []
    for scale in SCALES:
        step = TOKEN_SIZE // scale
        patches: list[PatchSize] = []
        for longer in range(padded_side(longest, scale), min(longest, MIN_SIDE) - 1, -step):
            share = min(longer, longest) / longest
            height, width = (padded_side(math.ceil(side * share), scale) for side in in_plane)
            if in_plane_scale((depth, height, width)) == scale:
                patches.append((depth, height, width))
        lists.append(patches)
    return [patches for patches in lists if patches]


def choose_patch_and_batch(
    lists: Sequence[Sequence[PatchSize]], max_batch: Callable[[PatchSize], int], budget: int, cost: Callable[..., int]
) -> tuple[PatchSize, int]:
    """The largest patch of which a batch of two fits, then the largest batch.

    Args:
        lists: patches to choose from, by `candidates` or `multiples`; the largest that fits of the first list of which
            one fits is taken.
        max_batch: of a patch, the largest batch that is wanted.
        budget: bytes.
        cost: bytes that training takes with a patch and a batch.

    Raises:
        ValueError: not even the smallest patch fits.
    """
    for patches in lists:
        index = bisect_left(patches, True, key=lambda patch: cost(patch, MIN_BATCH) <= budget)
        if index < len(patches):
            return patches[index], _batch(patches[index], max_batch(patches[index]), budget, cost)
    smallest = lists[-1][-1]
    raise ValueError(
        f"Not even the smallest patch, {list(smallest)} with batch {MIN_BATCH}, fits {budget / 1e9:.1f} GB: it needs "
        f"{cost(smallest, MIN_BATCH) / 1e9:.1f} GB. Take a GPU with more memory or a smaller "
        "variant of the network."
    )


def _batch(patch: PatchSize, max_batch: int, budget: int, cost: Callable[..., int]) -> int:
    """Largest batch between `MIN_BATCH` and ``max_batch`` that fits; memory grows by the same with each more."""
    if max_batch <= MIN_BATCH:
        return MIN_BATCH
    of_two = cost(patch, MIN_BATCH)
    of_one_more = max(1, cost(patch, MIN_BATCH + 1) - of_two)
    batch = min(max_batch, MIN_BATCH + (budget - of_two) // of_one_more)
    while batch > MIN_BATCH and cost(patch, batch) > budget:
        batch -= 1
    return batch
