"""``dinomed3d plan``: nnU-Net's plans with patch and batch for this network and a GPU's memory."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import fields

from nnunetv2_dinomed3d.network_architecture.slab_embedding import in_plane_scale
from nnunetv2_dinomed3d.nnunet_files import dataset_name, folder_of
from nnunetv2_dinomed3d.planning.planner import PLANS_NAME, choose, read_base, write_plans
from nnunetv2_dinomed3d.planning.step_memory import MemoryUse
from nnunetv2_dinomed3d.planning.target import DEFAULT_GB, require_memory
from nnunetv2_dinomed3d.planning.training_memory import (
    GB,
    MAX_DATASET_COVERED,
    PatchAndBatch,
    can_be_planned_for,
    visible_gpu_memory,
)
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.trainers.registry import find_trainer

PARTS = [part.name for part in fields(MemoryUse)]

MUCH = 0.5
"""Share of the target that, if left free, is worth a sentence."""


def run_plan(args: argparse.Namespace) -> int:
    """Write the plans and print what training with them takes."""
    require_memory(args.gpu_memory_target)
    folder_of("nnUNet_preprocessed")
    trainer = find_trainer(args.tr)
    target = args.gpu_memory_target
    if target is None:
        visible = visible_gpu_memory()
        target = DEFAULT_GB if visible is None else visible / GB
    base = read_base(dataset_name(args.d), trainer, args.p)
    if not can_be_planned_for(trainer):
        print(f"Memory of {args.tr} with {args.p} on a GPU of {target:.1f} GB:", flush=True)
        print(table({name: memory.as_planned() for name, memory in base.memory.items()}, target, scaled=False))
        print("No plans are written: nnU-Net's own planner chooses patch and batch for this trainer.")
        return 0
    print(f"Planning for {args.tr} on a GPU of {target:.1f} GB.", flush=True)
    choices = choose(base, target)
    replaced = base.file.exists()
    write_plans(base, choices, target)
    print(table(choices, target))
    for sentence in free_memory(choices, target):
        print(sentence)
    print(f"{'Replaced' if replaced else 'Written'}: {printable(str(base.file))}")
    if base.others:
        print(f"Not planned, being 2D: {', '.join(map(printable, base.others))}.")
    print("Train with:")
    for name in choices:
        print("  " + shlex.join(["nnUNetv2_train", args.d, name, "0", "-tr", args.tr, "-p", PLANS_NAME]))
    return 0


def table(choices: Mapping[str, PatchAndBatch], target: float, scaled: bool = True) -> str:
    """Memory in GB of each configuration's steps, and whether it fits ``target`` GB.

    Args:
        choices: by configuration.
        target: in GB.
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
    """A sentence for each configuration that leaves most of the GPU empty: the rules of patch and batch stop before."""
    sentences = []
    for name, choice in choices.items():
        taken = max(memory.total for memory in choice.memory.values()) / GB
        if taken < (1 - MUCH) * target:
            sentences.append(
                f"{printable(name)} leaves {target - taken:.1f} of {target:.1f} GB free: a patch is at most a case "
                "(and 16 slices of 512 x 512 pixels), a batch at most "
                f"{MAX_DATASET_COVERED:.0%} of the data set's voxels, nnU-Net's rule. A smaller GPU would do as well."
            )
    return sentences
