"""Batches of slabs a second, drawn and augmented on the CPU by nnU-Net's loader from made-up cases."""

import time
from typing import Any

import numpy as np

from benchmarks.gpu.results import Values
from benchmarks.gpu.steps import SLAB_DEPTH

CASES = 4
MARGIN = 1.2
"""Cases are so many times as large in plane as the patch."""


FOREGROUND = 0.33
"""Share of slabs that are drawn around foreground; nnU-Net's."""


class MadeUpCases:
    """A data set as nnU-Net's loader asks for it: noise with a bright box, in memory.

    Args:
        shape: ``(D, H, W)`` of a case.
    """

    identifiers = tuple(f"case{number}" for number in range(CASES))

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.zeros((1, *shape), np.int16)
        inside = tuple(slice(side // 3, 2 * side // 3 + 1) for side in shape)
        self.labels[0][inside] = 1
        self.image = (rng.standard_normal((1, *shape)) + self.labels).astype(np.float32)
        foreground = np.argwhere(self.labels)
        self.properties = {"class_locations": {1: foreground[rng.integers(len(foreground), size=1000)]}}

    def load_case(self, identifier: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        """Image, labels, no earlier stage's labels, and where the foreground is."""
        return self.image, self.labels, None, self.properties


def measure_loader(
    side: int, slices: int, slabs: int, processes: int | None, seconds: float, step: Values | None
) -> Values:
    """How fast batches come, once those that were kept ready are used up.

    Args:
        side: H and W of the slabs.
        slices: of a case.
        slabs: in a batch.
        processes: workers; None for nnU-Net's number, 0 for this process.
        seconds: to draw batches for, at least.
        step: `steps.measure_step`'s of such a batch; without it there is no comparison.
    """
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import slab_augmentation, slab_configuration, slab_loader
    from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
    from nnunetv2_dinomed3d.trainers.harness.loader_workers import start_workers, stop_workers

    plans: dict[str, Any] = {"patch_size": [slices, side, side], "architecture": {}}
    workers = get_allowed_n_proc_DA() if processes is None else processes
    configuration = slab_configuration(ConfigurationManager(plans), SLAB_DEPTH, slabs)
    augmentation = slab_augmentation(configuration, (0, 1, 2))
    transforms = nnUNetTrainerDINOMed3D.get_training_transforms(
        configuration.patch_size,
        augmentation.rotation,
        None,
        augmentation.mirror_axes,
        augmentation.dummy_2d,
        use_mask_for_norm=[False],
        is_cascaded=False,
        foreground_labels=[1],
    )
    large = round(MARGIN * side)
    loader = slab_loader(
        MadeUpCases((slices, large, large)),
        augmentation.initial_patch_size,
        configuration.patch_size,
        batch_size=slabs,
        label_manager=LabelManager({"background": 0, "box": 1}, None),
        transforms=transforms,
        slab_depth=SLAB_DEPTH,
        oversample_foreground_percent=FOREGROUND,
        probabilistic_oversampling=False,
    )
    ready = max(6, workers // 2)
    batches = start_workers(loader, workers, ready, pin_memory=False)
    try:
        for _ in range(ready + workers if workers else 1):
            next(batches)
        drawn, begin = 0, time.perf_counter()
        while not drawn or time.perf_counter() - begin < seconds:
            next(batches)
            drawn += 1
        rate = drawn / (time.perf_counter() - begin)
    finally:
        stop_workers(batches)
    wanted = 1000 / step["step ms"] if step else None
    return {
        "workers": workers,
        "batches/s": rate,
        "steps/s": wanted,
        "fast enough": rate >= wanted if wanted else None,
    }
