"""Pretrained weights come from what ``DINOMED3D_WEIGHTS`` names, else from the Hugging Face Hub."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import huggingface_hub
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, shapes_of
from nnunetv2_dinomed3d.settings import WEIGHTS_ENDINGS
from nnunetv2_dinomed3d.weights.check import as_float32, check_vit_shapes
from nnunetv2_dinomed3d.weights.files import (
    GOOD_FILES,
    INDEX_FILE,
    WEIGHTS_FILE,
    WEIGHTS_VARIABLE,
    read_tensors,
    sha256,
    shortened,
    verify_meta_checksum,
    weight_files,
)
from nnunetv2_dinomed3d.weights.formats import has_qkv_bias, to_timm

RANDOM = "random"

LIGHTLY_TRAIN_VIT = "vit_tiny_patch16_dinov3"
"""The tiny ViT, which Meta and timm do not have."""

HUB_TIMEOUT = 5.0
"""Seconds that the Hub has for each answer about a file."""


class WeightsUnavailableError(RuntimeError):
    """The Hub did not give the weights."""


@dataclass(frozen=True)
class PretrainedWeights:
    """Complete weights of a 2D DINOv3 ViT.

    Attributes:
        tensors: by timm's names, float32, on the CPU.
        file: name of the file or folder, without the folders above it; for a file from the Hub, repository and name.
        sha256: of the whole file; of a folder's files, see `files.sha256`, in the order of their names.
        format: ``meta``, ``timm``, ``transformers``, ``teacher`` (of a training with DINOv3's code, such as MedDINOv3)
            or ``dinomed3d`` (a checkpoint of this plugin).
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
    """The weights that a training would start from.

    Attributes:
        source: kind of place that they come from.
        available: whether they are there without a network connection; whether they fit is not known.
        description: one line for people.
    """

    source: Literal["random", "file", "hub"]
    available: bool
    description: str


def read_pretrained(vit_name: str, expected: Mapping[str, Shape]) -> PretrainedWeights | None:
    """Read the weights that a training starts from; None only if ``DINOMED3D_WEIGHTS`` is ``random``.

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
        path = existing_weights(value)
        try:
            return load_weights(_file_for(path, vit_name, expected), vit_name, expected)
        except ValueError as error:
            raise ValueError(f"{WEIGHTS_VARIABLE}: {error}") from error
    return replace(load_weights(fetch_from_hub(vit_name), vit_name, expected), file=hub_name(vit_name))


def weights_setting(vit_name: str) -> WeightsSetting:
    """Say what `read_pretrained` would do, without a network connection and without opening the weights.

    Raises:
        ValueError: the variable is not set, and timm knows no weights of this ViT.
    """
    value = _variable()
    if value == RANDOM:
        return WeightsSetting("random", True, f"random weights, as {WEIGHTS_VARIABLE}={RANDOM} asks for")
    if value:
        try:
            path = existing_weights(value)
            kind = "folder" if path.is_dir() else "file"
            return WeightsSetting("file", True, f"the {kind} {path} ({WEIGHTS_VARIABLE})")
        except ValueError as error:
            return WeightsSetting("file", False, str(error))
    repository = _hub_repository(vit_name)
    cached = _in_hub_cache(repository) is not None
    state = "in the local cache" if cached else "to be downloaded when training starts"
    return WeightsSetting("hub", cached, f"{repository}/{WEIGHTS_FILE} of the Hugging Face Hub, {state}")


def _variable() -> str:
    return os.environ.get(WEIGHTS_VARIABLE, "").strip()


def existing_weights(
    value: str,
    kinds: str = f"DINOv3 weights ({GOOD_FILES})",
    unset: str = ", or unset it for those of the Hugging Face Hub",
) -> Path:
    """The file or folder that ``DINOMED3D_WEIGHTS`` names.

    Args:
        value: of the variable.
        kinds: files that are wanted, for the error message.
        unset: what unsetting it would do, likewise.

    Raises:
        ValueError: there is no such file, or the folder holds none.
    """
    path = Path(os.path.expanduser(value))
    if not os.path.exists(path):
        raise ValueError(
            f"{WEIGHTS_VARIABLE} is {value!r}, which does not exist. Set it to the path of {kinds}, to the word "
            f"{RANDOM} for no pretrained weights{unset}."
        )
    if not path.is_dir() or not files_in(path):
        try:
            weight_files(path)
        except ValueError as error:
            raise ValueError(f"{WEIGHTS_VARIABLE}: {error}") from error
    return path


def files_in(path: Path) -> list[Path]:
    """Files of which one may be meant: the file itself, or those in a folder of several networks' weights.

    A folder that Hugging Face transformers wrote holds one network in one or more files, and counts as none here.
    """
    if not path.is_dir():
        return [path]
    try:
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    except OSError:
        return []  # `weight_files` says why
    if any(file.name in (WEIGHTS_FILE, INDEX_FILE) for file in files):
        return []
    return [file for file in files if file.suffix in WEIGHTS_ENDINGS and file.is_file()]


def _file_for(path: Path, vit_name: str, expected: Mapping[str, Shape]) -> Path:
    """The path itself; of a folder of several networks' weights, the one file that fits."""
    if not path.is_dir() or not (files := files_in(path)):
        return path
    reasons, fitting = [], []
    for file in files:
        try:
            _, renamed = to_timm(read_tensors(file), has_qkv_bias(expected))
            check_vit_shapes(shapes_of(renamed), expected, vit_name)
            fitting.append(file)
        except ValueError as error:
            reasons.append(f"{file.name}: {shortened(error).partition(': ')[2]}")
    if len(fitting) > 1:
        raise ValueError(f"{' and '.join(file.name for file in fitting)} in {path} both fit {vit_name}: name the one.")
    if not fitting:
        raise ValueError(f"no file in {path} fits {vit_name}. {'; '.join(reasons)}")
    return fitting[0]


def load_weights(path: Path, vit_name: str, expected: Mapping[str, Shape]) -> PretrainedWeights:
    """Read the weights in a file or folder; arguments and errors as of `read_pretrained`."""
    state = read_tensors(path)
    checksum = sha256(*weight_files(path))
    verify_meta_checksum(path, checksum)
    try:
        format_name, renamed = to_timm(state, has_qkv_bias(expected))
        check_vit_shapes(shapes_of(renamed), expected, vit_name)
        tensors = as_float32(renamed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return PretrainedWeights(tensors, path.name, checksum, format_name)


def _hub_repository(vit_name: str) -> str:
    from timm.models import get_pretrained_cfg  # slow to import, and needed for the Hub only

    try:
        config = get_pretrained_cfg(vit_name)
    except RuntimeError:  # timm's answer to a tag that the model does not have
        config = None
    if config is not None and config.hf_hub_id:
        return config.hf_hub_id
    if vit_name == LIGHTLY_TRAIN_VIT:
        raise ValueError(
            f"The Hugging Face Hub has no weights of {vit_name}: LightlyTrain publishes them, as the model "
            "dinov3/vitt16 (https://docs.lightly.ai/train). Export that model's state dict to a .pt or .pth file and "
            f"set {WEIGHTS_VARIABLE} to it, or to the word {RANDOM}."
        )
    raise ValueError(
        f"timm knows no pretrained weights of {vit_name!r}. Set {WEIGHTS_VARIABLE} to a file ({GOOD_FILES}) or to the "
        f"word {RANDOM}."
    )


def hub_name(vit_name: str) -> str:
    """Repository and name of the Hub's file for a ViT. Raises ValueError if timm knows none."""
    return f"{_hub_repository(vit_name)}/{WEIGHTS_FILE}"


def _in_hub_cache(repository: str) -> Path | None:
    cached = huggingface_hub.try_to_load_from_cache(repository, WEIGHTS_FILE)
    return Path(cached) if isinstance(cached, str) else None


def fetch_from_hub(vit_name: str) -> Path:
    """Get the Hub's file for a ViT, from the local cache if it is there: then no network connection is needed.

    Raises:
        ValueError: timm knows no weights of this ViT.
        WeightsUnavailableError: the Hub did not give the file.
    """
    repository = _hub_repository(vit_name)
    cached = _in_hub_cache(repository)
    if cached:
        return cached
    try:
        # asked once, since the download asks six times, with pauses of 23 s
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, WEIGHTS_FILE), timeout=HUB_TIMEOUT)
        return Path(huggingface_hub.hf_hub_download(repository, WEIGHTS_FILE, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # whatever it was (network, access, disk), the ways out are the same
        cause = f", because of {shortened(error.__cause__)}" if error.__cause__ else ""
        raise WeightsUnavailableError(
            f"{WEIGHTS_FILE} of {repository} could not be fetched from the Hugging Face Hub "
            f"({shortened(error)}{cause}). Download that file from https://huggingface.co/{repository} on a machine "
            f"with internet, or this ViT's .pth from Meta, and set {WEIGHTS_VARIABLE}=/path/to/file. To train from "
            f"random weights on purpose, set {WEIGHTS_VARIABLE}={RANDOM}."
        ) from error
