"""Files of weights: their kind, their tensors, their checksum. No code in a file is ever run."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import stage_of
from nnunetv2_dinomed3d.settings import WEIGHTS_VARIABLE
from nnunetv2_dinomed3d.weights.archive import open_regular
from nnunetv2_dinomed3d.weights.pickled import PICKLE_LIMIT, NotPlainError, read_archive, read_legacy

SIZE_LIMIT = 32 << 30
"""Most bytes of a file. A checkpoint of the largest variant, ViT-H+, with its optimiser's state has 14 GB."""

WEIGHTS_FILE = "model.safetensors"
"""Name of the file in folders that Hugging Face transformers writes, and in timm's repositories."""

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
    names = ", ".join(printable(key) for key in list(content)[:8]) or "none"
    return names if len(names) <= 400 else f"{names[:397]}..."


def printable(key: object) -> str:
    """Text from a file, in one short line."""
    text = str(key)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def read_content(path: Path, fix: str = _FIX) -> dict[str, Any]:
    """Read a safetensors file, or a PyTorch file that holds a dict of plain data (numpy's scalars included).

    The content decides which of them it is, not the name. Tensors are views of the mapped file: do not write to them.

    Args:
        path: of the file.
        fix: the way out for a file that cannot be read, for the error message.

    Raises:
        ValueError: the file is damaged, of another kind, or holds something else.
    """
    with open_regular(path, fix) as file:
        size = os.fstat(file.fileno()).st_size
        if size > SIZE_LIMIT:
            raise ValueError(f"{path} has {size:,} bytes, weights of DINOv3 less than {SIZE_LIMIT:,}. {fix}")
        start = file.read(16)
        if not start:
            raise ValueError(f"{path} is empty. {fix}")
        # safetensors: 8 bytes that say how long the header is, then the header, in JSON
        is_safetensors = start[8:9] == b"{"
        # PyTorch: a zip archive, or (before 1.6) a pickle
        if not is_safetensors and not start.startswith((b"PK", b"\x80")):
            raise ValueError(f"{path} is neither a safetensors nor a PyTorch file: it starts with {start!r}. {fix}")
        try:
            if is_safetensors:
                _require_header(start, size)
                content = load_file(path)
            else:
                content = read_archive(file) if start.startswith(b"PK") else read_legacy(file)
        except NotPlainError as error:
            raise ValueError(
                f"{path} holds {printable(error)}: more than plain tensors, such as a whole model, or code (which is "
                f"never run here). {fix}"
            ) from error
        except Exception as error:  # damaged files end in almost any class
            raise ValueError(f"{path} is damaged or of another kind ({shortened(error)}). {fix}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors. {fix}")
    return dict(content)


def _require_header(start: bytes, size: int) -> None:
    header = int.from_bytes(start[:8], "little")
    if header > min(size, PICKLE_LIMIT):
        raise ValueError(f"its header shall have {header:,} bytes")


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights: the path itself, or those in a folder as Hugging Face transformers writes it.

    Every file that the folder's index names must be in the folder; a link there may lead out of it, as in the Hub's
    cache.

    Raises:
        ValueError: there is no such file, it is no regular one, or the folder lacks what its index names.
    """
    try:
        if not path.is_dir():
            open_regular(path, _FIX).close()
            return [path]
        if os.path.lexists(path / WEIGHTS_FILE):
            open_regular(path / WEIGHTS_FILE, _FIX).close()
            return [path / WEIGHTS_FILE]
        if os.path.lexists(path / INDEX_FILE):
            return _shards(path)
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}). {_FIX}") from error
    raise ValueError(
        f"{path} is a folder without {WEIGHTS_FILE} (or {INDEX_FILE} and the files it names), which Hugging Face "
        f"transformers and timm write; in it: {found}. Name a folder with that file, or the file itself."
    )


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    with open_regular(index, _FIX) as file:
        text = file.read(PICKLE_LIMIT + 1)
    try:
        if len(text) > PICKLE_LIMIT:
            raise ValueError(f"more than {PICKLE_LIMIT:,} bytes")
        names = sorted(set(json.loads(text)["weight_map"].values()))
        elsewhere = [name for name in names if name in ("", ".", "..") or "/" in name or not name.isprintable()]
        if elsewhere or not names:
            raise ValueError(f"{elsewhere[0]!a} is no name of a file beside it" if elsewhere else "it names no file")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights ({shortened(error)}). {_FIX}") from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing[:3])}: {len(missing)} of the {len(names)} files that {INDEX_FILE} "
            "names. Download the whole folder."
        )
    for name in names:
        open_regular(folder / name, _FIX).close()
    return [folder / name for name in names]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file or folder of weights (see `weight_files`); of a checkpoint, those of its network.

    Raises:
        ValueError: a file is damaged, of another kind, or holds something else.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        found = tensors_of(read_content(file), file)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{path} has the tensor {twice[0]} in two files, {file.name} is one: which to use? {_FIX}")
        tensors |= found
    return tensors


def tensors_of(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The network's tensors in the content of a file: all of it, or the part that a training checkpoint keeps by a key.

    Raises:
        ValueError: something other than tensors is there, or a part of the ViT would be left out.
    """
    part = next((content[key] for key in _PARTS if isinstance(content.get(key), Mapping)), content)
    if not is_state_dict(part):
        raise ValueError(
            f"{path} is not a plain dict of tensors: the first of its {len(content)} top-level keys are "
            f"{first_keys(content)}. If one of them holds the ViT's tensors, save that part alone with torch.save. "
            f"{_FIX}"
        )
    init_args = content.get("init_args")
    if isinstance(init_args, Mapping) and init_args.get("stage1_lora") is True and stage_of(part) == 1:
        raise ValueError(
            f"{path}: its stage 1 trained LoRA in the ViT's place (_loraStage1), which a 2D ViT has not. Start stage 2 "
            "from it with DINOMED3D_STAGE1=FILE, or name a checkpoint of that training's stage 2: there LoRA is folded "
            "into the ViT."
        )
    return dict(part)


def is_state_dict(content: Any) -> bool:
    """Whether it is a dict of names and tensors, and nothing else."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and name.isprintable() and isinstance(value, Tensor) for name, value in content.items()
    )


_CHECKPOINT_FIX = "Copy it again, or name another checkpoint_*.pth of a training in nnUNet_results."


def read_checkpoint(path: Path, fix: str = _CHECKPOINT_FIX) -> dict[str, Any]:
    """A checkpoint that nnU-Net wrote (``checkpoint_*.pth``), read without running code; its tensors on the CPU.

    Raises:
        ValueError: the file is damaged, or something other than a checkpoint of nnU-Net.
    """
    checkpoint = read_content(path, fix)
    kinds = {"init_args": dict, "trainer_name": str}
    if not is_state_dict(checkpoint.get("network_weights")) or not all(
        isinstance(checkpoint.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError(
            f"{path} is not a checkpoint of nnU-Net, which holds network_weights, init_args and trainer_name; its "
            f"top-level keys are {first_keys(checkpoint)}. {fix}"
        )
    return checkpoint


def sha256(*paths: Path) -> str:
    """Checksum of a whole file, 64 hexadecimal digits; of several, as of one file made of them in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def verify_meta_checksum(path: Path, checksum: str) -> None:
    """Compare a file of Meta's with the checksum in its name.

    Meta's names end with the first 8 digits of the SHA-256: ``dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth``.

    Raises:
        ValueError: the name has Meta's form, but the content is not what it says.
    """
    match = re.fullmatch(r"dinov3_\w+_pretrain_\w+-([0-9a-f]{8})\.pth", path.name)
    if match and not checksum.startswith(match[1]):
        raise ValueError(
            f"{path} should have a SHA-256 that starts with {match[1]}, as its name says; it is {checksum}. "
            "The download is damaged: repeat it. If it is a file of your own, give it another name."
        )
