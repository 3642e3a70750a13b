"""Passes over the data: every window of every training case once, in an order that each pass draws anew.

Batches come in the order of their numbers, however many processes make them. So a training that was stopped goes on
with the batches that its pass has left.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunetv2_dinomed3d.trainers.harness.randomness import derived_seed
from nnunetv2_dinomed3d.trainers.harness.whole_cases import WholeLoader, Window


def widened(windows: Sequence[Window], size: Sequence[int], loaded: Sequence[int]) -> list[Window]:
    """Windows of ``loaded`` voxels ``(d, h, w)`` around those of ``size``, with the same middle."""
    margins = [(wide - side) // 2 for side, wide in zip(size, loaded, strict=True)]
    starts = ([first - margin for first, margin in zip(window.start, margins, strict=True)] for window in windows)
    return [replace(window, start=(d, h, w)) for window, (d, h, w) in zip(windows, starts, strict=True)]


@dataclass(frozen=True)
class Passes:
    """Batches of passes over windows, numbered through all passes; under DDP those of one rank.

    Attributes:
        windows: of all training cases.
        batch_size: rows of a batch on this rank, as many as on each.
        rank, ranks: this rank's number, and how many there are.
        seed: of the order, the same on all ranks.
    """

    windows: Sequence[Window]
    batch_size: int
    rank: int
    ranks: int
    seed: int

    @property
    def batches(self) -> int:
        """Batches of a pass."""
        return math.ceil(len(self.windows) / (self.batch_size * self.ranks))

    def batch(self, number: int) -> list[Window]:
        """The windows of a batch. The last one of a pass is filled up with the pass's first ones."""
        of_pass, index = divmod(number, self.batches)
        order = np.random.default_rng(derived_seed(self.seed, of_pass)).permutation(len(self.windows))
        order = np.resize(order, self.batches * self.batch_size * self.ranks)[self.rank :: self.ranks]
        return [self.windows[i] for i in order[index * self.batch_size :][: self.batch_size]]


class PassLoader(WholeLoader):
    """nnU-Net's loader on the batches of passes, from a given one on; for each worker process every so-many-th.

    A batch has the keys of `WholeLoader`'s, and ``number``.

    Args:
        dataset: nnU-Net's, of the training cases.
        passes: see `Passes`.
        first: number of the batch to begin with.
        workers: processes that share the batches.
        size: ``(d, h, w)`` of a window as it is loaded.
        label_manager: nnU-Net's.
        transforms: nnU-Net's of training.
    """

    def __init__(
        self,
        dataset: Any,
        passes: Passes,
        first: int,
        workers: int,
        size: Sequence[int],
        label_manager: Any,
        transforms: BasicTransform,
    ) -> None:
        super().__init__(dataset, passes.batch(first), passes.batch_size, size, label_manager, transforms)
        self.passes, self.first_number, self.number, self.workers = passes, first, first, workers

    def set_thread_id(self, thread_id: int) -> None:
        """Called in a worker process, with its number."""
        super().set_thread_id(thread_id)
        self.number = self.first_number + thread_id

    def generate_train_batch(self) -> dict[str, Any]:
        """The next batch of this process: ``data`` ``(b, C, d, h, w)``, ``target`` ``(b, 1 or regions, d, h, w)``."""
        self.windows = self.passes.batch(self.number)
        batch = {**super().generate_train_batch(), "number": self.number}
        self.number += self.workers
        return batch


class InTurn(NonDetMultiThreadedAugmenter):
    """Worker processes of a `PassLoader`, whose batches are given out by number: a later one is held back."""

    def __init__(self, loader: PassLoader, num_cached: int, pin_memory: bool) -> None:
        super().__init__(loader, None, loader.workers, num_cached=num_cached, pin_memory=pin_memory, wait_time=0.002)
        self.held: dict[int, dict[str, Any]] = {}
        self.next_number = loader.first_number

    def __next__(self) -> dict[str, Any]:
        """The next batch."""
        while self.next_number not in self.held:
            batch = super().__next__()
            self.held[batch["number"]] = batch
        self.next_number += 1
        return self.held.pop(self.next_number - 1)


def pass_batches(
    dataset: Any,
    passes: Passes,
    first: int,
    size: Sequence[int],
    *,
    label_manager: Any,
    transforms: BasicTransform,
    processes: int,
    pin_memory: bool,
) -> Iterator[dict]:
    """The batches from a given one on, made in worker processes (0: in this one); arguments as of `PassLoader`."""
    loader = PassLoader(dataset, passes, first, max(1, processes), size, label_manager, transforms)
    if processes == 0:
        return SingleThreadedAugmenter(loader, None)
    return InTurn(loader, max(6, processes // 2), pin_memory)
