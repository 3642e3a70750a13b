"""What ``dinomed3d weights`` does: fetch pretrained weights for a machine without internet, or say what a file is."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.weights import (
    WEIGHTS_VARIABLE,
    describe_reference,
    fetch_from_hub,
    hub_name,
    load_weights,
)
from nnunetv2_dinomed3d.weights.check import Shape, as_float32, check_shapes, vit_size
from nnunetv2_dinomed3d.weights.files import (
    check_against_name,
    printable,
    read_content,
    read_tensors,
    sha256,
    tensors_of,
    weight_files,
)
from nnunetv2_dinomed3d.weights.formats import has_qkv_bias, reference_stage, to_timm, without_qkv_bias
from nnunetv2_dinomed3d.weights.reference import fitting_state_dict

ICE_WEIGHTS = ("encoder.ice.conv.weight", "encoder.ice.conv.base_layer.weight")
"""Names of ICE's weight ``(E, C, K, 16, 16)`` in a checkpoint of ours, without and with LoRA on it."""


def fetch_weights(variant: str) -> int:
    """Fetch a variant's weights from the Hugging Face Hub, or its local cache; say how to use them elsewhere.

    Args:
        variant: one of `VARIANTS` that has pretrained weights.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: there is no such variant, it has no weights on the Hub, or these do not fit.
        WeightsUnavailableError: the Hub did not give the file.
    """
    vit_name = _with_weights().get(variant)
    if vit_name is None:
        raise ValueError(f"{variant!r} is no variant with pretrained weights; these are: {', '.join(_with_weights())}.")
    print(f"{hub_name(vit_name)}, from the Hugging Face Hub or its local cache ...", flush=True)
    path = fetch_from_hub(vit_name)
    weights = load_weights(path, vit_name, _expected(variant))
    print(f"{len(weights.tensors)} tensors, all of them fit the variant {variant}.")
    print(f"file: {path}")
    print(f"SHA-256: {weights.sha256}")
    print("On this machine, training finds it by itself. For one without internet, copy it (it may be a link: cp -L),")
    print(f"and there: export {WEIGHTS_VARIABLE}=/path/to/{shlex.quote(path.name)}")
    return 0


def check_weights_file(path: Path) -> int:
    """Say what a file or folder of weights is, and which variants it fits.

    Returns:
        The exit code: 0 if it fits a variant (a checkpoint of the released code: if it can be converted), else 1.

    Raises:
        ValueError: the file does not exist, is damaged, or holds no tensors.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path} does not exist. Name a file or folder of weights.")
    files = weight_files(path)
    content = read_content(files[0])
    state = tensors_of(content, path) if len(files) == 1 else read_tensors(path)
    checksum = sha256(*files)
    check_against_name(path, checksum)
    print(f"{path}: {len(state)} tensors")
    print(f"SHA-256: {checksum}")
    if reference_stage(state):
        return _check_reference(path, state)
    ice = [tensor for name, tensor in state.items() if name in ICE_WEIGHTS and tensor.ndim == 5]
    if "_extra_state" in state and ice:
        _describe_own(content, state["_extra_state"], ice[0].shape[2])
    try:
        format_name, tensors = to_timm(state, qkv_bias=True)
    except ValueError as error:
        print(f"It cannot be used as {WEIGHTS_VARIABLE}: {error}")
        return 1
    width, depth = vit_size(_shapes(tensors))
    print(f"format: {format_name}, a ViT of width {width} and depth {depth}")
    fits = [variant for variant in _with_weights() if _fits(variant, tensors)]
    if not fits:
        print("It fits none of the variants.")
        return 1
    try:
        as_float32(tensors)  # of a size that is known now
    except ValueError as error:
        print(f"It cannot be used as {WEIGHTS_VARIABLE}: {error}")
        return 1
    setting = f"export {WEIGHTS_VARIABLE}={shlex.quote(str(path.absolute()))}"
    print(f"To train with it: {setting}, and the trainer of {' or '.join(fits)}.")
    return 0


def _with_weights() -> dict[str, str]:
    """Variants that have pretrained weights, and the name of their ViT."""
    return {name: variant.weights_name for name, variant in VARIANTS.items() if variant.weights_name is not None}


def _network(variant: str, num_classes: int, slab_depth: int) -> DINOMed3D:
    """A variant as the released code has it, without memory for its weights."""
    with torch.device("meta"):
        return build_dinomed3d(
            variant, 1, num_classes, (16, 512, 512), slab_depth=slab_depth, depth_alignment="released"
        )


def _expected(variant: str) -> dict[str, Shape]:
    return _network(variant, num_classes=2, slab_depth=3).pretrained_shapes()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _fits(variant: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a variant's ViT can start from these tensors; printed, with the first difference."""
    expected = _expected(variant)
    size = vit_size(expected)
    if size != vit_size(_shapes(tensors)):
        print(f"{variant}: does not fit, it needs width {size[0]} and depth {size[1]}")
        return False
    try:
        fitting = tensors if has_qkv_bias(expected) else without_qkv_bias(tensors)
        check_shapes(_shapes(fitting), expected, _with_weights()[variant])
    except ValueError as error:
        print(f"{variant}: does not fit. {error}")
        return False
    print(f"{variant}: fits")
    return True


def _describe_own(content: Mapping[str, Any], stage: Tensor, slab_depth: int) -> None:
    """Print what a checkpoint of this plugin is of."""
    trainer = printable(content.get("trainer_name", "not told"))
    number = stage.item() if stage.numel() == 1 else "not told"
    print(f"a checkpoint of this plugin: stage {number}, trainer {trainer}, K = {slab_depth}")


def _check_reference(path: Path, state: Mapping[str, Tensor]) -> int:
    """Print what a checkpoint of the released code is of, and whether it is complete."""
    found = describe_reference(state)
    rank = "" if found.lora_rank is None else f", LoRA of rank {found.lora_rank}"
    print(
        f"a checkpoint of the released DINO-Med3D code: stage {found.stage}, {found.num_classes} classes, "
        f"K = {found.slab_depth}, a ViT of width {found.embed_dim} and depth {found.depth}{rank}"
    )
    for variant in _with_weights():
        if vit_size(_expected(variant)) != (found.embed_dim, found.depth):
            continue
        try:
            fitting_state_dict(_network(variant, found.num_classes, found.slab_depth), state)
        except ValueError as error:
            print(f"{variant}: does not fit. {error}")
            continue
        print(f"{variant}: fits")
        print(f"To use it, make a checkpoint of this plugin of it: dinomed3d convert {shlex.quote(str(path))} -o OUT")
        return 0
    print("It fits none of the variants.")
    return 1
