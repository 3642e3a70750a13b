"""Names of a DINOv3 ViT's tensors: from each format in which weights are published to timm's.

Everything here is a pure function of names and tensors. Tensors that timm's ViT lacks are dropped by name, never
because nobody asked for them: whatever else is left over stays in the result, for `check` to find.

Some formats have a qkv bias, which is zero in DINOv3's released weights. For a ViT without one it is dropped, but only
if it is zero.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import (
    ICE,
    PROXY_HEAD,
    STAGE2_PARTS,
    STAGE_KEY,
    VIT,
    without_lora,
)

QKV_BIAS = r"\.attn\.qkv\.(base_layer\.)?bias$"

BACKBONE = "backbone."
"""Prefix of the ViT in a checkpoint of DINOv3's training code."""

REFERENCE_PREFIXES = {1: "backbone.model.", 2: "encoder.backbone.model.base_model.model."}
"""Prefix of the ViT in the checkpoints of the released DINO-Med3D code, by stage."""


def to_timm(state: Mapping[str, Tensor], qkv_bias: bool = False) -> tuple[str, dict[str, Tensor]]:
    """Rename the tensors of a file to timm's names; the format is recognised by the name of the register tokens.

    Args:
        state: the file's tensors.
        qkv_bias: whether the network's ViT has one.

    Returns:
        The format's name, and the tensors by timm's names.

    Raises:
        ValueError: not a DINOv3 ViT in a known format, two tensors would get one name, or a qkv bias is not zero and
            the network has none.
    """
    formats = {
        "storage_tokens": ("meta", from_meta),
        "reg_token": ("timm", from_timm),
        "embeddings.register_tokens": ("transformers", from_transformers),
        f"{BACKBONE}storage_tokens": ("teacher", from_dinov3_training),
        f"{VIT}reg_token": ("dinomed3d", from_dinomed3d),
    }
    for mark, (name, rename_all) in formats.items():
        if mark in state:
            renamed = rename_all(state)
            return name, renamed if qkv_bias else without_qkv_bias(renamed)
    stage = reference_stage(state)
    if stage:
        raise ValueError(
            f"this is a stage {stage} checkpoint of the released DINO-Med3D code, not the weights of a 2D ViT: convert "
            "it with `dinomed3d convert FILE -o OUT`."
        )
    raise ValueError(
        f"no DINOv3 ViT in a known format: none of the tensors {', '.join(formats)} is there "
        f"(the first of {len(state)} are {', '.join(list(state)[:5]) or 'none'}). Other models, such as DINOv2 or "
        "DINOv3's ConvNeXts, cannot be used, nor tensors whose names have another prefix."
    )


def reference_stage(state: Mapping[str, Tensor]) -> int | None:
    """The stage (1 or 2) if these are the tensors of a checkpoint of the released DINO-Med3D code, else None."""
    for stage, prefix in REFERENCE_PREFIXES.items():
        if any(name.startswith(prefix) for name in state):
            return stage
    return None


def from_meta(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of Meta's own checkpoints. The RoPE periods are a constant; the mask token serves pretraining only.

    With peft's ``base_layer`` in their names, as in a checkpoint with LoRA, they keep it.
    """
    kept = {}
    for name, tensor in state.items():
        if re.search(QKV_BIAS, name):
            kept[name] = effective_qkv_bias(tensor, state.get(f"{name}_mask"))
        elif name not in ("mask_token", "rope_embed.periods") and not (
            name.endswith(".bias_mask") or name.startswith("local_cls_norm.")
        ):
            kept[name] = tensor
    return rename(
        kept,
        [
            (r"^storage_tokens$", "reg_token"),
            (r"\.ls([12])\.gamma$", r".gamma_\1"),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ],
    )


def from_dinov3_training(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher of a training with DINOv3's code, e.g. MedDINOv3's: Meta's names, a prefix, and two heads."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("dino_head.", "ibot_head."))}
    return from_meta(rename(kept, [(rf"^{re.escape(BACKBONE)}", "")]))


def from_dinomed3d(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The 2D ViT in a `DINOMed3D`: stage 1's result, without LoRA. ICE's three slices are colour channels again.

    Raises:
        ValueError: ICE is not that of one image channel and three slices, which colour channels can be.
    """
    others = (STAGE_KEY, PROXY_HEAD, *STAGE2_PARTS)
    kept = without_lora({name: tensor for name, tensor in state.items() if not name.startswith(others)})
    weight = kept.get(f"{ICE}weight")
    if weight is not None:
        if weight.ndim != 5 or weight.shape[1:3] != (1, 3):
            raise ValueError(
                f"this is a checkpoint of this plugin whose ICE, {ICE}weight, has the shape "
                f"{tuple(weight.shape)}: only one image channel and K = 3 slices, (E, 1, 3, 16, 16), can be the colour "
                "channels of a 2D ViT. To start stage 2 from it set DINOMED3D_STAGE1=FILE, to go on training it use "
                "nnUNetv2_train's -pretrained_weights FILE."
            )
        kept[f"{ICE}weight"] = weight[:, 0]
    return rename(kept, [(rf"^{re.escape(ICE)}", "patch_embed.proj."), (rf"^{re.escape(VIT)}", "")])


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a timm ViT, which may be a ``_qkvb`` one."""
    return _without_zero_biases(state, r"\.attn\.(q_bias|k_bias|v_bias|qkv\.bias)$")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of Hugging Face's ``DINOv3ViTModel``: a file's ``layer.0``, or ``model.layer.0`` as in its state dict."""
    kept = _without_zero_biases(state, r"\.attention\.[qkv]_proj\.bias$")
    kept.pop("embeddings.mask_token", None)
    gated = any(".mlp.gate_proj." in name for name in kept)
    return rename(
        _fuse_qkv(kept),
        [
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
            (r"^(model\.)?layer\.", "blocks."),
            (r"\.attention\.qkv\.", ".attn.qkv."),
            (r"\.attention\.o_proj\.", ".attn.proj."),
            (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
            (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
            (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1."),
            (r"\.mlp\.down_proj\.", ".mlp.fc2."),
        ],
    )


def rename(state: Mapping[str, Tensor], replacements: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """``state`` with every (regular expression, replacement) applied to its names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in replacements:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(f"two tensors are {new} in timm's names, one of them {name}: which to use is not clear.")
        renamed[new] = tensor
    return renamed


def _fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put one weight ``(3 E, E)`` in place of a block's q, k and v weights ``(E, E)``; an incomplete set stays."""
    fused = dict(state)
    for query in state:
        if not query.endswith(".attention.q_proj.weight"):
            continue
        parts = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in state and state[part].shape == state[query].shape for part in parts):
            fused[query.replace(".q_proj.", ".qkv.")] = torch.cat([fused.pop(part) for part in parts])
    return fused


def effective_qkv_bias(bias: Tensor, mask: Tensor | None) -> Tensor:
    """The part of a qkv bias ``(3 E,)`` that Meta's model adds: with a mask, 0 in k's third and wherever the mask is 0.

    The mask may hold NaN where it is not 0: Meta's code makes it so, and fills it later.
    """
    if mask is None or mask.shape != bias.shape:
        return bias
    masked = mask == 0
    width = len(bias) // 3
    masked[width : 2 * width] = True
    return bias.masked_fill(masked, 0)


def has_qkv_bias(names: Iterable[str]) -> bool:
    """Whether a ViT with tensors of these names has a qkv bias."""
    return any(re.search(QKV_BIAS, name) for name in names)


def without_qkv_bias(renamed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by timm's names, without the qkv biases, which have to be zero."""
    return _without_zero_biases(renamed, QKV_BIAS)


def _without_zero_biases(state: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """``state`` without the tensors whose names match, all of which have to be zero."""
    biases = {name for name in state if re.search(pattern, name)}
    for name in biases:
        _require_zero(name, state[name])
    return {name: tensor for name, tensor in state.items() if name not in biases}


def _require_zero(name: str, bias: Tensor) -> None:
    if not bool((bias == 0).all()):
        raise ValueError(
            f"{name} is not zero (up to {bias.float().abs().max().item():.3g}), but this ViT has no qkv bias. "
            "These weights were trained with one, and cannot be used with a variant of this size; all DINOv3 weights "
            "that Meta released have zeros there: use those."
        )
