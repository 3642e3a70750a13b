"""Plans of the tests of planning, and an estimate of the memory they take that needs no counting."""

import json
import math
from pathlib import Path

from nnunetv2_dinomed3d.planning.step_memory import MemoryUse, Step


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def by_voxels(step: Step) -> MemoryUse:
    """A quick estimate."""
    return MemoryUse(0, 0, 0, 100 * math.prod(step.batch_shape), 0)
