"""``dinomed3d export``: a trained network as ONNX or as a program of torch.export, and what its user must know."""

import argparse
from pathlib import Path

from nnunetv2_dinomed3d.exporting.files import checkpoint_file, require_writable

HELP = "Write a trained network as ONNX or as a program of torch.export, for use without nnU-Net."
EXAMPLES = """
dinomed3d export $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerDINOMed3D__nnUNetPlans__3d_fullres -o net.onnx
dinomed3d export MODEL -f 2 -chk checkpoint_best.pth -o net.pt2 --half
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, named as nnUNetv2_predict_from_modelfolder names it, and the file."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="folder of results, TRAINER__PLANS__CONFIGURATION, that has the folds"
    )
    parser.add_argument(
        "-o", type=Path, required=True, metavar="FILE", help="file to write, .onnx or .pt2; FILE.json is written beside"
    )
    parser.add_argument("-f", default="0", metavar="FOLD", help="fold (default: %(default)s)")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint in the fold (default: %(default)s)"
    )
    parser.add_argument("--half", action="store_true", help="weights and input in float16")


def run(args: argparse.Namespace) -> int:
    """Write the file, check it and say what was written; return 0.

    Raises:
        ValueError: an argument is wrong, the model cannot be read or exported, or the file gives other logits.
    """
    checkpoint = checkpoint_file(args.model, args.f, args.chk)
    require_writable(args.o)
    # imported after the first checks, as PyTorch and nnU-Net take seconds
    from nnunetv2_dinomed3d.exporting.export import export_model
    from nnunetv2_dinomed3d.exporting.model import load_model

    files, check = export_model(load_model(checkpoint), args.o, half=args.half)
    for file in files:
        print(f"Written: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(check)
    return 0
