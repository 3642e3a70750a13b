"""Dino U-Net's official names. Those of its ViT are Meta's, which `formats` knows."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nnunetv2_dinomed3d.weights import formats

ADAPTER = "encoder.dinov3_adapter."
BACKBONE = f"{ADAPTER}backbone."
VIT = "encoder.vit.model."

ALIASES = r"^decoder\.encoder\.|\.all_modules\.[01]\."
"""Second names of tensors: the decoder holds the encoder too, and a block its layers once more."""

PREFIXES = [
    (f"{ADAPTER}level_embed", "encoder.adapter.level_embedding"),
    *(
        (f"{ADAPTER}spm.stem.{3 * i + j}.", f"encoder.adapter.prior.stem.{i}.{part}.")
        for i in range(3)
        for j, part in enumerate(("conv", "norm"))
    ),
    *(
        (f"{ADAPTER}spm.conv{i + 2}.{j}.", f"encoder.adapter.prior.downsampling.{i}.{part}.")
        for i in range(3)
        for j, part in enumerate(("conv", "norm"))
    ),
    *((f"{ADAPTER}spm.fc{i + 1}.", f"encoder.adapter.prior.projections.{i}.") for i in range(4)),
    *((f"{ADAPTER}interactions.{i}.extractor.", f"encoder.adapter.interactions.{i}.0.") for i in range(4)),
    *((f"{ADAPTER}interactions.3.extra_extractors.{i}.", f"encoder.adapter.interactions.3.{i + 1}.") for i in range(2)),
    (f"{ADAPTER}up.", "encoder.adapter.up."),
    *((f"{ADAPTER}norm{i + 1}.", f"encoder.adapter.norms.{i}.") for i in range(4)),
    ("encoder.fapm.shared_basis.", "encoder.projection.shared_basis."),
    ("encoder.fapm.specific_bases.", "encoder.projection.own_bases."),
    ("encoder.fapm.film_generators.", "encoder.projection.modulations."),
    ("encoder.fapm.refinement_blocks.", "encoder.projection.refinements."),
    ("encoder.fapm.shortcut_projections.", "encoder.projection.shortcuts."),
    *((f"encoder.ups.{i}.up2.", f"encoder.upsampling.{i}.") for i in range(4)),
    *((f"decoder.transpconvs.{i}.", f"decoder.stages.{i}.up.") for i in range(3)),
]
"""How a name starts, officially and here. A part that neither this nor `PARTS` names has the same name in both."""

PARTS = [
    (
        r"^encoder\.adapter\.interactions\.\d\.\d\.",
        [
            ("feat_norm.", "value_norm."),
            ("attn.value_proj.", "attention.value."),
            ("attn.sampling_offsets.", "attention.offsets."),
            ("attn.attention_weights.", "attention.weights."),
            ("attn.output_proj.", "attention.output."),
            ("ffn.fc1.", "ffn.first."),
            ("ffn.dwconv.dwconv.", "ffn.depthwise."),
            ("ffn.fc2.", "ffn.last."),
        ],
    ),
    (
        r"^encoder\.projection\.refinements\.\d\.",
        [
            ("0.", "projection."),
            ("1.", "projection_norm."),
            ("3.depthwise.", "depthwise."),
            ("3.pointwise.", "pointwise."),
            ("3.bn.", "pointwise_norm."),
            ("4.", "mixing."),
            ("5.fc.0.", "excitation.squeeze."),
            ("5.fc.2.", "excitation.excite."),
        ],
    ),
]
"""What follows on a name that starts so (here), officially and here."""


def renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under the names of `network_architecture.baselines.dino_unet.DinoUNet`.

    A count of batches that BatchNorm has seen is 0 if it is missing; nothing depends on it.

    Raises:
        ValueError: two tensors would get one name, or the ViT's qkv bias is not zero.
    """
    kept = {name: tensor for name, tensor in state_dict.items() if not re.search(ALIASES, name)}
    vit = {name.removeprefix(BACKBONE): tensor for name, tensor in kept.items() if name.startswith(BACKBONE)}
    result = {f"{VIT}{name}": tensor for name, tensor in formats.without_qkv_bias(formats.from_meta(vit)).items()}
    for name, tensor in kept.items():
        if name.startswith(BACKBONE):
            continue
        new = _renamed(name)
        if new in result:
            raise ValueError(f"Two tensors are {new} in our names, one of them {name}: which to use is not clear.")
        result[new] = tensor
    return _counts(result) | result


def _renamed(name: str) -> str:
    name = _with_prefix(name, PREFIXES)
    for start, replacements in PARTS:
        if found := re.match(start, name):
            return found[0] + _with_prefix(name[found.end() :], replacements)
    return name


def _with_prefix(name: str, replacements: list[tuple[str, str]]) -> str:
    for old, new in replacements:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm's counts of batches, 0."""
    means = [name for name in state if name.endswith(".running_mean")]
    return {name.replace(".running_mean", ".num_batches_tracked"): torch.tensor(0) for name in means}
