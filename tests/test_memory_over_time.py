"""A long training takes no more memory than a short one."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from tests.trainers.quick_trainers import nnUNetTrainerQuick

pytestmark = pytest.mark.own

EPOCH = 25
STAGE = 150
SETTLED = 50
MEGABYTES = 64
"""That may come and go: less than one figure of nnU-Net's takes."""


def resident() -> int:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


class Measured(nnUNetTrainerQuick):
    stage1_epochs = stage2_epochs = STAGE // EPOCH
    iterations_per_epoch = EPOCH

    def initialize(self) -> None:
        self.measured: dict[int, int] = {}
        super().initialize()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self.measured[self.current_epoch * EPOCH] = resident()


@pytest.mark.long
def test_300_iterations(make_trainer: Callable[..., nnUNetTrainerDINOMed3D]) -> None:
    trainer = make_trainer(Measured)
    gc.disable()  # what is left behind is the training's doing, not a matter of when Python collects
    try:
        trainer.run_training()
    finally:
        gc.enable()
    print("iterations: resident MB", trainer.measured)
    for first in (0, STAGE):
        settled = [mb for at, mb in trainer.measured.items() if first + SETTLED <= at <= first + STAGE]
        assert max(settled) - settled[0] < MEGABYTES, trainer.measured
