"""``dinomed3d look``: a picture for each trainer of what its network sees of a case."""

import argparse
import os
import re
from pathlib import Path

from nnunetv2_dinomed3d.nnunet_files import dataset_name, folds_in, model_folder
from nnunetv2_dinomed3d.written import written_whole

HELP = "Draw what trained networks see of a case: features, gate and prediction."
EXAMPLES = """
dinomed3d look hippocampus_003 -d 4 -tr nnUNetTrainerDINOMed3D
dinomed3d look imagesTs/case_0000.nii.gz -d 4 -tr nnUNetTrainerDINOMed3D --slices 10 20 30 -o pictures
"""

DPI = 150


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the case, the models and what is drawn."""
    parser.add_argument(
        "case", metavar="CASE", help="identifier of a preprocessed case, or a raw image's file (..._0000.nii.gz)"
    )
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of nnU-Net's data set")
    parser.add_argument(
        "-tr", nargs="+", required=True, metavar="TRAINER", help="trainers of DINO-Med3D; each gets a PNG"
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIG", help="configuration (default: %(default)s)")
    parser.add_argument("-f", default="0", metavar="FOLD", help="fold (default: %(default)s)")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint in the fold (default: %(default)s)"
    )
    parser.add_argument(
        "--slices",
        nargs="+",
        type=int,
        metavar="N",
        help="slices of the preprocessed case, along its first axis (default: three of those with a label)",
    )
    parser.add_argument("-o", type=Path, metavar="OUT", help="folder to write (default: look_CASE)")


def run(args: argparse.Namespace) -> int:
    """Write the pictures and say where they are; return 0.

    Raises:
        ValueError: an argument is wrong, or a model or case cannot be read.
    """
    dataset = dataset_name(args.d)
    checkpoints = {
        trainer: checkpoint_file(dataset, trainer, args.p, args.c, fold=args.f, checkpoint=args.chk)
        for trainer in dict.fromkeys(args.tr)
    }
    # imported after the first checks, as PyTorch and nnU-Net take seconds
    from nnunetv2_dinomed3d.look.case import load_case
    from nnunetv2_dinomed3d.look.case_figure import case_figure
    from nnunetv2_dinomed3d.look.model import load_model

    for trainer, checkpoint in checkpoints.items():
        model = load_model(checkpoint)
        predictor = model.predictor
        case = load_case(
            args.case, dataset, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
        out = args.o or Path(f"look_{case.name}")
        picture = out / f"{case.name}__{trainer}.png"
        if picture.is_dir():
            raise ValueError(f"{picture} is a folder. Remove it, or name another folder with -o.")
        with written_whole(picture) as path:
            case_figure(model, case, args.slices).savefig(path, dpi=DPI)
        print(picture)
    return 0


def checkpoint_file(dataset: str, trainer: str, plans: str, configuration: str, *, fold: str, checkpoint: str) -> Path:
    """The file of a checkpoint in nnU-Net's results.

    Raises:
        ValueError: the file does not exist, or a name is none of nnU-Net's.
    """
    for option, name in (("-tr", trainer), ("-p", plans), ("-c", configuration), ("-chk", checkpoint)):
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise ValueError(f"{option} {name!r} is no name. Give the name that nnU-Net's folders have, not a path.")
    if not re.fullmatch("[0-9]+|all", fold):
        raise ValueError(f"-f {fold!r} is no fold: give its number, or all.")
    folder = model_folder(dataset, trainer, plans, configuration)
    file = folder / f"fold_{fold}" / checkpoint
    if not os.path.exists(file):
        folds = f" (there are the folds {', '.join(folds_in(folder))})" if folds_in(folder) else ""
        raise ValueError(f"{file} does not exist{folds}. Train {trainer} first, or check -tr, -p, -c, -f and -chk.")
    return file
