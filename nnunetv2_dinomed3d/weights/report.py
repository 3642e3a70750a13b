"""A report on a file of weights: what it is, and which variants of the network it fits."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.network_architecture.state_dict import ICE, Shape, shapes_of, stage_of, without_lora
from nnunetv2_dinomed3d.settings import WEIGHTS_VARIABLE
from nnunetv2_dinomed3d.trainer_names import BASELINE, REQUIRE_SWIN_WEIGHTS, SWIN_NETWORKS
from nnunetv2_dinomed3d.weights.check import as_float32, check_vit_shapes, vit_size
from nnunetv2_dinomed3d.weights.conversion import build_released
from nnunetv2_dinomed3d.weights.files import (
    printable,
    read_content,
    read_tensors,
    sha256,
    tensors_of,
    verify_meta_checksum,
    weight_files,
)
from nnunetv2_dinomed3d.weights.formats import has_qkv_bias, reference_stage, to_timm, without_qkv_bias
from nnunetv2_dinomed3d.weights.reference import describe_reference, fitting_state_dict
from nnunetv2_dinomed3d.weights.swin_unetr import for_network, swin_state


@dataclass(frozen=True)
class WeightsReport:
    """A report on a file of weights.

    Attributes:
        lines: the report's text.
        usable: whether a training can start from the file, or `dinomed3d convert` can convert it.
    """

    lines: list[str]
    usable: bool


def pretrained_variants() -> dict[str, str]:
    """The variants that have pretrained weights, each with timm's name of its ViT."""
    return {name: variant.weights_name for name, variant in VARIANTS.items() if variant.weights_name is not None}


def pretrained_shapes(variant: str) -> dict[str, Shape]:
    """Name (timm's) and shape of every tensor that a variant needs of its pretrained weights."""
    with torch.device("meta"):
        return build_released(variant, num_classes=2, slab_depth=3).pretrained_shapes()


def describe_weights(path: Path) -> WeightsReport:
    """Describe a file or folder of weights: format, checksum, and the variants that it fits.

    Raises:
        ValueError: the file is missing or damaged, or holds no tensors.
    """
    files = weight_files(path)
    content = read_content(files[0])
    if len(files) == 1 and (swin := swin_state(content)) is not None:
        return _describe_swin(path, swin)
    state = tensors_of(content, path) if len(files) == 1 else read_tensors(path)
    checksum = sha256(*files)
    verify_meta_checksum(path, checksum)
    lines = [f"{path}: {len(state)} tensors", f"SHA-256: {checksum}"]
    if reference_stage(state):
        report = _describe_released(path, state)
    else:
        lines += _plugin_checkpoint(content, state)
        report = _describe_vit(path, state)
    return WeightsReport(lines + report.lines, report.usable)


def _describe_swin(path: Path, state: Mapping[str, Tensor]) -> WeightsReport:
    """Describe weights of a SwinUNETR, and say which baselines they fit."""
    lines = [f"{path}: {len(state)} tensors of a SwinUNETR", f"SHA-256: {sha256(path)}"]
    fitting = []
    for name in SWIN_NETWORKS:
        with torch.device("meta"):
            network = cast(Any, build_baseline(name, 1, 2, (64, 64, 64))).network
        try:
            found = for_network(state, shapes_of(network.state_dict()), whole=name in REQUIRE_SWIN_WEIGHTS)
        except ValueError as error:
            lines.append(f"{name}: does not fit. {error}")
            continue
        fitting.append(name)
        left = f"; {', '.join(found.random)} start from random weights" if found.random else ""
        lines.append(f"{name}: fits, {len(found.tensors)} of {len(network.state_dict())} tensors{left}.{found.note}")
    if not fitting:
        return WeightsReport([*lines, "It fits none of the baselines."], False)
    setting = f"export {WEIGHTS_VARIABLE}={shlex.quote(str(path.absolute()))}"
    trainers = " or ".join(f"{BASELINE}_{name}" for name in fitting)
    return WeightsReport([*lines, f"To train with it: {setting}, and the trainer {trainers}."], True)


def _plugin_checkpoint(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    """A line about a checkpoint of this plugin; none about other files."""
    stage, ice = stage_of(state), without_lora(state).get(f"{ICE}weight")  # (E, C, K, 16, 16)
    if stage is None or ice is None or ice.ndim != 5:
        return []
    trainer = printable(content.get("trainer_name", "unknown"))
    return [f"a checkpoint of this plugin: stage {stage}, trainer {trainer}, K = {ice.shape[2]}"]


def _describe_vit(path: Path, state: Mapping[str, Tensor]) -> WeightsReport:
    """Describe the weights of a DINOv3 ViT in any known format."""
    try:
        format_name, tensors = to_timm(state, qkv_bias=True)
    except ValueError as error:
        return WeightsReport([f"It cannot be used as {WEIGHTS_VARIABLE}: {error}"], False)
    width, depth = vit_size(shapes_of(tensors))
    lines = [f"format: {format_name}, a ViT of width {width} and depth {depth}"]
    misfits = {variant: _misfit(variant, tensors) for variant in pretrained_variants()}
    lines += [f"{variant}: {f'does not fit{misfit}' if misfit else 'fits'}" for variant, misfit in misfits.items()]
    fitting = [variant for variant, misfit in misfits.items() if not misfit]
    if not fitting:
        return WeightsReport([*lines, "It fits none of the variants."], False)
    try:
        as_float32(tensors)  # only now, when the file's size is known to be that of a variant
    except ValueError as error:
        return WeightsReport([*lines, f"It cannot be used as {WEIGHTS_VARIABLE}: {error}"], False)
    setting = f"export {WEIGHTS_VARIABLE}={shlex.quote(str(path.absolute()))}"
    return WeightsReport([*lines, f"To train with it: {setting}, and the trainer of {' or '.join(fitting)}."], True)


def _misfit(variant: str, tensors: Mapping[str, Tensor]) -> str:
    """Why the ViT of a variant cannot start from these tensors; empty if it can."""
    expected = pretrained_shapes(variant)
    size = vit_size(expected)
    if size != vit_size(shapes_of(tensors)):
        return f", it needs width {size[0]} and depth {size[1]}"
    try:
        kept = tensors if has_qkv_bias(expected) else without_qkv_bias(tensors)
        check_vit_shapes(shapes_of(kept), expected, pretrained_variants()[variant])
    except ValueError as error:
        return f". {error}"
    return ""


def _describe_released(path: Path, state: Mapping[str, Tensor]) -> WeightsReport:
    """Describe a checkpoint of the released code, and say whether it is complete."""
    found = describe_reference(state)
    rank = "" if found.lora_rank is None else f", LoRA of rank {found.lora_rank}"
    lines = [
        f"a checkpoint of the released DINO-Med3D code: stage {found.stage}, {found.num_classes} classes, "
        f"K = {found.slab_depth}, a ViT of width {found.embed_dim} and depth {found.depth}{rank}"
    ]
    for variant in pretrained_variants():
        if vit_size(pretrained_shapes(variant)) != (found.embed_dim, found.depth):
            continue
        try:
            with torch.device("meta"):
                network = build_released(variant, found.num_classes, found.slab_depth)
            fitting_state_dict(network, state)
        except ValueError as error:
            lines.append(f"{variant}: does not fit. {error}")
            continue
        command = f"dinomed3d convert {shlex.quote(str(path))} -o OUT"
        return WeightsReport([*lines, f"{variant}: fits", f"To use it, convert it for this plugin: {command}"], True)
    return WeightsReport([*lines, "It fits none of the variants."], False)
