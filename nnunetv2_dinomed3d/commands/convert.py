"""``dinomed3d convert``: checkpoints of the released DINO-Med3D code become checkpoints of this plugin.

Stage 1 becomes a file from which stage 2 starts. Stage 2 becomes a file for ``-pretrained_weights`` or, with plans and
``dataset.json``, a model folder that nnU-Net predicts with. Variant, classes and K are read from the checkpoint.

With ``--for``, a checkpoint of a training here becomes one for another data set, see `convert_for`.
"""

import argparse
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_dinomed3d.commands.convert_for import NextTraining, convert_for
from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE
from nnunetv2_dinomed3d.written import written_whole

if TYPE_CHECKING:
    from nnunetv2_dinomed3d.weights import ReferenceCheckpoint

HELP = "Convert a checkpoint of the released DINO-Med3D code, or fit one of a training here to another data set."
EXAMPLES = """
dinomed3d convert stage1_best.pth -o stage1.pth
dinomed3d convert stage2_best.pth -o MODEL --plans nnUNetPlans.json --dataset-json dataset.json
dinomed3d convert checkpoint_final.pth --for 4 -tr nnUNetTrainerDINOMed3D_S_K5 -o start.pth
"""
PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class ConversionTarget:
    """The data set and configuration that a model folder is made for.

    Attributes:
        plans: file of nnU-Net's plans.
        dataset_json: file ``dataset.json``.
        configuration: name of a configuration in the plans.
    """

    plans: Path
    dataset_json: Path
    configuration: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the place to write to, what a model folder needs, and the training that starts from it."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="IN",
        help="stage1_best.pth or stage2_best.pth; with --for, a checkpoint of a training here or of stock nnU-Net",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file or model folder to write")
    parser.add_argument("--plans", type=Path, metavar="FILE", help="nnU-Net's plans: write a model folder")
    parser.add_argument("--dataset-json", type=Path, metavar="FILE", help="dataset.json: write a model folder")
    parser.add_argument(
        "-c",
        "--configuration",
        default="3d_fullres",
        metavar="NAME",
        help="configuration of the plans (default: %(default)s)",
    )
    fit = parser.add_argument_group(
        "another data set",
        "nnU-Net's -pretrained_weights takes a checkpoint of the same network alone.\n"
        "With --for, the network that -tr builds for DATASET is filled as far as IN goes,\n"
        "for other numbers of channels, classes and slices in a slab (K) and another patch.\n"
        "What is taken, spread, left random or not used is printed, and listed in OUT.",
    )
    fit.add_argument("--for", dest="dataset", metavar="DATASET", help="number or name of nnU-Net's data set")
    fit.add_argument("-tr", metavar="TRAINER", help="trainer that will start from OUT")
    fit.add_argument("-p", metavar="PLANS", help=f"plans of DATASET (default: {PLANS})")


def run(args: argparse.Namespace) -> int:
    """Convert the checkpoint and say how to use the result.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: the checkpoint is none of the released code, is incomplete or does not fit the plans; or the place
            to write to exists already. Or, with ``--for``, see `convert_for`.
    """
    _check_options(args)
    if (args.plans is None) != (args.dataset_json is None):
        raise ValueError("A model folder needs both --plans and --dataset-json. Give both, or none to write a file.")
    source, out = args.checkpoint, args.out
    if os.path.lexists(out):
        raise ValueError(f"{out} exists and is not written over. Name another place with -o.")
    if not os.path.isfile(source):
        raise ValueError(f"{source} is no file. Name a checkpoint.")
    if args.dataset is not None:
        convert_for(source, out, NextTraining(args.dataset, args.configuration, args.p or PLANS, args.tr))
        return 0
    target = ConversionTarget(args.plans, args.dataset_json, args.configuration) if args.plans else None
    with written_whole(out) as path:
        stage, trainer = _convert(source, out, path, target)
    quoted = shlex.quote(str(out))
    if target:
        print(f"Model folder: {out}")
        print(f"To predict: nnUNetv2_predict_from_modelfolder -m {quoted} -f all -i INPUT -o OUTPUT")
    elif stage == 1:
        print(f"File: {out}")
        print(f"To start stage 2 from it: export {STAGE1_VARIABLE}={shlex.quote(str(out.absolute()))}")
    else:
        print(f"File: {out}")
        print(f"To go on from it: nnUNetv2_train ... -tr {trainer} -pretrained_weights {quoted}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.dataset is None:
        alone = [option for option, value in (("-tr", args.tr), ("-p", args.p)) if value is not None]
        if alone:
            raise ValueError(f"{alone[0]} goes with --for DATASET alone: name the data set, or leave it out.")
        return
    if args.tr is None:
        raise ValueError("--for needs the trainer that will start from OUT: name it with -tr.")
    if args.plans is not None or args.dataset_json is not None:
        raise ValueError("--for goes with neither --plans nor --dataset-json: it finds them by DATASET and -p.")
    if args.p is not None and (Path(args.p).name != args.p or not args.p.isprintable()):
        raise ValueError(f"-p {args.p!r} is no name of plans, such as {PLANS}")


def _convert(source: Path, out: Path, path: Path, target: ConversionTarget | None) -> tuple[int, str]:
    """Write the converted checkpoint to `path`, which becomes `out`; return its stage and the name of its trainer."""
    import torch

    from nnunetv2_dinomed3d.trainers.registry import trainer_class
    from nnunetv2_dinomed3d.weights import describe_reference, read_reference
    from nnunetv2_dinomed3d.weights.conversion import convert_state_dict, matching_variant
    from nnunetv2_dinomed3d.weights.files import sha256, shortened

    state = read_reference(source)
    found = describe_reference(state)
    if target and found.stage == 1:
        raise ValueError(
            f"{source} is of stage 1, which alone makes no model folder. Leave --plans and --dataset-json out."
        )
    variant = matching_variant(found)
    trainer = trainer_class(_trainer_name(variant, found.slab_depth)).__name__
    init_args = _fitting_init_args(target, found) if target else {}
    checkpoint = {
        "network_weights": convert_state_dict(state, found, variant),
        "trainer_name": trainer,
        "init_args": {**init_args, "converted_from": {"file": source.name, "sha256": sha256(source)}},
        "inference_allowed_mirroring_axes": None,  # the released code predicts each volume once
    }
    print(
        f"{source.name}: stage {found.stage}, variant {variant}, {found.num_classes} classes, K = {found.slab_depth}. "
        f"Its trainer here is {trainer}."
    )
    try:
        if target:
            _write_model_folder(path, checkpoint, target)
        else:
            torch.save(checkpoint, path)
    except (OSError, RuntimeError) as error:  # PyTorch says of a full disk with the latter
        raise ValueError(f"{out} could not be written ({shortened(error)}). Nothing is left of it.") from error
    return found.stage, trainer


def _trainer_name(variant: str, slab_depth: int) -> str:
    """The name of the trainer with the released code's recipe, of this size and K."""
    from nnunetv2_dinomed3d.trainers.registry import BASE, SUFFIX_GROUPS, suffix, trainer_class

    sizes = {trainer.variant: suffix(trainer) for trainer in SUFFIX_GROUPS["size"]}
    depth = "" if slab_depth == trainer_class(BASE).slab_depth else f"_K{slab_depth}"
    return f"{BASE}{sizes.get(variant, '')}{depth}_released"


def _fitting_init_args(target: ConversionTarget, found: "ReferenceCheckpoint") -> dict[str, Any]:
    """The trainer's arguments, which nnU-Net's checkpoints hold.

    Raises:
        ValueError: the plans are malformed, or the checkpoint does not fit them.
    """
    from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale
    from nnunetv2_dinomed3d.planning.planned_network import PlannedInput
    from nnunetv2_dinomed3d.weights.conversion import PAPER_PATCH

    planned = PlannedInput.read(target.plans, target.configuration, target.dataset_json)
    patch_size = planned.patch_size
    if len(patch_size) != 3 or in_plane_scale(patch_size) != 1:
        raise ValueError(
            f"{target.configuration} of {target.plans} has the patch size {list(patch_size)}. The released code's "
            f"networks have in-plane scale 1, which needs a 3D patch with a side of 363 or more voxels; the paper's "
            f"patch is {list(PAPER_PATCH)}. Set patch_size in the plans to that of the training."
        )
    channels, heads = planned.channels.total, planned.num_classes
    if (channels, heads) != (1, found.num_classes):
        raise ValueError(
            f"The checkpoint has 1 image channel and {found.num_classes} classes, {target.dataset_json} with these "
            f"plans {channels} and {heads}: it is of another data set."
        )
    return {
        "plans": read_json(target.plans),
        "configuration": target.configuration,
        "fold": "all",
        "dataset_json": read_json(target.dataset_json),
    }


def _write_model_folder(folder: Path, checkpoint: dict[str, Any], target: ConversionTarget) -> None:
    import torch

    fold = folder / "fold_all"
    fold.mkdir(parents=True)
    shutil.copy(target.plans, folder / "plans.json")
    shutil.copy(target.dataset_json, folder / "dataset.json")
    torch.save(checkpoint, fold / "checkpoint_final.pth")
