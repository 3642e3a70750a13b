"""Validation over every slice of every validation case: the same windows in each epoch, each of them once.

nnU-Net's own draws random patches. Here its loader takes the windows in turn, so that what it sums up over an epoch is
the Dice of all of them. Windows are shared among the ranks of DDP, which all need as many batches of the same shape:
what a rank lacks is filled up with rows that count for nothing.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_dinomed3d.trainers.harness.loader_workers import start_workers

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """A window of a case: the first voxel ``(d, h, w)``, which can be outside of it, and whether it counts."""

    case: str
    start: Size
    counts: bool = True


def starts_along(extent: int, size: int) -> list[int]:
    """Starts of the fewest windows that cover an axis, evenly spread; one in the middle where the axis is shorter."""
    if extent <= size:
        return [-((size - extent) // 2)]
    return compute_steps_for_sliding_window((extent,), (size,), 1.0)[0]


def windows_of_case(case: str, shape: Sequence[int], size: Sequence[int], every_slice: bool) -> list[Window]:
    """Windows that cover a case.

    Args:
        case: its identifier.
        shape: ``(D, H, W)`` of the case.
        size: ``(d, h, w)`` of a window.
        every_slice: one for each slice, which is the middle one (at ``d // 2``) of its window.
    """
    along = [starts_along(extent, side) for extent, side in zip(shape, size, strict=True)]
    if every_slice:
        along[0] = [middle - size[0] // 2 for middle in range(shape[0])]
    return [Window(case, (d, h, w)) for d, h, w in product(*along)]


def windows_of_cases(dataset: Any, size: Sequence[int], every_slice: bool) -> list[Window]:
    """Windows that cover all cases of nnU-Net's dataset, in the order of their identifiers."""
    shapes = {case: dataset.load_case(case)[0].shape[1:] for case in sorted(dataset.identifiers)}
    return [window for case, shape in shapes.items() for window in windows_of_case(case, shape, size, every_slice)]


def evenly(windows: Sequence[Window], at_most: int) -> list[Window]:
    """All of them, or so many that are evenly spaced."""
    if len(windows) <= at_most:
        return list(windows)
    return [windows[i * len(windows) // at_most] for i in range(at_most)]


def fill_up(windows: Sequence[Window], filler: Window, number: int) -> list[Window]:
    """So many windows, of which the last ones may be fillers that do not count."""
    return [*windows, *[replace(filler, counts=False)] * (number - len(windows))]


class WholeLoader(nnUNetDataLoader):
    """nnU-Net's loader on given windows, whose batches repeat when all were drawn.

    For one worker process at most: several would each begin with the first batch. A batch has nnU-Net's keys, and
    ``real``: how many of its rows, the first ones, count.

    Args:
        dataset: nnU-Net's, of all cases.
        windows: of this rank, those that count first; a multiple of ``batch_size``.
        batch_size: rows of a batch.
        size: ``(d, h, w)`` of a window.
        label_manager: nnU-Net's.
        transforms: nnU-Net's of validation.
    """

    def __init__(
        self,
        dataset: Any,
        windows: Sequence[Window],
        batch_size: int,
        size: Sequence[int],
        label_manager: Any,
        transforms: BasicTransform,
    ) -> None:
        super().__init__(dataset, batch_size, size, size, label_manager, transforms=transforms)
        assert len(windows) % batch_size == 0, f"{len(windows)} windows make no batches of {batch_size}"
        self.windows, self.first = windows, 0

    def generate_train_batch(self) -> dict[str, Any]:
        """The next batch: ``data`` ``(b, C, d, h, w)`` and ``target`` ``(b, 1 or regions, d, h, w)``."""
        batch = self.windows[self.first : self.first + self.batch_size]
        self.first = (self.first + self.batch_size) % len(self.windows)
        self.cases, self.starts = [window.case for window in batch], iter([window.start for window in batch])
        return {**super().generate_train_batch(), "real": sum(window.counts for window in batch)}

    def get_indices(self) -> list[str]:
        """Cases of the batch."""
        return self.cases

    def get_bbox(self, *_: Any, **__: Any) -> tuple[list[int], list[int]]:
        """The next row's window: its first voxels, and those after the last."""
        start = next(self.starts)
        return list(start), [first + side for first, side in zip(start, self.patch_size, strict=True)]


def whole_loader(
    dataset: Any,
    configuration: ConfigurationManager,
    rank_and_ranks: tuple[int, int],
    *,
    every_slice: bool,
    at_most: int,
    batch_size: int,
    label_manager: Any,
    transforms: BasicTransform,
    processes: int,
    pin_memory: bool,
) -> tuple[Iterator[dict], int]:
    """A running loader of this rank's share of the windows of all cases, and how many batches it has in an epoch.

    Args:
        dataset: nnU-Net's, of the cases.
        configuration: its patch is a window, its batch that of all ranks.
        rank_and_ranks: this rank, and how many there are.
        every_slice: see `windows_of_case`.
        at_most: batches of an epoch; of more, evenly spaced windows are taken.
        batch_size: rows of this rank's batches.
        label_manager, transforms: see `WholeLoader`.
        processes: 0 loads in this process, more in one of its own.
        pin_memory: whether batches come in pinned memory.
    """
    rank, ranks = rank_and_ranks
    size, rows = configuration.patch_size, configuration.batch_size // ranks  # nnU-Net gives some ranks one more
    windows = evenly(windows_of_cases(dataset, size, every_slice), at_most=at_most * rows * ranks)
    batches = math.ceil(math.ceil(len(windows) / ranks) / rows)
    share = fill_up(windows[rank::ranks], windows[0], batches * batch_size)
    loader = WholeLoader(dataset, share, batch_size, size, label_manager, transforms)
    return start_workers(loader, min(1, processes), 3, pin_memory), batches


@contextmanager
def only_rows(network: nn.Module, target: Tensor, real: int, has_regions: bool) -> Iterator[None]:
    """While open, the network predicts background in rows after the first ``real``, and so does ``target`` say.

    Such rows add nothing to nnU-Net's counts of true and false voxels. They are not cut off, since ranks of DDP gather
    what they have, and a compiled network would be compiled anew.

    Args:
        network: gives logits ``(b, N, d, h, w)``.
        target: ``(b, 1 or regions, d, h, w)``; changed.
        real: how many rows count.
        has_regions: whether N are regions, without one for the background.
    """
    if real == len(target):
        yield
        return
    target[real:] = 0

    def predict_background(module: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        background = torch.full_like(logits[real:], -1)
        if not has_regions:
            background[:, 0] = 1
        return torch.cat([logits[:real], background])

    hook = network.register_forward_hook(predict_background)
    try:
        yield
    finally:
        hook.remove()
