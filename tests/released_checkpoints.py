"""Checkpoints of the released code, made up by the rule of the reference, and the network that they are of."""

import json
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import Shape
from tests.networks import network_of

Fault = Callable[[dict[str, Tensor]], None]

FILES = {1: "stage1_best.pth", 2: "stage2_best.pth"}
VIT = {1: "backbone.model.", 2: "encoder.backbone.model.base_model.model."}
PATCH = f"{VIT[2]}patch_embed.proj."
E, DEPTH, RANK, CLASSES = 96, 4, 4, 3


def value(name: str, shape: Shape) -> np.ndarray:
    """A weight by the rule of the reference's README."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.startswith("input."):
        return z
    if name.endswith(("mask_token", "qkv.bias", "qkv.base_layer.bias")):
        return 0 * z
    if name.endswith(".gamma"):
        return 0.75 + 0.1 * z
    if name.endswith(("cls_token", "storage_tokens")):
        return 0.5 * z
    if "lora_B" in name:
        return 0.05 * z
    if len(shape) == 1 and shape[0] == 1:
        return 0.25 + 0.05 * z
    if len(shape) == 1:
        return 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return z / np.sqrt(prod(shape[1:]))


def parameters(shared: Path) -> dict[int, dict[str, Shape]]:
    """By stage, the name and shape of every parameter of the two checkpoints."""
    listed = json.loads((shared / "reference" / "parameters.json").read_text())
    return {stage: {name: tuple(shape) for name, shape in listed[file]} for stage, file in FILES.items()}


def released_shapes(
    shapes: Mapping[str, Shape], width: int, depth: int, rank: int, classes: int
) -> list[tuple[str, Shape]]:
    """Names and shapes of the released stage 2 model of another size, from those of the reference's small one."""
    sizes = {E: width, 3 * E: 3 * width, 4 * E: 4 * width}
    block = f"{VIT[2]}blocks.0."

    def scaled(name: str, shape: Shape) -> Shape:
        if name.startswith(VIT[2]):
            lora = {"lora_A": 0, "lora_B": 1}
            axis = next((lora[part] for part in lora if part in name), None)
            return tuple(rank if i == axis else sizes.get(size, size) for i, size in enumerate(shape))
        if name.startswith(("decoder.cls.", "decoder_final.cls_seg.")):
            return (classes, *shape[1:])
        if name.startswith("adapter_3d.") and shape[1:2] == (E,):
            return (shape[0], width, *shape[2:])
        return shape

    listed = []
    for name, shape in shapes.items():
        if name.startswith(block):
            listed += [(name.replace(block, f"{VIT[2]}blocks.{i}."), scaled(name, shape)) for i in range(depth)]
        elif not name.startswith(f"{VIT[2]}blocks."):
            listed.append((name, scaled(name, shape)))
    return listed


@cache
def tensors(shared: Path) -> dict[int, dict[str, Tensor]]:
    """By stage, the checkpoint's tensors; with the buffers that real files have besides."""
    states = {}
    for stage, shapes in parameters(shared).items():
        state = {name: torch.from_numpy(np.asarray(value(name, shape))).float() for name, shape in shapes.items()}
        layer = "qkv.base_layer" if stage == 2 else "qkv"
        state[f"{VIT[stage]}rope_embed.periods"] = torch.full((8,), torch.nan)
        state[f"{VIT[stage]}local_cls_norm.weight"] = torch.ones(E)
        for i in range(DEPTH):
            state[f"{VIT[stage]}blocks.{i}.attn.{layer}.bias_mask"] = torch.full((3 * E,), torch.nan)
        states[stage] = state
    return states


def states_of(shared: Path) -> dict[int, dict[str, Tensor]]:
    """The dicts of `tensors`, which a test may change; the tensors themselves stay what they are."""
    return {stage: dict(state) for stage, state in tensors(shared).items()}


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "vit_name": "vit_small_patch16_dinov3",
        "vit_kwargs": {"embed_dim": E, "depth": DEPTH, "num_heads": 3, "init_values": 0.1},
        "lora_rank": RANK,
        "lora_alpha": 8,
        "depth_alignment": "released",
    }
    return network_of(**{"in_channels": 1, "num_classes": CLASSES, **settings, **options}).eval()


def edit(name: str, change: Callable[[Tensor], Tensor | None]) -> Fault:
    """A fault: one tensor replaced by what ``change`` makes of it, or dropped if that is None."""

    def apply(state: dict[str, Tensor]) -> None:
        tensor = change(state[name])
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor

    return apply


def drop(name: str) -> Fault:
    return edit(name, lambda tensor: None)


def move(name: str, new: str) -> Fault:
    return lambda state: state.__setitem__(new, state.pop(name))
