"""The memory of each configuration's training steps, as a table and as sentences."""

from collections.abc import Mapping
from dataclasses import fields

from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale
from nnunetv2_dinomed3d.planning.step_memory import MemoryUse
from nnunetv2_dinomed3d.planning.training_memory import GB, MAX_DATASET_COVERED, PatchAndBatch
from nnunetv2_dinomed3d.text import printable

PARTS = [part.name for part in fields(MemoryUse)]

LARGE_SHARE = 0.5
"""A configuration that leaves more of the target than this share free is worth a sentence."""


def memory_table(choices: Mapping[str, PatchAndBatch], target: float, scaled: bool = True) -> str:
    """A row for each step of each configuration: its memory in GB, and whether that fits.

    Args:
        choices: by name of the configuration.
        target: memory of the GPU in GB (10^9 bytes).
        scaled: whether the trainer's network scales slices by S.
    """
    rows = [["configuration", "patch", "S", "batch", "step", *PARTS, "total GB", "fits"]]
    for name, choice in choices.items():
        scale = str(in_plane_scale(choice.patch_size)) if scaled else "-"
        shape = [printable(name), "x".join(map(str, choice.patch_size)), scale]
        for step, memory in choice.memory.items():
            parts = [f"{getattr(memory, part) / GB:.2f}" for part in PARTS]
            fits = "yes" if memory.total <= target * GB else "no"
            batch = "slabs" if step == "stage 1" else f"{choice.batch_size}"
            rows.append([*shape, batch, step, *parts, f"{memory.total / GB:.2f}", fits])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def free_memory(choices: Mapping[str, PatchAndBatch], target: float) -> list[str]:
    """A sentence for each configuration that leaves most of the GPU free, as patch and batch cannot grow further.

    Args:
        choices: by name of the configuration.
        target: memory of the GPU in GB (10^9 bytes).
    """
    sentences = []
    for name, choice in choices.items():
        taken = max(memory.total for memory in choice.memory.values()) / GB
        if taken < (1 - LARGE_SHARE) * target:
            sentences.append(
                f"{printable(name)} leaves {target - taken:.1f} of {target:.1f} GB free. A patch is at most as large "
                "as a case (and as 16 slices of 512 x 512 pixels), and by nnU-Net's rule a batch covers at most "
                f"{MAX_DATASET_COVERED:.0%} of the data set's voxels. A smaller GPU would do as well."
            )
    return sentences
