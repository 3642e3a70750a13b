"""DINO-Med3D: one module for both stages of the method.

A stage is a mode of the module: what ``forward`` computes and what requires a gradient. The state dict has the same
keys in both and carries the stage, so a checkpoint of either predicts in its own stage.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.adapter import Adapter3D
from nnunetv2_dinomed3d.network_architecture.decoder import Decoder, UPerNetDecoder
from nnunetv2_dinomed3d.network_architecture.detail_stream import DetailEncoder
from nnunetv2_dinomed3d.network_architecture.efficiency.checkpointing import (
    CHEAP_LAYERS,
    EVERYTHING,
    EVERYTHING_WITHOUT_DETAIL,
    apply_checkpointing,
)
from nnunetv2_dinomed3d.network_architecture.efficiency.precision import precision
from nnunetv2_dinomed3d.network_architecture.efficiency.slab_cache import CACHE_LIMIT, SlabCache
from nnunetv2_dinomed3d.network_architecture.encoder import NUM_FEATURE_MAPS, SlabEncoder
from nnunetv2_dinomed3d.network_architecture.fusion import GatedFusion
from nnunetv2_dinomed3d.network_architecture.options import NetworkOptions
from nnunetv2_dinomed3d.network_architecture.proxy_heads import ProxyHead, UPerNetProxyHead
from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, Stage, encoder_state, stage_of
from nnunetv2_dinomed3d.network_architecture.token_grid import (
    SCALES,
    TOKEN_SIZE,
    enlarge_in_plane,
    pad_in_plane,
    padded_side,
)


class DINOMed3D(nn.Module):
    """The network of both stages (Fig. 1); built in stage 2, which predicts.

    Args:
        in_channels: C, channels of the image.
        num_classes: N, segmentation heads.
        scale: in-plane scale S (1, 2 or 4), see `token_grid.in_plane_scale`.
        vit_name, vit_kwargs, qkv_bias: see `encoder.SlabEncoder`.
        decoder_channels: width of adapter and decoder; a multiple of 8, above 64 one of 32.
        detail_channels: width of the detail stream at full scale.
        lora_rank, lora_alpha, lora_dropout: of every LoRA.
        options: what differs from the paper's network.

    Attributes:
        stage: 1 or 2, set by `set_stage`.
        weights_loaded: whether the random initial weights were replaced, by `load_pretrained`, `start_from_stage1` or
            `load_state_dict`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        scale: int = 1,
        vit_name: str = "vit_base_patch16_dinov3",
        vit_kwargs: Mapping[str, Any] | None = None,
        qkv_bias: bool = False,
        decoder_channels: int = 256,
        detail_channels: int = 16,
        lora_rank: int = 16,
        lora_alpha: int = 16,
        lora_dropout: float = 0.1,
        options: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(
                f"scale is {scale}; the in-plane scale is {', '.join(map(str, SCALES[:-1]))} or {SCALES[-1]}."
            )
        self.scale = scale
        self.options = options
        self.encoder = SlabEncoder(
            in_channels,
            options.slab_depth,
            vit_name,
            vit_kwargs or {},
            qkv_bias=qkv_bias,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            lora_on_ice=options.lora_on_ice,
            rope_rescale=options.rope_rescale,
            rope_rescale_frozen=options.rope_rescale_frozen,
        )
        embed_dim, grid = self.encoder.embed_dim, (TOKEN_SIZE // scale, options.depth_alignment)
        self.proxy_head: ProxyHead | UPerNetProxyHead = (
            ProxyHead(embed_dim, num_classes)
            if options.proxy == "linear"
            else UPerNetProxyHead(embed_dim, decoder_channels, num_classes, *grid)
        )
        self.adapter = Adapter3D(embed_dim, decoder_channels, *grid)
        self.decoder: nn.Module
        if options.detail_stream:
            self.detail = DetailEncoder(in_channels, detail_channels, decoder_channels)
            self.fusion = GatedFusion(decoder_channels)
            self.decoder = Decoder(decoder_channels, detail_channels, num_classes)
        else:
            self.decoder = UPerNetDecoder(decoder_channels, num_classes)
        self.weights_loaded = False
        self.checkpoint_activations(False)
        self.set_stage(2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a volume (Eq. 1), float32.

        Args:
            x: ``(b, C, d, h, w)``, any size; with `single_slab_input`, d is K.

        Returns:
            ``(b, N, d, h, w)``; with `single_slab_input`, ``(b, N, 1, h, w)``.
        """
        depth, height, width = x.shape[2:]
        x = x.to(self.encoder.ice.conv.weight.dtype)
        size = padded_side(height, self.scale), padded_side(width, self.scale)
        with precision(x, self.options.mixed_precision):
            features = self._slab_features(x, size)
            if self.stage == 1:
                logits = self.proxy_head(features, size)
            elif not self.options.detail_stream:
                logits = self.decoder(self.adapter(features), (depth, *size))
            else:
                semantic, *coarser = self.adapter(features)
                full, half, quarter = self.detail(pad_in_plane(x, size))  # on the grid of whole tokens, as the logits
                logits = self.decoder([self.fusion(semantic, quarter), *coarser], half, full)
        return logits[..., :height, :width].float()

    def _slab_features(self, x: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """The feature maps ``(b, E, d, h, w)`` that the stage takes, of the enlarged and padded slices; in tokens."""
        height, width = size
        slices = pad_in_plane(enlarge_in_plane(x, self.scale), (height * self.scale, width * self.scale))
        num_maps = self.proxy_head.num_maps if self.stage == 1 else NUM_FEATURE_MAPS
        return self.encoder(slices, not self.single_slab_input, num_maps)

    def set_stage(self, stage: Stage, single_slab_input: bool = False) -> None:
        """Enter stage 1 (trained: ICE, ViT, proxy head) or 2 (trained: LoRA, adapter, detail, fusion, decoder).

        With `NetworkOptions.stage1_lora`, stage 1 trains LoRA in the ViT's place; then call `end_stage1`.

        Args:
            stage: 1 or 2.
            single_slab_input: in stage 1, inputs are single slabs of K slices and the output is the central slice's, as
                in stage 1's training. Otherwise inputs are volumes and every slice is predicted.
        """
        if stage not in (1, 2):
            raise ValueError(f"stage is {stage}; the method has stages 1 and 2.")
        if single_slab_input and stage == 2:
            raise ValueError("single_slab_input is for stage 1; stage 2 takes volumes.")
        self.stage = stage
        self.single_slab_input = single_slab_input
        self.requires_grad_(stage == 2)
        self.proxy_head.requires_grad_(stage == 1)
        if stage == 2:
            self.encoder.set_trainable("lora")
        elif self.options.stage1_lora:
            self.encoder.set_trainable("ice and lora")
        else:
            self.encoder.set_trainable("all" if self.options.train_encoder else "nothing")

    def end_stage1(self) -> None:
        """Bring the weights that stage 1 left into the form that stage 2 starts from.

        With `NetworkOptions.stage1_lora`, LoRA is added to the ViT's weights, and stage 2's starts anew.
        """
        if self.options.stage1_lora and self.stage == 1:
            self.encoder.fold_lora()

    def to(self, *args: Any, **kwargs: Any) -> "DINOMed3D":
        """Move as any module; on the CPU in the channels-last layout, in which 3D convolutions are faster."""
        super().to(*args, **kwargs)
        layout = torch.channels_last_3d if next(self.parameters()).is_cpu else torch.contiguous_format
        with torch.inference_mode(False):  # nnU-Net's predictor is in it, and weights made there cannot be trained
            return super().to(memory_format=layout)

    def checkpoint_activations(self, enable: bool = True) -> None:
        """Recompute ViT blocks and all after the ViT but costly convolutions in the backward pass: less memory."""
        everything = EVERYTHING if self.options.detail_stream else EVERYTHING_WITHOUT_DETAIL
        self.encoder.vit.set_grad_checkpointing(enable)
        apply_checkpointing(self, everything if enable else CHEAP_LAYERS)

    def merged_lora(self) -> AbstractContextManager[None]:
        """While open, LoRA is folded into the frozen weights; exactly undone afterwards. For prediction."""
        return self.encoder.merged_lora()

    def cached_slab_features(self, limit: int = CACHE_LIMIT) -> AbstractContextManager[SlabCache]:
        """While open, sliding windows (nnU-Net's predictor's, of any case) encode each slab once.

        The weights must not change meanwhile. Compiled networks, and those with gradients, go on as before.

        Args:
            limit: most bytes of feature maps that are kept.
        """
        return self.encoder.cached_slab_features(limit)

    def pretrained_shapes(self) -> dict[str, Shape]:
        """Name (timm's, of the variant's 2D ViT) and shape of every tensor that `load_pretrained` needs."""
        return self.encoder.pretrained_shapes()

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Start ICE and ViT from a 2D DINOv3 ViT. Raises ValueError for anything but `pretrained_shapes`."""
        self.encoder.load_pretrained(weights)
        self.weights_loaded = True

    def start_from_stage1(self, state: Mapping[str, Tensor], stage1_lora: bool = False) -> None:
        """Start stage 2 from another training's stage 1: take ICE and ViT from its network's state dict.

        All else of ``state`` is stage 2's or the old classes', and stays out.

        Args:
            state: of a network in either stage.
            stage1_lora: whether that network has `NetworkOptions.stage1_lora`. Of its stage 1, LoRA is folded into the
                ViT; of its stage 2, this was done.

        Raises:
            ValueError: ICE and ViT do not fit completely.
        """
        self.encoder.start_from_stage1(encoder_state(state), stage1_lora and stage_of(state) == 1)
        self.weights_loaded = True

    def get_extra_state(self) -> Tensor:
        """The stage, for the state dict; a tensor, since nnU-Net asks each entry of a state dict for its shape."""
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`: the network enters the stage of the weights it gets."""
        self.set_stage(cast(Stage, int(state)))
        self.weights_loaded = True
