"""Names in the network's state dict: the stage, the parts, LoRA. Only renaming tables of `weights` spell out more.

The names never change: checkpoints of every version load. `misfit` is the one comparison of names and shapes.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar, cast

from torch import Tensor

Stage = Literal[1, 2]
Shape = tuple[int, ...]
Value = TypeVar("Value")

STAGE_KEY = "_extra_state"
"""The stage that the weights are of, an integer tensor: PyTorch's name for a module's extra state."""

ENCODER = "encoder."
VIT = f"{ENCODER}vit."
ICE = f"{ENCODER}ice.conv."
PROXY_HEAD = "proxy_head."
STAGE2_PARTS = ("adapter.", "detail.", "fusion.", "decoder.")
PROXY_LAYER = f"{PROXY_HEAD}seg_layers."
"""The linear head. nnU-Net's ``-pretrained_weights`` skips layers with ``.seg_layers.`` in their names."""

SEGMENTATION_LAYER = "decoder.seg_layers."
BASE_LAYER = "base_layer."
"""peft's name for a layer inside one that carries LoRA."""

LORA = ".lora_"

NO_TENSOR = "no such tensor"


def stage_of(state: Mapping[str, Tensor]) -> Stage | None:
    """The stage that a state dict is of; None if it is no state dict of a `DINOMed3D`.

    The weights of ICE have to be there too, since SwinUNETR has another setting by the stage's name.
    """
    stage = state.get(STAGE_KEY)
    if stage is None or stage.numel() != 1 or not any(name.startswith(ICE) for name in state):
        return None
    return cast(Stage, int(stage)) if stage.item() in (1, 2) else None


def is_lora(name: str) -> bool:
    """Whether this is one of LoRA's matrices."""
    return LORA in name


def without_lora(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict without LoRA, under the names that it has in a network without LoRA."""
    return {name.replace(f".{BASE_LAYER}", "."): value for name, value in state.items() if not is_lora(name)}


def names_without_lora(names: Iterable[str]) -> dict[str, str]:
    """Name in a network without LoRA -> name here, of every tensor that is not LoRA's."""
    return without_lora({name: name for name in names})


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ICE and ViT, by their names in the encoder."""
    return {name.removeprefix(ENCODER): tensor for name, tensor in state.items() if name.startswith(ENCODER)}


def stage1_state(state: Mapping[str, Value]) -> dict[str, Value]:
    """The part that stage 1 trains or predicts with: ICE, ViT, proxy head and the stage. LoRA is stage 2's."""
    kept = (ENCODER, PROXY_HEAD, STAGE_KEY)
    return {name: value for name, value in state.items() if name.startswith(kept) and not is_lora(name)}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name and shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def misfit(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str | None:
    """A sentence about the tensors that are missing, left over or of another shape; None if there are none."""
    names = [*expected, *sorted(found.keys() - expected.keys())]
    wrong = [name for name in names if found.get(name) != expected.get(name)]
    if not wrong:
        return None
    first = wrong[0]
    count = "1 tensor does not fit:" if len(wrong) == 1 else f"{len(wrong)} tensors do not fit, the first is"
    return f"{count} {first}: expected {expected.get(first, NO_TENSOR)}, found {found.get(first, NO_TENSOR)}."
