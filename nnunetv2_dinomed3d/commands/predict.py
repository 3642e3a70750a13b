"""``dinomed3d predict``: nnU-Net's prediction in less time and memory, for our trainers and nnU-Net's own."""

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_dinomed3d.nnunet_files import dataset_name, model_folder
from nnunetv2_dinomed3d.text import printable

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

HELP = "Predict segmentations as nnUNetv2_predict does, in less time and memory."
EXAMPLES = """
dinomed3d predict -i imagesTs -o predictions -d 4 -c 3d_fullres -tr nnUNetTrainerDINOMed3D -f 0
dinomed3d predict -i imagesTs -o predictions -m MODEL -f all -device cpu
dinomed3d predict -i imagesTs -o predictions -d 4 -c 3d_fullres -f 0 1 2 3 4 --memory 16
"""

FOLDS = ["0", "1", "2", "3", "4"]
MEMORY = 4.0
DEVICES = ("cuda", "cpu", "mps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of nnUNetv2_predict and nnUNetv2_predict_from_modelfolder, and the memory."""
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="images, named as nnU-Net names them")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="where segmentations are written")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("-d", metavar="DATASET", help="number or name of the data set the model was trained on")
    model.add_argument("-m", type=Path, metavar="MODEL", help="folder of the model, instead of -d, -tr, -p and -c")
    parser.add_argument("-p", metavar="PLANS", help="plans (default: nnUNetPlans)")
    parser.add_argument("-tr", metavar="TRAINER", help="trainer (default: nnUNetTrainer)")
    parser.add_argument("-c", metavar="CONFIG", help="configuration, needed with -d")
    parser.add_argument(
        "-f", nargs="+", default=FOLDS, metavar="FOLD", help="folds whose mean is taken, or all (default: 0 1 2 3 4)"
    )
    parser.add_argument(
        "-step_size", type=float, default=0.5, metavar="S", help="distance of windows in patches (default: %(default)s)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="predict no mirrored windows")
    parser.add_argument("--verbose", action="store_true", help="print what nnU-Net says of preprocessing and windows")
    parser.add_argument("--save_probabilities", action="store_true", help="also write CASE.npz and CASE.pkl")
    parser.add_argument(
        "--continue_prediction", "--c", action="store_true", help="leave cases whose files are there and whole"
    )
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint of the folds (default: %(default)s)"
    )
    for option, variable, what in (("-npp", "nnUNet_npp", "read"), ("-nps", "nnUNet_nps", "written")):
        parser.add_argument(
            option, type=int, metavar="N", help=f"threads in which cases are {what} (default: ${variable}, or 3)"
        )
    parser.add_argument(
        "-prev_stage_predictions", type=Path, metavar="FOLDER", help="segmentations of a cascade's previous stage"
    )
    parser.add_argument("-num_parts", type=int, default=1, metavar="N", help="calls that share the cases (default: 1)")
    parser.add_argument("-part_id", type=int, default=0, metavar="I", help="number of this call, from 0 (default: 0)")
    parser.add_argument("-device", choices=DEVICES, default="cuda", help="where the network runs (default: cuda)")
    parser.add_argument("--disable_progress_bar", action="store_true", help="show no progress bar")
    parser.add_argument("--not_on_device", action="store_true", help="keep images and sums in the CPU's memory")
    parser.add_argument(
        "--memory",
        type=float,
        default=MEMORY,
        metavar="GB",
        help="for cases read ahead, waiting logits, slabs' features and a case's arrays, beside network and images "
        "(default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Predict the cases and print the path of each segmentation; return 0.

    Raises:
        ValueError: an argument or a file is wrong.
    """
    folds = parse_folds(args.f)
    readers, writers = _threads(args.npp, "-npp", "nnUNet_npp"), _threads(args.nps, "-nps", "nnUNet_nps")
    _require_sizes(args)
    model = find_model(args)
    # imported after the first checks, as PyTorch and nnU-Net take seconds
    from nnunetv2_dinomed3d.prediction.cases import find_cases, is_predicted
    from nnunetv2_dinomed3d.prediction.model import load_model, make_predictor, require_checkpoints
    from nnunetv2_dinomed3d.prediction.output import write_descriptions
    from nnunetv2_dinomed3d.prediction.pipeline import CasePredictor, Resources, predict_cases

    require_checkpoints(model, folds, args.chk)
    predictor = make_predictor(
        args.device,
        step_size=args.step_size,
        mirror=not args.disable_tta,
        sums_on_device=not args.not_on_device,
        verbose=args.verbose,
    )
    load_model(predictor, model, folds, args.chk)
    require_previous(predictor, args.prev_stage_predictions)
    ending = predictor.dataset_json["file_ending"]
    names = predictor.dataset_json.get("channel_names") or predictor.dataset_json["modality"]
    cases = find_cases(args.i, ending, len(names), args.prev_stage_predictions)[args.part_id :: args.num_parts]
    args.o.mkdir(parents=True, exist_ok=True)
    if args.continue_prediction:
        there = [case for case in cases if is_predicted(case, args.o, ending, args.save_probabilities)]
        print(f"{len(there)} of {len(cases)} cases are predicted already.")
        cases = [case for case in cases if case not in there]
    write_descriptions(args.o, predictor, _nnunets_arguments(args, readers, writers))
    resources = Resources(int(args.memory * 1e9), readers, writers)
    case_predictor = CasePredictor(
        predictor,
        args.o,
        resources,
        save_probabilities=args.save_probabilities,
        progress=not args.disable_progress_bar,
    )
    for path in predict_cases(cases, case_predictor):
        print(printable(f"{path}{ending}"), flush=True)
    return 0


def parse_folds(words: Sequence[str]) -> list[str]:
    """The folds, each once and in nnU-Net's spelling.

    Raises:
        ValueError: a word is no fold, or a fold is named twice.
    """
    for word in words:
        if word != "all" and not re.fullmatch("[0-9]{1,9}", word):
            raise ValueError(f"-f {word!r} is no fold: give numbers from 0 on, or all.")
    folds = [word if word == "all" else str(int(word)) for word in words]
    if len(set(folds)) < len(folds):
        raise ValueError(f"-f {' '.join(words)} names a fold twice: name each once.")
    return folds


def find_model(args: argparse.Namespace) -> Path:
    """The folder of the model that the arguments name.

    Raises:
        ValueError: they do not go together, or there is no such data set.
    """
    named = {"-p": args.p, "-tr": args.tr, "-c": args.c}
    if args.m is not None:
        given = [option for option, value in named.items() if value is not None]
        if given:
            raise ValueError(f"{given[0]} does not go with -m, which names the model's folder: leave it out.")
        return args.m
    if args.c is None:
        raise ValueError("-d needs -c, the configuration, such as -c 3d_fullres.")
    for option, value in named.items():
        if value is not None and (value != os.path.basename(value) or value in ("", ".", "..")):
            raise ValueError(f"{option} {value!r} is no name, which has no slash; -m names the folder of a model.")
    return model_folder(dataset_name(args.d), args.tr or "nnUNetTrainer", args.p or "nnUNetPlans", args.c)


def require_previous(predictor: "nnUNetPredictor", folder: Path | None) -> None:
    """Refuse a cascade without the segmentations of its previous stage, and those for what is no cascade.

    Raises:
        ValueError: so it is.
    """
    previous = predictor.configuration_manager.previous_stage_name
    if previous is not None and folder is None:
        raise ValueError(f"The model goes on from {previous}: name its segmentations with -prev_stage_predictions.")
    if previous is None and folder is not None:
        raise ValueError(f"-prev_stage_predictions {folder}: the model is no cascade. Leave it out.")


def _require_sizes(args: argparse.Namespace) -> None:
    if not 0 < args.step_size <= 1:
        raise ValueError(f"-step_size {args.step_size:g}: give more than 0 and at most 1, in patches.")
    if not 0 <= args.part_id < args.num_parts:
        raise ValueError(f"-part_id {args.part_id} of -num_parts {args.num_parts}: parts count from 0.")
    if not (math.isfinite(args.memory) and args.memory >= 0):
        raise ValueError(f"--memory {args.memory:g}: give a number of GB, such as {MEMORY:g}.")


def _threads(given: int | None, option: str, variable: str) -> int:
    """How many threads: as given, else by nnU-Net's environment variable, else 3."""
    value = os.environ.get(variable) or "3"
    if given is None and not value.isdecimal():
        raise ValueError(f"{variable} is {value!r}: set it to a number of threads, or unset it.")
    number = int(value) if given is None else given
    if number < 0:
        raise ValueError(f"{option} {number}: give 0 or more threads.")
    return number


def _nnunets_arguments(args: argparse.Namespace, readers: int, writers: int) -> dict[str, object]:
    """What nnU-Net writes about a prediction, by its names."""
    previous = args.prev_stage_predictions
    return {
        "list_of_lists_or_source_folder": str(args.i),
        "output_folder_or_list_of_truncated_output_files": str(args.o),
        "save_probabilities": args.save_probabilities,
        "overwrite": not args.continue_prediction,
        "num_processes_preprocessing": readers,
        "num_processes_segmentation_export": writers,
        "folder_with_segs_from_prev_stage": None if previous is None else str(previous),
        "num_parts": args.num_parts,
        "part_id": args.part_id,
    }
