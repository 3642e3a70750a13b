"""Conversion of a checkpoint of the released DINO-Med3D code into a state dict of this plugin's network."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.state_dict import stage1_state
from nnunetv2_dinomed3d.weights.reference import (
    ReferenceCheckpoint,
    fitting_state_dict,
    load_reference_checkpoint,
)

PAPER_PATCH = (16, 512, 512)
"""The paper's patch (D, H, W), in voxels: that of the released checkpoints."""


def build_released(variant: str, num_classes: int, slab_depth: int) -> DINOMed3D:
    """Build the network of the released code: its depth alignment, LoRA on the patch embedding, one image channel."""
    return build_dinomed3d(
        variant, 1, num_classes, PAPER_PATCH, slab_depth=slab_depth, depth_alignment="released", lora_on_ice=True
    )


def matching_variant(found: ReferenceCheckpoint) -> str:
    """The variant whose ViT has the width and depth of a checkpoint.

    Raises:
        ValueError: no variant has.
    """
    for name, variant in VARIANTS.items():
        if variant.weights_name is None:
            continue
        with torch.device("meta"):
            encoder = build_released(name, found.num_classes, found.slab_depth).encoder
        if (encoder.embed_dim, len(encoder.vit.blocks)) == (found.embed_dim, found.depth):
            return name
    raise ValueError(
        f"The checkpoint is of a ViT of width {found.embed_dim} and depth {found.depth}, which no variant has. The "
        f"variants are {', '.join(VARIANTS)}."
    )


def convert_state_dict(state: Mapping[str, Tensor], found: ReferenceCheckpoint, variant: str) -> dict[str, Tensor]:
    """The state dict of this plugin's network with the weights of a checkpoint of the released code.

    Args:
        state: the checkpoint's tensors.
        found: of `describe_reference`.
        variant: of `matching_variant`.

    Returns:
        All tensors of stage 2. Of stage 1 only those that it trained: the others depend on the plans that the network
        will be used with.

    Raises:
        ValueError: a tensor is missing, left over, of another shape or not finite.
    """
    with torch.device("meta"):
        network = build_released(variant, found.num_classes, found.slab_depth)
    fitting_state_dict(network, state)  # before a network takes memory
    network = build_released(variant, found.num_classes, found.slab_depth)
    load_reference_checkpoint(network, state)
    weights = network.state_dict()
    return dict(weights) if found.stage == 2 else stage1_state(weights)
