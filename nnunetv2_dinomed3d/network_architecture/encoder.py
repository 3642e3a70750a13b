"""Slab encoder: ICE and a DINOv3 ViT with LoRA, the context stream's source of features (DINO-Med3D, section 2.3.1)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import timm
import torch
from einops import rearrange
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture import lora
from nnunetv2_dinomed3d.network_architecture.efficiency.precision import precision
from nnunetv2_dinomed3d.network_architecture.efficiency.slab_cache import CACHE_LIMIT, SlabCache
from nnunetv2_dinomed3d.network_architecture.slab_embedding import InterSliceContextEmbedding
from nnunetv2_dinomed3d.network_architecture.state_dict import (
    Shape,
    is_lora,
    misfit,
    names_without_lora,
    shapes_of,
    without_lora,
)
from nnunetv2_dinomed3d.network_architecture.token_grid import TOKEN_SIZE

NO_LORA_ON_ICE = (
    "The weights are of a network without LoRA on the patch embedding (ICE), and this network has it: they are of "
    "another trainer, or of _released in an older nnunetv2_dinomed3d. Use the trainer and the version that wrote them; "
    "or train anew, or, if they were converted, convert them again."
)

NUM_FEATURE_MAPS = 4
"""Feature maps: the outputs of the blocks at the four quarters of the ViT's depth."""

MAX_TOKENS_PER_PASS = 2**14
"""Most tokens per pass of a frozen ViT: 16 slices of 512 x 512, the paper's clip, at in-plane scale 1."""

Trained = Literal["all", "ice and lora", "lora", "nothing"]


def _require_lora_on_ice(ice: nn.Module, weights: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    if f"{prefix}conv.weight" in weights:
        raise ValueError(NO_LORA_ON_ICE)


def _is_vit_lora(name: str) -> bool:
    return name.startswith("vit.") and is_lora(name)


class BlockwiseRope(nn.Module):
    """timm's RoPE, in training with coordinates rescaled by a random factor for each block, as in DINOv3.

    timm itself draws one factor for all blocks. The tables are made before the blocks run, so that blocks that are
    recomputed in the backward pass get those of the forward pass.

    Args:
        rope: timm's.
        blocks: of the ViT.
        rescale: R; factors are between 1 / R and R, their logarithms uniform.
    """

    def __init__(self, rope: Any, blocks: int, rescale: float) -> None:
        super().__init__()
        self.rope, self.blocks = rope, blocks
        self.rope.rescale_coords, self.rope.aug_active = rescale, True

    def get_embed(self, shape: tuple[int, int]) -> list[Tensor]:
        """A table for each block, sine and cosine ``(h w, 2 * head width)``, for a grid of ``(h, w)`` tokens."""
        get_embed: Callable[[tuple[int, int]], Tensor] = self.rope.get_embed
        return [get_embed(shape) for _ in range(self.blocks)] if self.training else [get_embed(shape)] * self.blocks


class PreEmbedded(nn.Module):
    """Replaces the patch embedding of timm's ViT for input that ICE has embedded already."""

    def forward(self, embedded: Tensor) -> Tensor:
        """``(n, E, h, w)`` to timm's ``(n, h, w, E)``."""
        return rearrange(embedded, "n e h w -> n h w e").contiguous()

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens along h and w (timm asks its patch embedding): the input is the grid itself."""
        return size


class SlabEncoder(nn.Module):
    """Volume in, four volumes of ViT features out.

    Args:
        in_channels: C.
        slab_depth: K.
        vit_name: timm's name of a DINOv3 ViT without qkv bias (timm's own way of having one never calls the qkv layer,
            and LoRA on it would silently do nothing).
        vit_kwargs: overrides for timm's model, e.g. to make it smaller.
        lora_rank, lora_alpha, lora_dropout: of every LoRA.
        rope_rescale, rope_rescale_frozen, lora_on_ice: see `options.NetworkOptions`.
        qkv_bias: give the qkv layers a bias, which the ViTs that Meta released do not have.

    Attributes:
        embed_dim: E, channels of each feature map.
        stride: pixels of the enlarged slice per token, in plane.
        trained: what of the encoder is trained, see `set_trainable`.
    """

    stride = TOKEN_SIZE

    def __init__(
        self,
        in_channels: int,
        slab_depth: int,
        vit_name: str,
        vit_kwargs: Mapping[str, Any],
        *,
        lora_rank: int,
        lora_alpha: int,
        lora_dropout: float,
        rope_rescale: float | None = None,
        rope_rescale_frozen: bool = False,
        lora_on_ice: bool = False,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.vit = timm.create_model(vit_name, pretrained=False, num_classes=0, global_pool="", **vit_kwargs)
        self.embed_dim: int = self.vit.embed_dim
        self.vit.patch_embed = PreEmbedded()
        if qkv_bias:
            for block in self.vit.blocks:
                qkv = block.attn.qkv
                block.attn.qkv = nn.Linear(qkv.in_features, qkv.out_features)
                nn.init.zeros_(block.attn.qkv.bias)
        if rope_rescale is not None:
            self.vit.rope = BlockwiseRope(self.vit.rope, len(self.vit.blocks), rope_rescale)
            self.vit.rope_mixed = True  # timm's name for: each block has a table of its own
        self.rope_rescale_frozen = rope_rescale_frozen
        self.ice = InterSliceContextEmbedding(in_channels, self.embed_dim, slab_depth)

        depth = len(self.vit.blocks)
        self.feature_blocks = [depth * (i + 1) // NUM_FEATURE_MAPS - 1 for i in range(NUM_FEATURE_MAPS)]

        lora.add_lora(self.vit, lora.VIT_TARGETS, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)
        if lora_on_ice:
            lora.add_lora(self.ice, lora.ICE_TARGET, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)
            self.ice.register_load_state_dict_pre_hook(_require_lora_on_ice)
        self._slab_cache: SlabCache | None = None
        self.trained: Trained = "all"
        self.set_trainable("all")

    def forward(self, x: Tensor, pad_depth: bool = True, num_maps: int = NUM_FEATURE_MAPS) -> list[Tensor]:
        """Encode every slab: raw outputs of blocks, without the ViT's final norm.

        In eval mode and without gradients the LoRA of each block is merged while the block runs.

        Args:
            x: ``(b, C, d, h, w)``; h and w are multiples of 16.
            pad_depth: see `slab_embedding.InterSliceContextEmbedding`.
            num_maps: how many of the four maps, the deepest.

        Returns:
            Maps ``(b, E, d, h / 16, w / 16)``, shallow to deep.
        """
        with precision(x, float16=False):  # in which the ViT's attention can overflow
            if not self._only_predicts():
                return self._features(x, pad_depth, num_maps)
            with ExitStack() as stack:
                for block in self.vit.blocks:
                    stack.enter_context(lora.lora_merged_during_forward(block))
                return self._features(x, pad_depth, num_maps)

    def _only_predicts(self) -> bool:
        # a compiled graph can neither change weights nor look maps up
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _features(self, x: Tensor, pad_depth: bool, num_maps: int) -> list[Tensor]:
        slabs = rearrange(self.ice(x, pad_depth), "b e d h w -> (b d) e h w")
        if self._slab_cache is None or not self._only_predicts():
            maps = self._vit_features(slabs, num_maps)
        else:
            keys = self._slab_cache.slab_keys(x, self.ice.slab_depth, pad_depth)
            maps = self._slab_cache.encode(keys, slabs, lambda unknown: self._vit_features(unknown, num_maps))
        return [rearrange(level, "(b d) e h w -> b e d h w", b=len(x)) for level in maps]

    def _vit_features(self, slabs: Tensor, num_maps: int) -> list[Tensor]:
        """Embeddings ``(n, E, h, w)`` to as many maps of the same shape."""
        slabs_per_pass = max(1, MAX_TOKENS_PER_PASS // slabs.shape[-2:].numel())
        # RoPE's rescaling is drawn once for all slabs
        passes = [slabs] if self.vit.rope.training else slabs.split(slabs_per_pass)
        features = [
            self.vit.forward_intermediates(part, indices=self.feature_blocks[-num_maps:], intermediates_only=True)
            for part in passes
        ]
        return [level[0] if len(level) == 1 else torch.cat(level) for level in zip(*features, strict=True)]

    @contextmanager
    def cached_slab_features(self, limit: int = CACHE_LIMIT) -> Iterator[SlabCache]:
        """While open, prediction keeps the maps of slabs and finds them again; the weights must not change.

        Args:
            limit: most bytes that are kept.
        """
        self._slab_cache = SlabCache(limit)
        try:
            yield self._slab_cache
        finally:
            self._slab_cache = None

    def set_trainable(self, trained: Trained) -> None:
        """Choose what is trained: all of ICE and ViT, with LoRA off (stage 1); LoRA alone (stage 2); or nothing.

        With "ice and lora" (a lighter stage 1) it is ICE in full, and the ViT's LoRA. LoRA on ICE is off there.
        The ViT's final norm is in no feature map and never trained.
        """
        self.trained = trained
        self.requires_grad_(trained == "all")
        self.ice.requires_grad_(trained in ("all", "ice and lora"))
        for layer in lora.lora_layers(self.ice):
            layer.enable_adapters(trained == "lora")
        for layer in lora.lora_layers(self.vit):
            layer.enable_adapters(trained in ("lora", "ice and lora"))
        self.vit.norm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SlabEncoder":
        """Set the mode as for any module, but frozen parts stay in eval mode; LoRA's dropout follows ``mode``.

        RoPE is rescaled in all of stage 1's training, whether the ViT is trained itself or by LoRA.
        """
        super().train(mode and self.trained == "all")
        self.training = mode
        if self.rope_rescale_frozen or self.trained == "ice and lora":
            self.vit.rope.train(mode)
        for layer in self.lora_layers():
            layer.lora_dropout.train(mode)
        return self

    def lora_layers(self) -> list[LoraLayer]:
        """The layers that carry LoRA: linear ones of the ViT, and ICE's convolution if asked for."""
        return lora.lora_layers(self)

    def merged_lora(self) -> AbstractContextManager[None]:
        """While open, the ViT's LoRA is folded into its weights; afterwards these are what they were, bit by bit."""
        return lora.merged_lora(self.vit)

    def fold_lora(self) -> None:
        """Add the ViT's LoRA to its weights for good; LoRA starts anew."""
        lora.fold_lora(self.vit)

    def pretrained_shapes(self) -> dict[str, Shape]:
        """Name (timm's) and shape of every tensor that `load_pretrained` needs."""
        shapes = without_lora(shapes_of(self.vit.state_dict()))
        shapes["patch_embed.proj.weight"] = (self.embed_dim, 3, TOKEN_SIZE, TOKEN_SIZE)
        shapes["patch_embed.proj.bias"] = (self.embed_dim,)
        return shapes

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Start from a 2D DINOv3 ViT.

        Args:
            weights: exactly the tensors of `pretrained_shapes`.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        if wrong := misfit(shapes_of(weights), self.pretrained_shapes()):
            raise ValueError(f"{wrong} Are the weights of another variant?")
        self.ice.load_patch_embedding(weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"])
        names = names_without_lora(self.vit.state_dict())
        missing, unexpected = self.vit.load_state_dict(
            {own: weights[name] for name, own in names.items()}, strict=False
        )
        assert not unexpected, unexpected
        assert all(map(is_lora, missing)), missing

    def start_from_stage1(self, weights: Mapping[str, Tensor], trained_lora: bool = False) -> None:
        """Take ICE and ViT from another encoder's state dict, without its LoRA.

        Args:
            weights: the state dict.
            trained_lora: whether its stage 1 trained the ViT's LoRA, which is then part of the ViT: it is folded in.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        own = self.state_dict()
        vit_lora = {name: tensor for name, tensor in weights.items() if trained_lora and _is_vit_lora(name)}
        expected = {name: shape for name, shape in shapes_of(own).items() if trained_lora and _is_vit_lora(name)}
        taken = without_lora(weights)
        if wrong := misfit({**shapes_of(taken), **shapes_of(vit_lora)}, {**without_lora(shapes_of(own)), **expected}):
            raise ValueError(f"{wrong} Was it trained with another variant, slab depth K or number of image channels?")
        mine = {own_name: taken[name] for name, own_name in names_without_lora(own).items()}
        self.load_state_dict({**mine, **vit_lora}, strict=False)
        if trained_lora:
            self.fold_lora()
