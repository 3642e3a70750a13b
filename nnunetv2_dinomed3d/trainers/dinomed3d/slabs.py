"""Slabs for stage 1, drawn and augmented by nnU-Net's own loader and transforms.

nnU-Net loads a patch a few slices deeper than the slab, augments it as a volume in plane, and only then the slab is cut
from its middle. So a slab's neighbours are real slices, an intensity change is the same on all of them, and nnU-Net's
blur, which pads by reflection, has the depth it needs. Arrays here are ``(c, d, h, w)`` per sample.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunetv2_dinomed3d.trainers.harness.randomness import derived_seed

MARGIN = 4
"""Slices, at least, by which the loaded patch is deeper than the slab."""


def loaded_depth(slab_depth: int) -> int:
    """Slices of the patch that is loaded for a slab of K: odd, so that it has a middle, and at least K + 4."""
    depth = slab_depth + MARGIN
    return depth if depth % 2 else depth + 1


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


class CutSlab(BasicTransform):
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
    batch_size: int,
    initial_patch_size: Sequence[int],
    patch_size: Sequence[int],
    label_manager: Any,
    transforms: BasicTransform,
    slab_depth: int,
    oversample_foreground_percent: float,
    probabilistic_oversampling: bool,
) -> nnUNetDataLoader:
    """nnU-Net's loader, where every slice of a case can be the middle one: the first and the last like any other.

    Args:
        dataset: nnU-Net's, of the cases to draw from.
        batch_size: slabs in a batch.
        initial_patch_size: ``(D, H, W)`` loaded, ``D`` as `loaded_depth` says.
        patch_size: ``(D, H, W)`` that ``transforms`` leaves.
        label_manager: nnU-Net's.
        transforms: nnU-Net's for such a patch; `CutSlab` follows them.
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
        transforms=ComposeTransforms([transforms, CutSlab(slab_depth)]),
    )


def start_workers(loader: nnUNetDataLoader, processes: int, num_cached: int, pin_memory: bool) -> Iterator[dict]:
    """Run a loader in worker processes (0: in this one), the first batch ready."""
    if processes == 0:
        batches: Iterator[dict] = SingleThreadedAugmenter(loader, None)
    else:
        batches = NonDetMultiThreadedAugmenter(
            loader, None, processes, num_cached=num_cached, pin_memory=pin_memory, wait_time=0.002
        )
    next(batches)
    return batches


def stop_workers(batches: Iterator[dict] | None, patience: float = 10) -> None:
    """End the worker processes of a loader, if it has any; those in the midst of a batch are killed.

    Args:
        patience: seconds that they have to end by themselves.
    """
    if isinstance(batches, NonDetMultiThreadedAugmenter):
        workers = list(batches._processes)
        _pause(batches)
        batches._finish(timeout=patience)
        for worker in workers:
            worker.kill()
            worker.join()


def _pause(batches: NonDetMultiThreadedAugmenter, patience: float = 1) -> None:
    """Let the loader's thread take what its workers have sent: of a worker that has ended it cannot, and says so."""
    pause = getattr(batches, "pause_event", None)
    if pause is None or not batches.initialized or not all(worker.is_alive() for worker in batches._processes):
        return
    pause.set()
    end = time.monotonic() + patience
    while time.monotonic() < end and not batches._queue.empty() and not batches.results_loop_queue.full():
        time.sleep(0.01)
    time.sleep(0.1)  # for the one that is being taken


def seed_workers(batches: Iterator[dict], seed: int) -> None:
    """Start the worker processes of a loader anew, if it has any, each with a seed that follows from this one."""
    if isinstance(batches, NonDetMultiThreadedAugmenter):
        batches.seeds = [derived_seed(seed, worker) for worker in range(batches.num_processes)]
        batches.restart()
