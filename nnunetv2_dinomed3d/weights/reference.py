"""Checkpoints of the released DINO-Med3D code: from its names to those of this plugin, and into a network.

First comes a pure renaming, then a check of names and shapes, then one strict load. Tensors that the network lacks are
dropped by name: the mask token, constants, qkv biases of zeros, and the decoder's classifier that no output uses. LoRA
on the patch embedding becomes that of ICE, or is folded into ICE if the network has none there.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.state_dict import (
    BASE_LAYER,
    ICE,
    NO_TENSOR,
    PROXY_HEAD,
    PROXY_LAYER,
    SEGMENTATION_LAYER,
    STAGE_KEY,
    VIT,
    Shape,
    misfit,
    shapes_of,
    stage1_state,
)
from nnunetv2_dinomed3d.weights.check import as_float32
from nnunetv2_dinomed3d.weights.files import first_keys, is_state_dict, read_content
from nnunetv2_dinomed3d.weights.formats import (
    QKV_BIAS,
    REFERENCE_PREFIXES,
    from_meta,
    reference_stage,
    rename,
    without_qkv_bias,
)

PATCH_EMBEDDING = "patch_embed.proj"
ICE_WITH_LORA = f"{ICE}{BASE_LAYER}"

DIFFERENCES = {
    "channels": "The checkpoint is of {} image channel, the network of {}; only data with one channel can use it.",
    "slab_depth": "Its slabs have K = {} slices, the network's {}; build it with the checkpoint's slab_depth.",
    "lora_rank": "The checkpoint's LoRA has rank {}, the network's {}; build it with the checkpoint's lora_rank.",
    "classes": "The checkpoint has {} classes, the network {}; build it with the checkpoint's number of classes.",
}
"""Reasons why a checkpoint does not fit a network with another value, and what to do."""

DETAIL_BLOCKS = {
    "layer1": "scale_1.3",
    "layer2_down": "scale_2.0",
    "layer2_refine": "scale_2.1",
    "layer3_down": "scale_4.0",
    "layer3_refine": "scale_4.1",
}
VIT_NAMES = [
    # the layers that carry LoRA, also in stage 1's checkpoint, which has none
    (r"^(blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12]))\.(weight|bias)$", rf"\1.{BASE_LAYER}\2"),
    (rf"^(?!{re.escape(ICE)})", VIT),
]
ICE_NAMES = [(r"^patch_embed\.proj\.(base_layer\.)?", ICE)]
ICE_NAMES_WITH_LORA = [
    (r"^patch_embed\.proj\.(base_layer\.)?(weight|bias)$", rf"{ICE_WITH_LORA}\2"),
    (r"^patch_embed\.proj\.(lora_[AB]\.)", rf"{ICE}\1"),
]
OTHER_NAMES = [
    (r"^head\.", PROXY_LAYER),
    (r"^adapter_3d\.up4\.", "adapter.levels.0."),
    (r"^adapter_3d\.up2\.", "adapter.levels.1."),
    (r"^adapter_3d\.id1\.", "adapter.levels.2."),
    (r"^adapter_3d\.down2\.", "adapter.levels.3."),
    (r"^cnn_encoder\.stem\.0\.", "detail.scale_1.0."),
    (r"^cnn_encoder\.proj_c3\.", "detail.projection."),
    *[(rf"^cnn_encoder\.{theirs}\.", f"detail.{ours}.") for theirs, ours in DETAIL_BLOCKS.items()],
    (r"^(detail\.scale_\d\.\d)\.conv1\.", r"\1.body.0."),
    (r"^(detail\.scale_\d\.\d)\.conv2\.", r"\1.body.3."),
    (r"^(detail\.scale_\d\.\d)\.downsample\.", r"\1.shortcut."),
    (r"^fusion_mid\.gate\.0\.", "fusion.gate."),
    # theirs is one flat Sequential, which starts with the pooling
    *[(rf"^decoder\.ppm\.(\d)\.{i + 1}\.", rf"decoder.upernet.pools.\1.1.{i}.") for i in range(3)],
    (r"^decoder\.ppm_last\.", "decoder.upernet.bottleneck."),
    (r"^decoder\.fpn_in\.", "decoder.upernet.laterals."),
    (r"^decoder\.fpn_out\.", "decoder.upernet.smooth."),
    (r"^decoder\.fusion\.", "decoder.upernet.fusion.0."),
    (r"^decoder_final\.r12\.conv\.", "decoder.refine_half.body."),
    (r"^decoder_final\.r11\.conv\.", "decoder.refine_full.body."),
    (r"^decoder_final\.cls_seg\.", SEGMENTATION_LAYER),
]


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """Facts about a checkpoint of the released code.

    Attributes:
        stage: 1 or 2.
        num_classes: N, outputs of its segmentation head.
        slab_depth: K.
        embed_dim: E, width of the ViT.
        depth: blocks of the ViT.
        lora_rank: r; None in stage 1, which has no LoRA.
    """

    stage: int
    num_classes: int
    slab_depth: int
    embed_dim: int
    depth: int
    lora_rank: int | None


def read_reference(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file of the released code on the CPU; no code in it is run.

    Raises:
        ValueError: the file is damaged, or something other than such a checkpoint.
    """
    fix = "Name a checkpoint of the released DINO-Med3D code, such as its stage2_best.pth, or download it again."
    content = read_content(path, fix)
    state = content.get("model_state_dict", content)
    if not is_state_dict(state):
        raise ValueError(
            f"{path} is not a checkpoint of the released DINO-Med3D code, which has a dict of tensors under the key "
            f"model_state_dict; its top-level keys are {first_keys(content)}. {fix}"
        )
    try:
        _stage(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error} {fix}") from error
    return dict(state)


def describe_reference(state: Mapping[str, Tensor]) -> ReferenceCheckpoint:
    """Tell what a checkpoint of the released code is of, from the names and shapes of its tensors alone.

    Raises:
        ValueError: it is no such checkpoint, or a tensor that is needed for it is missing.
    """
    stage = _stage(state)
    prefix = REFERENCE_PREFIXES[stage]

    def shape(name: str, dimensions: int) -> Shape:
        found = tuple(state[name].shape) if name in state else None
        if found is None or len(found) != dimensions:
            raise ValueError(
                f"{name}: expected {dimensions} dimensions, found {found or NO_TENSOR}. Is the checkpoint incomplete? "
                "Copy it again."
            )
        return found

    embed_dim, slab_depth, *_ = shape(f"{prefix}{PATCH_EMBEDDING}.{BASE_LAYER if stage == 2 else ''}weight", 4)
    return ReferenceCheckpoint(
        stage=stage,
        num_classes=shape("head.weight", 4)[0] if stage == 1 else shape("decoder_final.cls_seg.weight", 5)[0],
        slab_depth=slab_depth,
        embed_dim=embed_dim,
        depth=_blocks(state, prefix),
        lora_rank=shape(f"{prefix}{PATCH_EMBEDDING}.lora_A.default.weight", 4)[0] if stage == 2 else None,
    )


def load_reference_checkpoint(network: nn.Module, checkpoint: Mapping[str, Any]) -> int:
    """Fill a `DINOMed3D` from a checkpoint of the released code; the network enters the checkpoint's stage.

    Stage 1 fills ICE, ViT and linear head, all else stays. Stage 2 fills everything; only the linear head, which that
    checkpoint does not have, is set to zero. LoRA's alpha is the network's: the checkpoint does not say its own.

    Args:
        network: a `DINOMed3D` of one image channel; for stage 2 with in-plane scale 1 and the released depth alignment.
        checkpoint: what the file holds, or its ``model_state_dict`` alone.

    Returns:
        The stage, 1 or 2.

    Raises:
        ValueError: a tensor is missing, left over, of another shape or not finite. The network is then left as it was.
    """
    stage, weights = fitting_state_dict(network, checkpoint)
    network.load_state_dict(weights)
    return stage


def fitting_state_dict(network: nn.Module, checkpoint: Mapping[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Stage and complete state dict that `load_reference_checkpoint` loads; the network may be on the meta device."""
    own = network.state_dict()
    folded = None if f"{ICE_WITH_LORA}weight" in own else _lora_alpha(network)
    stage, renamed = from_reference(checkpoint.get("model_state_dict", checkpoint), folded)
    found, expected = shapes_of(renamed), shapes_of(_filled(own, stage))
    if wrong := misfit(found, expected):
        raise ValueError(f"{wrong} {_reason(found, expected)}")
    head = {} if stage == 1 else {name: torch.zeros_like(own[name]) for name in own if name.startswith(PROXY_HEAD)}
    return stage, {**own, **as_float32(renamed), **head, STAGE_KEY: torch.tensor(stage)}


def from_reference(state: Mapping[str, Tensor], lora_alpha: float | None) -> tuple[int, dict[str, Tensor]]:
    """Stage of a checkpoint, and its tensors under the names and in the shapes of this plugin.

    Args:
        state: the checkpoint's ``model_state_dict``.
        lora_alpha: of the LoRA on the patch embedding that is folded into ICE; the checkpoint does not say it. None if
            ICE carries LoRA itself, and nothing is folded.

    Raises:
        ValueError: no such checkpoint, a qkv bias is not zero, or the patch embedding's LoRA is incomplete.
    """
    stage = _stage(state)
    prefix = REFERENCE_PREFIXES[stage]
    vit = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if stage == 2 and lora_alpha is not None:
        vit = _fold_patch_lora(vit, lora_alpha)
    others = {name: tensor for name, tensor in state.items() if not name.startswith((prefix, "decoder.cls."))}
    vit = from_meta(vit)
    _refuse_trained_bias(vit)
    ice_names = ICE_NAMES if lora_alpha is not None else ICE_NAMES_WITH_LORA
    ours = rename(without_qkv_bias(vit), ice_names + VIT_NAMES) | rename(others, OTHER_NAMES)
    for name in ours:
        if name.startswith(ICE) and ours[name].ndim == 4:  # their slices are colour channels: (E, K, 16, 16)
            ours[name] = ours[name].unsqueeze(-1 if ".lora_B." in name else 1)
    if (head := f"{PROXY_LAYER}weight") in ours:  # theirs is a 2D convolution
        ours[head] = ours[head].unsqueeze(-1)
    return stage, ours


def _refuse_trained_bias(vit: Mapping[str, Tensor]) -> None:
    for name, tensor in vit.items():
        if re.search(QKV_BIAS, name) and bool((tensor != 0).any()):
            raise ValueError(
                f"{name} is not zero (up to {tensor.float().abs().max().item():.3g}), and the networks here have no "
                "qkv bias. Runs of the released code that were started without a DINOv3 file have one: their backbone "
                "began at random, and its v biases were trained. Such a run cannot be converted: predict with the "
                "released code, or train anew from DINOv3's weights (dinomed3d weights), here or there."
            )


def _fold_patch_lora(vit: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Patch embedding with its LoRA: W + alpha / r B A.

    W is ``(E, K, 16, 16)``, A ``(r, K, 16, 16)``, B ``(E, r, 1, 1)``.
    """
    names = [f"{PATCH_EMBEDDING}.{part}.weight" for part in ("base_layer", "lora_A.default", "lora_B.default")]
    base, *found = [tuple(vit[name].shape) if name in vit else NO_TENSOR for name in names]
    if len(base) != 4:
        raise ValueError(f"{names[0]} of the checkpoint: expected (E, K, 16, 16), found {base}. Copy the file again.")
    rank = next((len(tensor) for name, tensor in vit.items() if ".lora_A." in name), 0)
    for name, shape, expected in zip(names[1:], found, [(rank, *base[1:]), (base[0], rank, 1, 1)], strict=True):
        if shape != expected:
            raise ValueError(f"{name} of the checkpoint: expected {expected}, found {shape}. Copy the file again.")
    weight, down, up = (vit[name].float() for name in names)
    kept = {name: tensor for name, tensor in vit.items() if name not in names}
    kept[f"{PATCH_EMBEDDING}.weight"] = weight + alpha / rank * torch.einsum("erij,rkhw->ekhw", up, down)
    return kept


def _stage(state: Mapping[str, Tensor]) -> int:
    stage = reference_stage(state)
    if stage is None:
        raise ValueError(
            "this is no checkpoint of the released DINO-Med3D code: no tensor's name starts with "
            f"{' or '.join(REFERENCE_PREFIXES.values())} (the first of {len(state)} are {first_keys(state)})."
        )
    return stage


def _lora_alpha(network: nn.Module) -> float:
    """Alpha of the network's LoRA layers (peft's), which all have the same."""
    alphas = (getattr(module, "lora_alpha", None) for module in network.modules())
    return next(float(alpha["default"]) for alpha in alphas if alpha)


def _filled(own: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """The tensors of the network that a checkpoint of the stage fills."""
    kept = stage1_state(own) if stage == 1 else own
    out = (STAGE_KEY,) if stage == 1 else (STAGE_KEY, PROXY_HEAD)
    return {name: tensor for name, tensor in kept.items() if not name.startswith(out)}


def _reason(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """Why a checkpoint does not fit, and what to do, as far as shapes tell."""
    (width, depth), (own_width, own_depth) = _vit_size(found), _vit_size(expected)
    if width and (width, depth) != (own_width, own_depth):
        return (
            f"It is of a ViT of width {width} and depth {depth}, the network needs width {own_width} and depth "
            f"{own_depth}; use the variant of the checkpoint's size."
        )
    theirs, ours = _facts(found), _facts(expected)
    for fact, sentence in DIFFERENCES.items():
        if fact in theirs and fact in ours and theirs[fact] != ours[fact]:
            return sentence.format(theirs[fact], ours[fact])
    resampling = [name for name in expected if re.fullmatch(r"adapter\.levels\.\d\.3\.(weight|bias)", name)]
    if any(found.get(name, ())[2:] != expected.get(name, ())[2:] for name in resampling):
        return (
            'Released checkpoints need a network with depth_alignment="released" and in-plane scale 1 (that of a patch '
            "with a side of 363 or more voxels)."
        )
    return "Is the file incomplete, or of a network that was changed (a plus-sized ViT, other decoder widths)?"


def _vit_size(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Width and depth of the ViT, by the names of this plugin; 0 for a width that cannot be told."""
    embeddings = (shapes.get(f"{prefix}weight") for prefix in (ICE, ICE_WITH_LORA))
    return next((shape[0] for shape in embeddings if shape), 0), _blocks(shapes, VIT)


def _facts(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Values for `DIFFERENCES`, from shapes by the names of this plugin."""
    facts = {}
    for name, shape in shapes.items():
        if name in (f"{ICE}weight", f"{ICE_WITH_LORA}weight") and len(shape) == 5:
            facts["channels"], facts["slab_depth"] = shape[1:3]
        elif ".lora_A." in name and shape:
            facts["lora_rank"] = shape[0]
        elif name.endswith(".seg_layers.weight") and shape:
            facts["classes"] = shape[0]
    return facts


def _blocks(names: Iterable[str], prefix: str) -> int:
    """Number of Transformer blocks among the names that start with the prefix."""
    found = (re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})
