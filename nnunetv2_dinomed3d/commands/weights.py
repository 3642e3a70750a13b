"""``dinomed3d weights``: pretrained weights for a machine without internet, or what a file of weights is."""

import argparse
import os
import shlex
from pathlib import Path

from nnunetv2_dinomed3d.settings import WEIGHTS_VARIABLE

HELP = "Download the pretrained weights of a variant and check them, or say what a file of weights is."
EXAMPLES = """
dinomed3d weights base
dinomed3d weights --check model.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a variant, or the file to check."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("variant", nargs="?", metavar="VARIANT", help="size of the network, such as base")
    task.add_argument("--check", type=Path, metavar="FILE", help="describe this file or folder of weights instead")


def run(args: argparse.Namespace) -> int:
    """Fetch or check.

    Returns:
        The exit code: 0, or 1 if the checked file cannot be used.

    Raises:
        ValueError: no such variant, or a file that is missing, damaged or holds no tensors.
        WeightsUnavailableError: the Hub did not give the file.
    """
    return fetch(args.variant) if args.check is None else check(args.check)


def fetch(variant: str) -> int:
    """Fetch a variant's weights from the Hugging Face Hub or its local cache, and say how to use them elsewhere."""
    from nnunetv2_dinomed3d.weights import fetch_from_hub, hub_name, load_weights
    from nnunetv2_dinomed3d.weights.report import pretrained_shapes, pretrained_variants

    vit_name = pretrained_variants().get(variant)
    if vit_name is None:
        raise ValueError(
            f"{variant!r} is no variant with pretrained weights. Choose one of {', '.join(pretrained_variants())}."
        )
    print(f"{hub_name(vit_name)}, from the Hugging Face Hub or its local cache ...", flush=True)
    path = fetch_from_hub(vit_name)
    weights = load_weights(path, vit_name, pretrained_shapes(variant))
    print(f"All {len(weights.tensors)} tensors fit the variant {variant}.")
    print(f"file: {path}")
    print(f"SHA-256: {weights.sha256}")
    print("Training on this machine finds the file by itself. For a machine without internet, copy the file (with")
    print(f"cp -L, as it may be a link), and run there: export {WEIGHTS_VARIABLE}=/path/to/{shlex.quote(path.name)}")
    return 0


def check(path: Path) -> int:
    """Print what a file or folder of weights is, and which variants it fits."""
    if not os.path.exists(path):
        raise ValueError(f"{path} does not exist. Name a file or folder of weights.")
    from nnunetv2_dinomed3d.weights.report import describe_weights

    report = describe_weights(path)
    print("\n".join(report.lines))
    return 0 if report.usable else 1
