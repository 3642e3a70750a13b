"""Files of weights: what kind they are, their tensors, their checksum. No code in a file is ever run."""

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS_VARIABLE = "DINOMED3D_WEIGHTS"

GOOD_FILES = "Meta's .pth, or a .safetensors of timm or Hugging Face transformers"
_FIX = f"Download it again, or set {WEIGHTS_VARIABLE} to other DINOv3 weights: {GOOD_FILES}."


def shortened(error: BaseException) -> str:
    """Class and first line of an exception, at most 200 characters."""
    line = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {line}"
    return text if len(text) <= 200 else f"{text[:197]}..."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a PyTorch file that holds a dict of tensors and nothing else.

    The content decides which it is, not the name.

    Raises:
        ValueError: the file is damaged, of another kind, or holds something else.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"{path} is empty. {_FIX}")
    # safetensors: 8 bytes that say how long the header is, then the header, in JSON
    is_safetensors = start[8:9] == b"{"
    # PyTorch: a zip archive, or (before 1.6) a pickle
    if not is_safetensors and not start.startswith((b"PK", b"\x80")):
        raise ValueError(f"{path} is neither a safetensors nor a PyTorch file: it starts with {start!r}. {_FIX}")
    try:
        if is_safetensors:
            content = load_file(path)
        else:
            with path.open("rb") as file:  # not by its path: PyTorch would go by the ending
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "is damaged or holds more than plain tensors, such as a whole model or code (which is never run here)"
        raise ValueError(f"{path} {reason}. {_FIX}") from error
    except Exception as error:  # PyTorch complains of damaged files with almost any class
        raise ValueError(f"{path} is damaged or of another kind ({shortened(error)}). {_FIX}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors. {_FIX}")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        keys = ", ".join(str(name) for name in list(content)[:8])
        raise ValueError(
            f"{path} is not a plain dict of tensors: the first of its {len(content)} top-level keys are {keys}. If one "
            f"of them holds the ViT's tensors, save that part alone with torch.save. {_FIX}"
        )
    return dict(content)


def sha256(path: Path) -> str:
    """Checksum of the whole file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_against_name(path: Path, checksum: str) -> None:
    """Meta's file names end with the first 8 digits of the SHA-256: ``dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth``.

    Raises:
        ValueError: the name has Meta's form, but the content is not what it says.
    """
    match = re.fullmatch(r"dinov3_\w+_pretrain_\w+-([0-9a-f]{8})\.pth", path.name)
    if match and not checksum.startswith(match[1]):
        raise ValueError(
            f"{path} should have a SHA-256 that starts with {match[1]}, as its name says; it is {checksum}. "
            "The download is damaged: repeat it. If it is a file of your own, give it another name."
        )
