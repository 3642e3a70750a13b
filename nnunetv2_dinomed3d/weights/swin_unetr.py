"""Pretrained weights of SwinUNETR and VoCo, recognised by what a file holds.

Known are ``model_swinvit.pt`` (the transformer of SwinUNETR), ``VoCo_*_SSL_head.pt`` (transformer and encoders) and
``VoComni_*.pt`` (a whole network). All were made with MONAI before 1.5, so patch merging becomes the legacy one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, misfit, shapes_of
from nnunetv2_dinomed3d.settings import WEIGHTS_VARIABLE
from nnunetv2_dinomed3d.text import join_first
from nnunetv2_dinomed3d.weights.check import as_float32
from nnunetv2_dinomed3d.weights.files import is_state_dict, read_content, sha256
from nnunetv2_dinomed3d.weights.source import RANDOM, existing_weights, files_in

if TYPE_CHECKING:  # MONAI may be missing
    from nnunetv2_dinomed3d.network_architecture.baselines.swin_unetr import SwinUNETR

FILES = "model_swinvit.pt, VoCo_*_SSL_head.pt or VoComni_*.pt"
FIX = f"Download it again, or set {WEIGHTS_VARIABLE} to {FILES}, or to the word {RANDOM}."

WRAPPERS = ("state_dict", "network_weights", "net", "student")
"""Keys under which the files keep the tensors."""

PREFIXES = ("module.", "backbone.")
TRANSFORMER = "swinViT"
WHOLE_ENCODER = re.compile(r"encoder\d+")
HEAD = "out"

PRETRAINING = re.compile(r"norm|conv|convTrans3d|rotation_\w+|contrastive_\w+|\w*head\w*")
"""First part of the names of tensors that only pre-training has."""

FIRST_CONVOLUTIONS = (
    f"{TRANSFORMER}.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)
"""Those that take the image's channels."""


@dataclass(frozen=True)
class SwinWeights:
    """What a file has for a network.

    Attributes:
        tensors: by MONAI's names, of the network's shapes.
        random: parts of the network that the file does not have.
        note: what else was done or left, for the log; empty if nothing.
    """

    tensors: dict[str, Tensor]
    random: list[str]
    note: str


def start_swin_unetr(network: SwinUNETR, name: str, required: bool) -> tuple[str, str]:
    """Fill a network as ``DINOMED3D_WEIGHTS`` says: a file, or a folder of which the one file that fits is taken.

    Args:
        network: to fill.
        name: of the network.
        required: whether an unset variable, or a folder without such a file, is an error; else the weights stay
            random.

    Returns:
        Origin of the weights, for the record, and a message for the log.

    Raises:
        ValueError: weights are required and not there, or a file does not fit.
    """
    value = os.environ.get(WEIGHTS_VARIABLE, "").strip()
    if value == RANDOM:
        return "random weights", f"{WEIGHTS_VARIABLE}={RANDOM}: {name} starts from random weights, as asked for."
    path = existing_weights(value, FILES, unset="") if value else None
    files = [] if path is None else files_in(path)
    found = {file: state for file in files if (state := swin_state(read_content(file, FIX))) is not None}
    if not found and path is not None and not path.is_dir():
        raise ValueError(f"{WEIGHTS_VARIABLE}: {path} holds no weights of a SwinUNETR. {FIX}")
    if not found:
        if required:
            raise ValueError(
                f"{name} starts from pretrained weights, and {_where(value)}. Set {WEIGHTS_VARIABLE} to a file "
                f"({FILES}) or to a folder that holds one, or to the word {RANDOM} to do without."
            )
        return "random weights", f"{name} starts from random weights: {_where(value)}."
    file, weights = _that_fits(found, shapes_of(network.network.state_dict()), name, whole=required)
    network.network.load_state_dict(weights.tensors, strict=False)  # complete or a stated part: see `for_network`
    network.set_merging("legacy")
    network.weights_loaded = True
    total = len(shapes_of(network.network.state_dict()))
    left = f" Random: {', '.join(weights.random)}." if weights.random else ""
    origin = f"{file.name}, SHA-256 {sha256(file)}"
    message = f"Pretrained weights: {len(weights.tensors)} of {total} tensors from {origin}.{left}{weights.note}"
    return origin, f"{message} Patch merging is that of MONAI before 1.5, as the file needs it."


def _where(value: str) -> str:
    if not value:
        return f"{WEIGHTS_VARIABLE} is not set"
    return f"the folder that {WEIGHTS_VARIABLE} names holds no weights of a SwinUNETR"


def _that_fits(
    found: Mapping[Path, dict[str, Tensor]], expected: Mapping[str, Shape], name: str, *, whole: bool
) -> tuple[Path, SwinWeights]:
    """The one file that fits; with several, those of other sizes are passed over."""
    fitting: dict[Path, SwinWeights] = {}
    reasons = []
    for file, state in found.items():
        try:
            fitting[file] = for_network(state, expected, whole)
        except ValueError as error:
            reasons.append(f"{file}: {error}")
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        names = " and ".join(file.name for file in fitting)
        raise ValueError(f"{names} both fit {name}: set {WEIGHTS_VARIABLE} to the one that is meant.")
    raise ValueError(f"{WEIGHTS_VARIABLE}: nothing fits {name}. {' '.join(reasons)} {FIX}")


def swin_state(content: Any) -> dict[str, Tensor] | None:
    """The tensors of a SwinUNETR in the content of a file, by MONAI's names; None if it is something else.

    Raises:
        ValueError: two tensors have one name without their prefixes.
    """
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    if not is_state_dict(content):
        return None
    state = {_monai_name(name): tensor for name, tensor in content.items()}
    if FIRST_CONVOLUTIONS[0] not in state or not any(name.startswith(f"{TRANSFORMER}.layers1.") for name in state):
        return None  # a ViT has a patch embedding too
    if len(state) < len(content):
        raise ValueError("two tensors have one name without their prefixes.")
    return state


def _monai_name(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    name = name.replace("swin_vit.", f"{TRANSFORMER}.", 1) if name.startswith("swin_vit.") else name
    if re.match(r"patch_embed\.|layers\d", name):  # the transformer alone
        name = f"{TRANSFORMER}.{name}"
    return name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def for_network(state: Mapping[str, Tensor], expected: Mapping[str, Shape], whole: bool) -> SwinWeights:
    """Choose and adapt the tensors for a network.

    The file has the transformer, or transformer and encoders, or all. A head for other classes stays random. Where the
    image has more channels than the file's one, the first convolutions are spread over them: each gets a C-th.

    Args:
        state: of `swin_state`.
        expected: names and shapes of the network.
        whole: whether a whole network can be taken. VoCo's can; of another one nobody knows with which order of patch
            merging it was trained.

    Raises:
        ValueError: a part is incomplete, of another shape, or unknown.
    """
    state = {name: value for name, value in state.items() if not name.endswith(".relative_position_index")}
    pretraining = {name for name in state if PRETRAINING.fullmatch(name.partition(".")[0])}
    kept = {name: value for name, value in state.items() if name not in pretraining}
    notes = []
    if pretraining:
        notes.append(f"{len(pretraining)} tensors of its pre-training are left: {join_first(sorted(pretraining))}.")
    channels = expected[FIRST_CONVOLUTIONS[0]][1]
    if kept[FIRST_CONVOLUTIONS[0]].shape[1] == 1 and channels > 1:
        kept |= {
            name: kept[name].expand(-1, channels, -1, -1, -1) / channels for name in FIRST_CONVOLUTIONS if name in kept
        }
        notes.append(f"Its first convolutions are spread over the {channels} channels.")
    head = {name: value for name, value in kept.items() if name.partition(".")[0] == HEAD}
    if head and len(head) == 2 and any(tuple(value.shape) != expected[name] for name, value in head.items()):
        kept = {name: value for name, value in kept.items() if name not in head}
        notes.append("Its head is for other classes.")
    parts = {name.partition(".")[0] for name in kept}
    wanted = {name: shape for name, shape in expected.items() if name.partition(".")[0] in parts}
    if wrong := misfit(shapes_of(kept), wanted):
        raise ValueError(wrong)
    every = list(dict.fromkeys(name.partition(".")[0] for name in expected))
    encoders = {part for part in every if WHOLE_ENCODER.fullmatch(part)}
    if parts not in ({TRANSFORMER}, {TRANSFORMER, *encoders}, set(every) - {HEAD}, set(every)):
        raise ValueError(f"it has only the parts {', '.join(sorted(parts))} of {', '.join(every)}.")
    if not whole and "decoder1" in parts:
        raise ValueError(
            "it is a whole network, and nothing in it says which order of patch merging it was trained with (MONAI "
            "changed it in 1.5). VoComni_*.pt is for the trainers of VoCo, model_swinvit.pt for SwinUNETR's."
        )
    return SwinWeights(as_float32(kept), [part for part in every if part not in parts], "".join(f" {n}" for n in notes))
