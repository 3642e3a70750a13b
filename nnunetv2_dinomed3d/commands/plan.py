"""``dinomed3d plan``: nnU-Net's plans with patch and batch for this network and the memory of a GPU."""

import argparse
import shlex

from nnunetv2_dinomed3d.nnunet_files import dataset_name, folder_of
from nnunetv2_dinomed3d.planning.target import DEFAULT_GB, require_gpu, require_memory
from nnunetv2_dinomed3d.text import printable

HELP = "Make plans with patch and batch for this network and the memory of a GPU."
EXAMPLES = """
dinomed3d plan -d 4
dinomed3d plan -d 4 -gpu_memory_target 24 -tr nnUNetTrainerDINOMed3D_S
dinomed3d plan -d 4 --measure
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add data set, memory, trainer and plans, named as nnU-Net names them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of nnU-Net's data set")
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        metavar="GB",
        help=f"memory of one GPU (default: that of the visible one; {DEFAULT_GB:.0f} without a GPU)",
    )
    parser.add_argument(
        "-tr", default="nnUNetTrainerDINOMed3D", metavar="TRAINER", help="trainer to plan for (default: %(default)s)"
    )
    parser.add_argument(
        "-p", default="nnUNetPlans", metavar="PLANS", help="plans the data was preprocessed with (default: %(default)s)"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="run a step of each stage on the visible GPU, plan less if it does not fit, and tell the hours",
    )


def run(args: argparse.Namespace) -> int:
    """Write the plans and print the memory that training with them takes; return 0.

    Raises:
        ValueError: an argument, a folder or a file of nnU-Net's is wrong, or the plans cannot be written.
    """
    require_memory(args.gpu_memory_target)
    dataset = dataset_name(args.d)
    folder_of("nnUNet_preprocessed")
    # imported after the first checks, as PyTorch and nnU-Net take seconds
    from nnunetv2_dinomed3d.planning.measured_step import Measured, choose_measured, measure_planned, sentences
    from nnunetv2_dinomed3d.planning.memory_table import free_memory, memory_table
    from nnunetv2_dinomed3d.planning.planner import choose, read_base, write_plans
    from nnunetv2_dinomed3d.planning.training_memory import GB, can_be_planned_for, name_of_plans, visible_gpu_memory
    from nnunetv2_dinomed3d.trainers.registry import find_trainer

    trainer = find_trainer(args.tr)
    target = args.gpu_memory_target
    visible = visible_gpu_memory()
    if args.measure:
        require_gpu(None if visible is None else visible / GB, target)
    if target is None:
        target = DEFAULT_GB if visible is None else visible / GB
    base = read_base(dataset, trainer, args.p)
    if not can_be_planned_for(trainer):
        print(f"Memory of {args.tr} with {args.p} on a GPU of {target:.1f} GB:", flush=True)
        planned = {name: memory.as_planned() for name, memory in base.memory.items()}
        print(memory_table(planned, target, scaled=False))
        if args.measure:
            for name, memory in base.memory.items():
                for sentence in measure_planned(printable(name), memory, planned[name]):
                    print(sentence, flush=True)
        print("No plans are written: nnU-Net's own planner chooses patch and batch for this trainer.")
        return 0
    print(f"Planning for {args.tr} on a GPU of {target:.1f} GB.", flush=True)
    measured: dict[str, dict[str, Measured]] = {}
    if args.measure:
        choices = {}
        for name, memory in base.memory.items():
            choices[name], measured[name] = choose_measured(memory, round(target * GB))
    else:
        choices = choose(base, target)
    replaced = base.file.exists()
    write_plans(base, choices, target)
    print(memory_table(choices, target, scaled=not hasattr(trainer, "patch_divisor")))
    for name, results in measured.items():
        for sentence in sentences(printable(name), base.memory[name], choices[name], results):
            print(sentence)
    for sentence in free_memory(choices, target):
        print(sentence)
    print(f"{'Replaced' if replaced else 'Written'}: {printable(str(base.file))}")
    if base.others:
        kind = "2D" if 3 in trainer.axes else "3D"
        print(f"Not planned, as they are {kind}: {', '.join(map(printable, base.others))}.")
    print("Train with:")
    for name in choices:
        print("  " + shlex.join(["nnUNetv2_train", args.d, name, "0", "-tr", args.tr, "-p", name_of_plans(trainer)]))
    return 0
