"""DINO-Med3D: one module for both stages of the method.

A stage is a mode of the module: what ``forward`` computes and what requires a gradient. The state dict has the same
keys in both, and carries the stage, so that a checkpoint of either predicts as what it is.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.adapter import Adapter3D, DepthAlignment
from nnunetv2_dinomed3d.network_architecture.decoder import Decoder, UPerNetDecoder
from nnunetv2_dinomed3d.network_architecture.detail_stream import DetailEncoder
from nnunetv2_dinomed3d.network_architecture.efficiency.checkpointing import Recomputed
from nnunetv2_dinomed3d.network_architecture.efficiency.slab_cache import SliceCache
from nnunetv2_dinomed3d.network_architecture.encoder import FEATURE_LEVELS, SlabEncoder
from nnunetv2_dinomed3d.network_architecture.fusion import GatedFusion
from nnunetv2_dinomed3d.network_architecture.slab_embedding import in_plane_scale, padded_side


@torch.compiler.assume_constant_result
def has_bfloat16(device_type: str) -> bool:
    """Whether the current device of this type computes in bfloat16 itself, without emulation."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device_type == "cuda" else True


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    # the meta device has none, and to ask whether it is enabled there is an error
    return torch.amp.is_autocast_available(device_type)


def _autocast_is_on(device_type: str) -> bool:
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


Proxy = Literal["linear", "upernet"]


class ProxyHead(nn.Module):
    """Stage 1's linear head: a 1x1 convolution on the last feature map.

    Args:
        embed_dim: E.
        num_classes: N.

    Attributes:
        levels: how many of the encoder's maps it takes, the deepest.
    """

    levels = 1

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.seg_layers = nn.Conv3d(embed_dim, num_classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """A map ``(b, E, d, h, w)`` in a list to logits ``(b, N, d, *size)``, resized bilinearly in plane."""
        logits = rearrange(self.seg_layers(features[-1]), "b n d h w -> (b d) n h w")
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return rearrange(logits, "(b d) n h w -> b n d h w", b=len(features[-1]))


class UPerNetProxyHead(nn.Module):
    """In place of the linear head: stage 2's adapter and UPerNet on each slice, a volume one slice deep (Table 3).

    Args:
        embed_dim: E.
        channels: of the adapter's levels.
        num_classes: N.
        token_stride, depth_alignment: the adapter's.

    Attributes:
        levels: how many of the encoder's maps it takes.
    """

    levels = FEATURE_LEVELS

    def __init__(
        self, embed_dim: int, channels: int, num_classes: int, token_stride: int, depth_alignment: DepthAlignment
    ) -> None:
        super().__init__()
        self.adapter = Adapter3D(embed_dim, channels, token_stride, depth_alignment)
        self.decoder = UPerNetDecoder(channels, num_classes)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Four maps ``(b, E, d, h, w)`` to logits ``(b, N, d, *size)``."""
        slices = [rearrange(feature, "b e d h w -> (b d) e 1 h w") for feature in features]
        logits = self.decoder(self.adapter(slices), (1, *size))
        return rearrange(logits, "(b d) n 1 h w -> b n d h w", b=len(features[-1]))


class DINOMed3D(Recomputed):
    """The network of both stages; built in stage 2, which is what predicts.

    Args:
        in_channels: C, channels of the image.
        num_classes: N, segmentation heads.
        scale: in-plane scale S (1, 2 or 4), see `slab.in_plane_scale`.
        slab_depth: K, slices in a slab; the paper uses 3.
        vit_name, vit_kwargs: timm's name of the ViT and overrides for it.
        qkv_bias: see `encoder.SlabEncoder`.
        decoder_channels: width of adapter and decoder; a multiple of 8, above 64 one of 32.
        detail_channels: width of the detail stream at full scale.
        lora_rank, lora_alpha, lora_dropout: of every LoRA.
        depth_alignment: see `adapter.Adapter3D`.
        rope_rescale, rope_rescale_frozen, lora_on_ice: see `encoder.SlabEncoder`.
        train_encoder: whether stage 1 trains ICE and ViT, or only the proxy head (Table 3, row 1).
        proxy: what predicts in stage 1: the linear head, or a UPerNet (Table 3, row 6).
        detail_stream: whether stage 2 has one, and with it the fusion and the refinement (Table 3, row 3: not).
        mixed_precision: whether to compute in bfloat16 where autocast is on.

    Attributes:
        stage: 1 or 2, set by `set_stage`.
        has_weights: whether the random initial weights were replaced, by `load_pretrained` or `load_state_dict`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        scale: int = 1,
        slab_depth: int = 3,
        vit_name: str = "vit_base_patch16_dinov3",
        vit_kwargs: Mapping[str, Any] | None = None,
        qkv_bias: bool = False,
        decoder_channels: int = 256,
        detail_channels: int = 16,
        lora_rank: int = 16,
        lora_alpha: int = 16,
        lora_dropout: float = 0.1,
        depth_alignment: DepthAlignment = "exact",
        rope_rescale: float | None = 2.0,
        rope_rescale_frozen: bool = False,
        lora_on_ice: bool = False,
        train_encoder: bool = True,
        proxy: Proxy = "linear",
        detail_stream: bool = True,
        mixed_precision: bool = True,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 4):
            raise ValueError(f"scale is {scale}; the in-plane scale is 1, 2 or 4.")
        if depth_alignment not in ("exact", "released"):
            raise ValueError(f"depth_alignment is {depth_alignment!r}; it is 'exact' or 'released'.")
        if proxy not in ("linear", "upernet"):
            raise ValueError(f"proxy is {proxy!r}; stage 1 predicts with a 'linear' head or a 'upernet'.")
        self.scale = scale
        self.train_encoder = train_encoder
        self.mixed_precision = mixed_precision
        self.encoder = SlabEncoder(
            in_channels,
            slab_depth,
            vit_name,
            vit_kwargs or {},
            lora_rank,
            lora_alpha,
            lora_dropout,
            rope_rescale,
            rope_rescale_frozen,
            lora_on_ice,
            qkv_bias,
        )
        embed_dim, token_stride = self.encoder.embed_dim, self.encoder.stride // scale
        self.proxy_head = (
            ProxyHead(embed_dim, num_classes)
            if proxy == "linear"
            else UPerNetProxyHead(embed_dim, decoder_channels, num_classes, token_stride, depth_alignment)
        )
        self.adapter = Adapter3D(embed_dim, decoder_channels, token_stride, depth_alignment)
        self.decoder: nn.Module
        if detail_stream:
            self.detail = DetailEncoder(in_channels, detail_channels, decoder_channels)
            self.fusion = GatedFusion(decoder_channels)
            self.decoder = Decoder(decoder_channels, detail_channels, num_classes)
        else:
            self.decoder = UPerNetDecoder(decoder_channels, num_classes)
        self.detail_stream = detail_stream
        self.has_weights = False
        self.set_stage(2)

    def set_stage(self, stage: int, bare_slabs: bool = False) -> None:
        """Enter stage 1 (trained: ICE, ViT, linear head) or 2 (trained: LoRA, adapter, detail, fusion, decoder).

        Args:
            stage: 1 or 2.
            bare_slabs: in stage 1, inputs are single slabs of K slices and the output is the central slice's, as in
                stage 1's training. Otherwise inputs are volumes and every slice is predicted.
        """
        if stage not in (1, 2):
            raise ValueError(f"stage is {stage}; the method has stages 1 and 2.")
        if bare_slabs and stage == 2:
            raise ValueError("Bare slabs are stage 1's input; stage 2 takes volumes.")
        self.stage = stage
        self.bare_slabs = bare_slabs
        self.requires_grad_(stage == 2)
        self.proxy_head.requires_grad_(stage == 1)
        if stage == 2:
            self.encoder.train_only("lora")
        else:
            self.encoder.train_only("all" if self.train_encoder else "nothing")

    def to(self, *args: Any, **kwargs: Any) -> "DINOMed3D":
        """As for any module; on the CPU weights come in the channels-last layout, where 3D convolutions are faster."""
        super().to(*args, **kwargs)
        layout = torch.channels_last_3d if next(self.parameters()).is_cpu else torch.contiguous_format
        with torch.inference_mode(False):  # nnU-Net's predictor is in it, and weights made there cannot be trained
            return super().to(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a volume, float32.

        Args:
            x: ``(b, C, d, h, w)``, any size; with `bare_slabs`, d is K.

        Returns:
            ``(b, N, d, h, w)``; with `bare_slabs`, ``(b, N, 1, h, w)``.
        """
        device_type = x.device.type
        if _autocast_is_on(device_type) and not self.mixed_precision:
            with torch.autocast(device_type, enabled=False):
                return self._forward(x.float())
        # nnU-Net's autocast is float16, in which a ViT's attention can overflow
        if _autocast_is_on(device_type) and has_bfloat16(device_type):
            with torch.autocast(device_type, dtype=torch.bfloat16):
                return self._forward(x).float()
        return self._forward(x).float()

    def _forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = padded_side(height, self.scale), padded_side(width, self.scale)
        features = self._encode(x, padded)
        if self.stage == 1:
            logits = self.proxy_head(features, padded)
        elif not self.detail_stream:
            levels = self.whole(self.adapter, features)
            logits = self.whole(self.decoder, levels, (x.shape[2], *padded))
        else:
            # on the ViT's padded grid, so that both streams agree on where a voxel is
            volume = F.pad(x, (0, padded[1] - width, 0, padded[0] - height))
            levels = self.whole(self.adapter, features)
            full, half, quarter = self.detail(volume)
            fused = self.whole(self.fusion, levels[0], quarter)
            logits = self.decoder([fused, *levels[1:]], half, full)
        return logits[..., :height, :width]

    def _encode(self, x: Tensor, padded: tuple[int, int]) -> list[Tensor]:
        """Those feature maps ``(b, E, d, h, w)`` of the scaled and padded slices that the stage takes; in tokens."""
        if self.scale > 1:
            slices = rearrange(x, "b c d h w -> (b d) c h w")
            slices = F.interpolate(slices, scale_factor=self.scale, mode="bilinear", align_corners=False)
            x = rearrange(slices, "(b d) c h w -> b c d h w", b=len(x))
        height, width = x.shape[-2:]
        x = F.pad(x, (0, padded[1] * self.scale - width, 0, padded[0] * self.scale - height))
        levels = self.proxy_head.levels if self.stage == 1 else FEATURE_LEVELS
        if _autocast_is_on(x.device.type) and not has_bfloat16(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.encoder(x.float(), not self.bare_slabs, levels)
        return self.encoder(x, not self.bare_slabs, levels)

    def checkpoint_activations(self, enable: bool = True) -> None:
        """Recompute ViT blocks and all after the ViT but costly convolutions in the backward pass, and keep less."""
        self.encoder.vit.set_grad_checkpointing(enable)
        for module in self.modules():
            if isinstance(module, Recomputed):
                module.recompute = enable

    def merged_lora(self) -> AbstractContextManager[None]:
        """LoRA folded into the frozen weights while open, exactly undone afterwards. For prediction."""
        return self.encoder.merged_lora()

    def slices_encoded_once(self) -> AbstractContextManager[SliceCache]:
        """While open, sliding windows (nnU-Net's predictor's, of any case) encode each slab once.

        The weights must not change meanwhile. Compiled networks, and those with gradients, go on as before.
        """
        return self.encoder.slices_encoded_once()

    def pretrained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (timm's, of the variant's 2D ViT) and shape of every tensor that `load_pretrained` needs."""
        return self.encoder.pretrained_shapes()

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Start ICE and ViT from a 2D DINOv3 ViT. Raises ValueError for anything but `pretrained_shapes`."""
        self.encoder.load_pretrained(weights)
        self.has_weights = True

    def load_stage1(self, state: Mapping[str, Tensor]) -> None:
        """Start stage 2 from another training's stage 1: take ICE and ViT from its network's state dict.

        Raises ValueError where they do not fit completely. All else of ``state`` is stage 2's or the old classes'.
        """
        encoder = {name.removeprefix("encoder."): w for name, w in state.items() if name.startswith("encoder.")}
        self.encoder.load_stage1(encoder)
        self.has_weights = True

    def get_extra_state(self) -> Tensor:
        """The stage, for the state dict; a tensor, since nnU-Net asks each entry of a state dict for its shape."""
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`: the network enters the stage of the weights it gets."""
        self.set_stage(int(state))
        self.has_weights = True


@dataclass(frozen=True)
class Variant:
    """One size of the network: the keyword arguments of `DINOMed3D` that make it.

    ``weights_name`` is the name of the ViT whose pretrained weights fit, timm's where timm has them.
    """

    vit_name: str
    weights_name: str | None
    vit_kwargs: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    decoder_channels: int = 256
    detail_channels: int = 16

    def options(self) -> dict[str, Any]:
        """The keyword arguments."""
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
    *,
    slab_depth: int = 3,
    depth_alignment: DepthAlignment = "exact",
    rope_rescale: float | None = 2.0,
    rope_rescale_frozen: bool = False,
    lora_on_ice: bool = False,
    train_encoder: bool = True,
    proxy: Proxy = "linear",
    detail_stream: bool = True,
    mixed_precision: bool = True,
) -> DINOMed3D:
    """A network of a named size for a patch size, with random weights and in stage 2.

    Args:
        variant: one of `VARIANTS`.
        in_channels: C.
        num_classes: N, segmentation heads.
        patch_size: ``(D, H, W)``; decides the in-plane scale. Volumes of other sizes can be passed all the same.
        slab_depth: K.
        depth_alignment, rope_rescale, rope_rescale_frozen, lora_on_ice, train_encoder, proxy, detail_stream,
            mixed_precision: see `DINOMed3D`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"There is no variant {variant!r}; there are {', '.join(VARIANTS)}.")
    size = VARIANTS[variant]
    return DINOMed3D(
        in_channels,
        num_classes,
        scale=in_plane_scale(patch_size),
        slab_depth=slab_depth,
        **size.options(),
        depth_alignment=depth_alignment,
        rope_rescale=rope_rescale,
        rope_rescale_frozen=rope_rescale_frozen,
        lora_on_ice=lora_on_ice,
        train_encoder=train_encoder,
        proxy=proxy,
        detail_stream=detail_stream,
        mixed_precision=mixed_precision,
    )
