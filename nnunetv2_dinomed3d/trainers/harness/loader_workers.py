"""Worker processes of a loader: started, seeded, stopped."""

import time
from collections.abc import Iterator

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_dinomed3d.trainers.harness.randomness import derived_seed


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
