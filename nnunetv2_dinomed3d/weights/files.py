"""Files of weights: what kind they are, their tensors, their checksum. No code in a file is ever run."""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from nnunetv2_dinomed3d.settings import WEIGHTS_VARIABLE

WEIGHTS_FILE = "model.safetensors"
"""Its name in the folders that Hugging Face transformers writes, and in timm's repositories."""

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

GOOD_FILES = (
    "Meta's .pth, a .safetensors of timm or a folder of Hugging Face transformers, a training checkpoint of DINOv3 "
    "such as MedDINOv3's, LightlyTrain's exported state dict, or a checkpoint of this plugin"
)
_FIX = f"Download it again, or set {WEIGHTS_VARIABLE} to other DINOv3 weights: {GOOD_FILES}."

_PARTS = ("teacher", "network_weights", "model_state_dict")
"""Keys under which checkpoints keep the network: of DINOv3's training, of nnU-Net, of the released DINO-Med3D code."""


def shortened(error: BaseException) -> str:
    """Class and first line of an exception, at most 200 characters."""
    line = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {line}"
    return text if len(text) <= 200 else f"{text[:197]}..."


def first_keys(content: Mapping) -> str:
    """The first keys, for an error message."""
    return ", ".join(str(key) for key in list(content)[:8]) or "none"


def read_content(path: Path, fix: str = _FIX, mmap: bool = False) -> dict[str, Any]:
    """What is in a safetensors file, or in a PyTorch file that holds a dict of plain data (numpy's scalars included).

    The content decides which it is, not the name.

    Args:
        path: of the file.
        fix: what to do about a file that cannot be read, for the error message.
        mmap: leave tensors on the disk until they are used, without verifying the archive's checksums.

    Raises:
        ValueError: the file is damaged, of another kind, or holds something else.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"{path} is empty. {fix}")
    # safetensors: 8 bytes that say how long the header is, then the header, in JSON
    is_safetensors = start[8:9] == b"{"
    # PyTorch: a zip archive, or (before 1.6) a pickle
    is_zip = start.startswith(b"PK")
    if not is_safetensors and not is_zip and not start.startswith(b"\x80"):
        raise ValueError(f"{path} is neither a safetensors nor a PyTorch file: it starts with {start!r}. {fix}")
    try:
        if is_safetensors:
            content = load_file(path)
        else:
            # by a path with this ending PyTorch would read a safetensors file
            content = _unpickled(path, mmap and is_zip and path.suffix != ".safetensors")
    except pickle.UnpicklingError as error:
        reason = "is damaged or holds more than plain tensors, such as a whole model or code (which is never run here)"
        raise ValueError(f"{path} {reason}. {fix}") from error
    except Exception as error:  # PyTorch complains of damaged files with almost any class
        raise ValueError(f"{path} is damaged or of another kind ({shortened(error)}). {fix}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors. {fix}")
    return dict(content)


def _unpickled(path: Path, mmap: bool) -> Any:
    """A PyTorch file's content, by PyTorch's unpickler that runs no code and also knows numpy's numbers."""
    scalar = np.float32(0).__reduce__()[0]
    # numpy 2 and numpy 1 write different names of one function; a file of either is read with either
    safe = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")]
    dtypes = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int64", "bool")]
    with torch.serialization.safe_globals([*safe, np.dtype, *dtypes]):
        if mmap:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights: the path itself, or those in a folder as Hugging Face transformers writes it.

    Raises:
        ValueError: the folder has no such file, or not all that its index names.
    """
    if not path.is_dir():
        return [path]
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE]
    index = path / INDEX_FILE
    if not index.is_file():
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{path} is a folder without {WEIGHTS_FILE} (or {INDEX_FILE} and the files it names), which Hugging Face "
            f"transformers and timm write; in it: {found}. Name a folder with that file, or the file itself."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [path / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights ({shortened(error)}). {_FIX}") from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing[:3])}: {len(missing)} of the {len(shards)} files that {INDEX_FILE} "
            "names. Download the whole folder."
        )
    return shards


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file or folder of weights (see `weight_files`), or of the part of a checkpoint with the network.

    Raises:
        ValueError: a file is damaged, of another kind, or holds something else.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        tensors |= tensors_of(read_content(file), file)
    return tensors


def tensors_of(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The network's tensors in the content of a file: all of it, or what a training checkpoint keeps under a key.

    Raises:
        ValueError: something else than tensors is there.
    """
    part = next((content[key] for key in _PARTS if isinstance(content.get(key), Mapping)), content)
    if not is_state_dict(part):
        raise ValueError(
            f"{path} is not a plain dict of tensors: the first of its {len(content)} top-level keys are "
            f"{first_keys(content)}. If one of them holds the ViT's tensors, save that part alone with torch.save. "
            f"{_FIX}"
        )
    return dict(part)


def is_state_dict(content: Any) -> bool:
    """Whether it is a dict of names and tensors, and nothing else."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that nnU-Net wrote (``checkpoint_*.pth``), read without running code; its tensors on the CPU.

    Raises:
        ValueError: the file is damaged, or something else than a checkpoint of nnU-Net.
    """
    fix = "Copy it again, or name another checkpoint_*.pth of a training in nnUNet_results."
    checkpoint = read_content(path, fix, mmap=True)
    if not is_state_dict(checkpoint.get("network_weights")) or not {"init_args", "trainer_name"} <= checkpoint.keys():
        raise ValueError(
            f"{path} is not a checkpoint of nnU-Net, which holds network_weights, init_args and trainer_name; its "
            f"top-level keys are {first_keys(checkpoint)}. {fix}"
        )
    return checkpoint


def sha256(*paths: Path) -> str:
    """Checksum of a whole file, 64 hexadecimal digits; of several, as of one file made of them in this order."""
    digest = hashlib.sha256()
    for path in paths:
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
