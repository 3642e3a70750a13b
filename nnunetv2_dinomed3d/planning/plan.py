"""``dinomed3d plan``: nnU-Net's plans with patch and batch for this network and a GPU's memory."""

import argparse
from collections.abc import Mapping
from dataclasses import fields

from nnunetv2_dinomed3d.evaluation.dataset import dataset_name, folder_of
from nnunetv2_dinomed3d.network_architecture.memory import Memory
from nnunetv2_dinomed3d.network_architecture.slab import in_plane_scale
from nnunetv2_dinomed3d.planning.planner import PLANS_NAME, DINOMed3DPlanner
from nnunetv2_dinomed3d.trainers.memory import GB, Choice, visible_gpu_memory
from nnunetv2_dinomed3d.trainers.variants.names import trainer_class

DEFAULT_MEMORY_GB = 24.0
"""Where no GPU is visible: that of common cards for workstations."""

PARTS = [part.name for part in fields(Memory)]


def run_plan(args: argparse.Namespace) -> int:
    """Write the plans and print what training with them takes."""
    folder_of("nnUNet_preprocessed")
    trainer = trainer_class(args.tr)
    target = args.gpu_memory_target
    if target is None:
        visible = visible_gpu_memory()
        target = DEFAULT_MEMORY_GB if visible is None else visible / GB
    if target <= 0:
        raise ValueError(f"-gpu_memory_target is {target}; it is the memory of one GPU in GB, such as 24.")
    print(f"Planning for {args.tr} on a GPU of {target:.1f} GB.")
    planner = DINOMed3DPlanner(dataset_name(args.d), target, trainer, args.p)
    planner.plan_experiment()
    print(table(planner.choices, target))
    print(f"Train with: nnUNetv2_train {args.d} 3d_fullres 0 -tr {args.tr} -p {PLANS_NAME}")
    return 0


def table(choices: Mapping[str, Choice], target: float) -> str:
    """Of each configuration and stage, the memory in GB and whether it fits ``target`` GB."""
    rows = [["configuration", "patch", "S", "batch", "stage", *PARTS, "total GB", "fits"]]
    for name, choice in choices.items():
        shape = [name, "x".join(map(str, choice.patch_size)), str(in_plane_scale(choice.patch_size))]
        for stage, memory in choice.memory.items():
            parts = [f"{getattr(memory, part) / GB:.2f}" for part in PARTS]
            fits = "yes" if memory.total <= target * GB else "no"
            batch = f"{choice.batch_size}" if stage == 2 else "slabs"
            rows.append([*shape, batch, str(stage), *parts, f"{memory.total / GB:.2f}", fits])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
