"""Files of an export: which format a suffix means, what lies beside, and what must be installed. Without PyTorch."""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from nnunetv2_dinomed3d.nnunet_files import folds_in

Format = Literal["onnx", "torch.export"]

FORMATS: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch.export"}
"""Suffix of a file -> its format."""

ONNX_PACKAGES = ("onnx", "onnxscript")
"""What writes ONNX. onnxruntime, which runs it, is needed only for the check."""

INSTALL = 'pip install "nnunetv2_dinomed3d[export]"'


def description_of(file: Path) -> Path:
    """The JSON beside an exported network."""
    return file.with_suffix(".json")


def data_of(file: Path) -> Path:
    """The second file of an ONNX network of more than 2 GB: its weights."""
    return file.with_name(f"{file.name}.data")


def require_writable(file: Path) -> Format:
    """The format of a file to write.

    Raises:
        ValueError: its suffix is no format's, it or a file beside it exists, or a package that writes it is missing.
    """
    if file.suffix not in FORMATS:
        raise ValueError(f"-o {file}: the suffix is the format. Name a file that ends with {' or '.join(FORMATS)}.")
    for path in (file, description_of(file), data_of(file)):
        if os.path.lexists(path):
            raise ValueError(f"{path} exists and is not written over. Remove it, or name another file with -o.")
    if FORMATS[file.suffix] == "onnx":
        missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
        if missing:
            raise ValueError(
                f"Writing ONNX needs {' and '.join(missing)}, not installed: {INSTALL}, or name a file that ends with "
                ".pt2."
            )
    return FORMATS[file.suffix]


def checkpoint_file(model: Path, fold: str, name: str) -> Path:
    """The file of a checkpoint in a model's folder.

    Raises:
        ValueError: the file does not exist, or a name is none of nnU-Net's.
    """
    if not re.fullmatch("[0-9]+|all", fold):
        raise ValueError(f"-f {fold!r} is no fold: give its number, or all.")
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise ValueError(f"-chk {name!r} is no name: give that of a file in the fold, such as checkpoint_best.pth.")
    if not model.is_dir():
        raise ValueError(f"{model} is no folder. Name a model's, nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION.")
    file = model / f"fold_{fold}" / name
    if not file.exists():
        there = ", ".join(folds_in(model))
        folds = f"there are the folds {there}" if there else "it has no folds"
        raise ValueError(f"{file} does not exist ({folds}). Train it first, or check MODEL, -f and -chk.")
    return file
