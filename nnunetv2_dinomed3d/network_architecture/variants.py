"""Sizes of the network, and the factory that builds one for a patch size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nnunetv2_dinomed3d.network_architecture.dinomed3d import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.options import NetworkOptions
from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale


@dataclass(frozen=True)
class Variant:
    """One size of the network: the keyword arguments of `DINOMed3D` that make it.

    Attributes:
        vit_name, vit_kwargs, qkv_bias, decoder_channels, detail_channels: see `DINOMed3D`.
        weights_name: name of the ViT whose pretrained weights fit, timm's if timm has them; None if there are none.
    """

    vit_name: str
    weights_name: str | None
    vit_kwargs: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    decoder_channels: int = 256
    detail_channels: int = 16

    @property
    def network_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of `DINOMed3D`."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "weights_name"}


VARIANTS: Mapping[str, Variant] = {
    # the same code, small enough to be trained on a CPU; DINOv3 has no weights of this size
    "nano": Variant(
        "vit_small_patch16_dinov3",
        None,
        {"embed_dim": 96, "depth": 4, "num_heads": 3, "init_values": 0.1},
        decoder_channels=64,
        detail_channels=8,
    ),
    # not Meta's: distilled from DINOv3 by LightlyTrain, which has the weights
    "tiny": Variant(
        "vit_small_patch16_dinov3", "vit_tiny_patch16_dinov3", {"embed_dim": 192, "num_heads": 3}, qkv_bias=True
    ),
    "small": Variant("vit_small_patch16_dinov3", "vit_small_patch16_dinov3"),
    "small_plus": Variant("vit_small_plus_patch16_dinov3", "vit_small_plus_patch16_dinov3"),
    "base": Variant("vit_base_patch16_dinov3", "vit_base_patch16_dinov3"),
    "large": Variant("vit_large_patch16_dinov3", "vit_large_patch16_dinov3"),
    "huge_plus": Variant("vit_huge_plus_patch16_dinov3", "vit_huge_plus_patch16_dinov3"),
}


def build_dinomed3d(
    variant: str,
    in_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    options: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    **changes: Any,
) -> DINOMed3D:
    """A network of a named size for a patch size, with random weights and in stage 2.

    Args:
        variant: one of `VARIANTS`.
        in_channels: C.
        num_classes: N, segmentation heads.
        patch_size: ``(D, H, W)``; decides the in-plane scale. Volumes of other sizes can be passed all the same.
        options: what the network does differently from the paper's.
        changes: single options by name, e.g. ``slab_depth=5``.

    Raises:
        ValueError: there is no such variant, or an option has no such value.
    """
    if variant not in VARIANTS:
        raise ValueError(f"There is no variant {variant!r}; there are {', '.join(VARIANTS)}.")
    return DINOMed3D(
        in_channels,
        num_classes,
        scale=in_plane_scale(patch_size),
        **VARIANTS[variant].network_kwargs,
        options=replace(options, **changes),
    )
