"""Where pretrained weights come from: the file that ``DINOMED3D_WEIGHTS`` names, else the Hugging Face Hub."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from torch import Tensor

from nnunetv2_dinomed3d.weights.check import as_float32, check_shapes
from nnunetv2_dinomed3d.weights.files import (
    GOOD_FILES,
    WEIGHTS_VARIABLE,
    check_against_name,
    read_tensors,
    sha256,
    shortened,
)
from nnunetv2_dinomed3d.weights.formats import to_timm

RANDOM = "random"
HUB_FILE = "model.safetensors"

HUB_TIMEOUT = 5.0
"""Seconds that the Hub has for each answer about the file; huggingface_hub 2 asks six times, with pauses of 23 s."""


class WeightsUnavailableError(RuntimeError):
    """The Hub did not give the weights."""


@dataclass(frozen=True)
class PretrainedWeights:
    """Complete weights of a 2D DINOv3 ViT.

    Attributes:
        tensors: by timm's names, float32, on the CPU.
        file: name of the file, without its folder; for one from the Hub, repository and name.
        sha256: of the whole file.
        format: ``meta``, ``timm`` or ``transformers``.
    """

    tensors: dict[str, Tensor]
    file: str
    sha256: str
    format: str

    def report(self) -> str:
        """One line for the training log."""
        return (
            f"Pretrained weights: {len(self.tensors)} tensors from {self.file} ({self.format} format, "
            f"SHA-256 {self.sha256})"
        )


@dataclass(frozen=True)
class WeightsSetting:
    """What a training would start from.

    Attributes:
        source: where the weights come from.
        available: whether they are there without a network (whether they fit is not known).
        description: one line for people.
    """

    source: Literal["random", "file", "hub"]
    available: bool
    description: str


def load_pretrained_weights(vit_name: str, expected: Mapping[str, tuple[int, ...]]) -> PretrainedWeights | None:
    """Weights to start a training from; None only if ``DINOMED3D_WEIGHTS`` is ``random``.

    Args:
        vit_name: timm's name of the ViT, e.g. ``vit_base_patch16_dinov3``; a tag (``.sat493m``) may follow.
        expected: name (timm's) and shape of every tensor that the network needs.

    Raises:
        ValueError: the file does not exist, cannot be read, or does not fit; the message says why and what to do.
        WeightsUnavailableError: the variable is not set, and the Hub did not give the file.
    """
    value = _variable()
    if value == RANDOM:
        return None
    if value:
        path = _existing(value)
        return _load(path, path.name, vit_name, expected)
    repository = _hub_repository(vit_name)
    return _load(_from_hub(repository), f"{repository}/{HUB_FILE}", vit_name, expected)


def weights_setting(vit_name: str) -> WeightsSetting:
    """What `load_pretrained_weights` would do, told without a network and without opening a file.

    Raises:
        ValueError: the variable is not set, and timm knows no weights of this ViT.
    """
    value = _variable()
    if value == RANDOM:
        return WeightsSetting("random", True, f"random weights, as {WEIGHTS_VARIABLE}={RANDOM} asks for")
    if value:
        try:
            return WeightsSetting("file", True, f"the file {_existing(value)} ({WEIGHTS_VARIABLE})")
        except ValueError as error:
            return WeightsSetting("file", False, str(error))
    repository = _hub_repository(vit_name)
    cached = _in_hub_cache(repository) is not None
    state = "in the local cache" if cached else "to be downloaded when training starts"
    return WeightsSetting("hub", cached, f"{repository}/{HUB_FILE} of the Hugging Face Hub, {state}")


def _variable() -> str:
    return os.environ.get(WEIGHTS_VARIABLE, "").strip()


def _existing(value: str) -> Path:
    path = Path(os.path.expanduser(value))
    if not path.is_file():
        reason = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{WEIGHTS_VARIABLE} is {value!r}, which {reason}. Set it to the path of a file with DINOv3 weights "
            f"({GOOD_FILES}), to the word {RANDOM} for no pretrained weights, or unset it for those of the Hugging "
            "Face Hub."
        )
    return path


def _load(path: Path, file: str, vit_name: str, expected: Mapping[str, tuple[int, ...]]) -> PretrainedWeights:
    state = read_tensors(path)
    checksum = sha256(path)
    check_against_name(path, checksum)
    try:
        format_name, renamed = to_timm(state)
        check_shapes({name: tuple(tensor.shape) for name, tensor in renamed.items()}, expected, vit_name)
        tensors = as_float32(renamed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return PretrainedWeights(tensors, file, checksum, format_name)


def _hub_repository(vit_name: str) -> str:
    from timm.models import get_pretrained_cfg  # slow to import, and needed for the Hub only

    try:
        config = get_pretrained_cfg(vit_name)
    except RuntimeError:  # timm's answer to a tag that the model does not have
        config = None
    if config is None or not config.hf_hub_id:
        raise ValueError(
            f"timm knows no pretrained weights of {vit_name!r}. Set {WEIGHTS_VARIABLE} to a file ({GOOD_FILES}) or to "
            f"the word {RANDOM}."
        )
    return config.hf_hub_id


def _in_hub_cache(repository: str) -> Path | None:
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(repository: str) -> Path:
    """The Hub's file, from the local cache if it is there: then no network is needed."""
    cached = _in_hub_cache(repository)
    if cached:
        return cached
    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # whatever it was (network, access, disk), the ways out are the same
        cause = f", because of {shortened(error.__cause__)}" if error.__cause__ else ""
        raise WeightsUnavailableError(
            f"{HUB_FILE} of {repository} could not be fetched from the Hugging Face Hub ({shortened(error)}{cause}). "
            f"Download that file from https://huggingface.co/{repository} on a machine with internet, or this ViT's "
            f".pth from Meta, and set {WEIGHTS_VARIABLE}=/path/to/file. To train from random weights on purpose, set "
            f"{WEIGHTS_VARIABLE}={RANDOM}."
        ) from error
