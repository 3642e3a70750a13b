"""Slab encoder: ICE and a DINOv3 ViT with LoRA (context stream of DINO-Med3D, stages 1 and 2)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import timm
import torch
from einops import rearrange
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.efficiency.slab_cache import SliceCache
from nnunetv2_dinomed3d.network_architecture.slab_embedding import PATCH, InterSliceContextEmbedding

LORA_TARGETS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc1_g|fc1_x|fc2))"
"""Linear layers of the Transformer blocks; ``fc1_g`` and ``fc1_x`` are of a SwiGLU MLP (plus-sized ViTs)."""

NO_LORA_ON_ICE = (
    "The weights are of a network without LoRA on the patch embedding (ICE), which this one has: of another trainer or "
    "of _released in an older nnunetv2_dinomed3d. Use the trainer and the version that wrote them; or train anew, or, "
    "if they were converted, convert them again."
)

FEATURE_LEVELS = 4

TOKENS_AT_ONCE = 2**14
"""Of the slices that pass a frozen ViT together: 16 of 512 x 512, the paper's clip, at in-plane scale 1."""

Trained = Literal["all", "lora", "nothing"]


def _require_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], advice: str) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{len(wrong)} tensors do not fit this ViT, the first is {name}: expected {expected.get(name)}, "
            f"got {found.get(name)}. {advice}"
        )


def _lora_layers(module: nn.Module) -> list[LoraLayer]:
    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


def _require_lora_on_ice(ice: nn.Module, weights: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    if f"{prefix}conv.weight" in weights:
        raise ValueError(NO_LORA_ON_ICE)


@contextmanager
def _merged_lora(module: nn.Module) -> Iterator[None]:
    layers = [layer for layer in _lora_layers(module) if not layer.disable_adapters and not layer.merged]
    weights = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            for adapter in layer.active_adapters:
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                layer.get_base_layer().weight.data = torch.addmm(weight, b, a, alpha=layer.scaling[adapter])
                layer.merged_adapters.append(adapter)  # as peft's own merge, which takes three times as long
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = weight


@contextmanager
def _merged_lora_while_it_runs(block: nn.Module) -> Iterator[None]:
    merged = ExitStack()
    before = block.register_forward_pre_hook(lambda *_: merged.enter_context(_merged_lora(block)))
    after = block.register_forward_hook(lambda *_: merged.close(), always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        merged.close()


class BlockwiseRope(nn.Module):
    """timm's RoPE, in training with coordinates rescaled by a factor that is drawn for each block, as in DINOv3.

    timm itself draws one for all blocks. The tables are made before the blocks run: what is recomputed in the backward
    pass has those of the forward pass.

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
        """Of each block its table, sine and cosine ``(h w, 2 * head width)``, for a grid of ``(h, w)`` tokens."""
        get_embed: Callable[[tuple[int, int]], Tensor] = self.rope.get_embed
        return [get_embed(shape) for _ in range(self.blocks)] if self.training else [get_embed(shape)] * self.blocks


class TokenGrid(nn.Module):
    """Stands where timm's ViT has its patch embedding, for input that ICE has embedded already."""

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
        rope_rescale: R; in training the coordinates that RoPE encodes are multiplied by a random factor between 1 / R
            and R, one for each block of each forward pass, as in DINOv3's own training (R = 2). None: never. Only what
            is trained is in training mode: not in stage 2.
        rope_rescale_frozen: rescale in training also where the ViT is frozen, as the released code does in stage 2.
        lora_on_ice: whether ICE's convolution carries LoRA too, as the released code's patch embedding does.
        qkv_bias: give the qkv layers a bias, which the ViTs that Meta released do not have.

    Attributes:
        embed_dim: E, channels of each feature map.
        stride: voxels of the (scaled) slice per token, in plane.
        trained: what of the encoder is trained, see `train_only`.
    """

    stride = PATCH

    def __init__(
        self,
        in_channels: int,
        slab_depth: int,
        vit_name: str,
        vit_kwargs: Mapping[str, Any],
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
        self.vit.patch_embed = TokenGrid()
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
        # the four quarters of the ViT's depth
        self.feature_blocks = [depth * (i + 1) // FEATURE_LEVELS - 1 for i in range(FEATURE_LEVELS)]

        def add_lora(module: nn.Module, targets: str) -> None:
            lora = LoraConfig(
                r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets, bias="none"
            )
            inject_adapter_in_model(lora, module)

        add_lora(self.vit, LORA_TARGETS)
        if lora_on_ice:
            add_lora(self.ice, "conv")
            self.ice.register_load_state_dict_pre_hook(_require_lora_on_ice)
        self._slice_cache: SliceCache | None = None
        self.trained: Trained = "all"
        self.train_only("all")

    def forward(self, x: Tensor, pad_depth: bool = True, levels: int = FEATURE_LEVELS) -> list[Tensor]:
        """``(b, C, d, h, w)`` to four maps ``(b, E, d, h / 16, w / 16)``, shallow to deep; h and w multiples of 16.

        Raw outputs of the blocks, without the ViT's final norm. ``pad_depth`` is ICE's; ``levels`` is how many of the
        four, the deepest. In eval mode and without gradients the LoRA of each block is merged while the block runs.
        """
        if not self._only_predicts():
            return self._features(x, pad_depth, levels)
        with ExitStack() as stack:
            for block in self.vit.blocks:
                stack.enter_context(_merged_lora_while_it_runs(block))
            return self._features(x, pad_depth, levels)

    def _only_predicts(self) -> bool:
        # a compiled graph can neither change weights nor look maps up
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _features(self, x: Tensor, pad_depth: bool, levels: int) -> list[Tensor]:
        slices = rearrange(self.ice(x, pad_depth), "b e d h w -> (b d) e h w")
        if self._slice_cache is None or not self._only_predicts():
            maps = self._vit_features(slices, levels)
        else:
            keys = self._slice_cache.slab_keys(x, self.ice.slab_depth, pad_depth)
            maps = self._slice_cache.encode(keys, slices, lambda unknown: self._vit_features(unknown, levels))
        return [rearrange(level, "(b d) e h w -> b e d h w", b=len(x)) for level in maps]

    def _vit_features(self, slices: Tensor, levels: int) -> list[Tensor]:
        """``(n, E, h, w)`` to as many maps of the same shape."""
        at_once = max(1, TOKENS_AT_ONCE // slices.shape[-2:].numel())
        # RoPE's rescaling is drawn once for all slices
        chunks = [slices] if self.vit.rope.training else slices.split(at_once)
        features = [
            self.vit.forward_intermediates(chunk, indices=self.feature_blocks[-levels:], intermediates_only=True)
            for chunk in chunks
        ]
        return [level[0] if len(level) == 1 else torch.cat(level) for level in zip(*features, strict=True)]

    @contextmanager
    def slices_encoded_once(self) -> Iterator[SliceCache]:
        """While open, prediction keeps the maps of slices, and finds them again; the weights must not change."""
        self._slice_cache = SliceCache()
        try:
            yield self._slice_cache
        finally:
            self._slice_cache = None

    def train_only(self, trained: Trained) -> None:
        """Choose what is trained: all of ICE and ViT, with LoRA off (stage 1); LoRA alone (stage 2); or nothing.

        The ViT's final norm is in no feature map and never trained.
        """
        self.trained = trained
        self.requires_grad_(trained == "all")
        for layer in self.lora_layers():
            layer.enable_adapters(trained == "lora")
        self.vit.norm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SlabEncoder":
        """As for any module, but what is frozen stays in eval mode; LoRA's dropout follows ``mode``."""
        super().train(mode and self.trained == "all")
        self.training = mode
        if self.rope_rescale_frozen:
            self.vit.rope.train(mode)
        for layer in self.lora_layers():
            layer.lora_dropout.train(mode)
        return self

    def lora_layers(self) -> list[LoraLayer]:
        """The layers that carry LoRA matrices: linear ones of the ViT, and ICE's convolution where it does."""
        return _lora_layers(self)

    def merged_lora(self) -> AbstractContextManager[None]:
        """While open, the ViT's LoRA is folded into its weights; afterwards these are what they were, bit by bit."""
        return _merged_lora(self.vit)

    def _pretrained_names(self) -> dict[str, str]:
        """Name in a plain timm ViT -> name in ``self.vit``, for all that ``self.vit`` takes from it."""
        names = [name for name in self.vit.state_dict() if ".lora_" not in name]
        return {name.replace(".base_layer", ""): name for name in names}

    def pretrained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (timm's) and shape of every tensor that `load_pretrained` needs."""
        own = self.vit.state_dict()
        shapes = {name: tuple(own[mine].shape) for name, mine in self._pretrained_names().items()}
        shapes["patch_embed.proj.weight"] = (self.embed_dim, 3, PATCH, PATCH)
        shapes["patch_embed.proj.bias"] = (self.embed_dim,)
        return shapes

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Start from a 2D DINOv3 ViT.

        Args:
            weights: exactly the tensors of `pretrained_shapes`.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        _require_shapes(weights, self.pretrained_shapes(), "Weights of another variant?")
        self.ice.load_patch_embedding(weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"])
        state = {mine: weights[name] for name, mine in self._pretrained_names().items()}
        missing, unexpected = self.vit.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(".lora_" in name for name in missing), missing

    def load_stage1(self, weights: Mapping[str, Tensor]) -> None:
        """Take ICE and ViT from another encoder's state dict, without its LoRA.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        # ICE has peft's base_layer in its names where it carries LoRA
        weights = {name.replace(".base_layer", ""): w for name, w in weights.items() if ".lora_" not in name}
        own = self.state_dict()
        names = {name.replace(".base_layer", ""): name for name in own if ".lora_" not in name}
        expected = {name: tuple(own[mine].shape) for name, mine in names.items()}
        _require_shapes(weights, expected, "Trained with another variant, slab depth K or number of image channels?")
        self.load_state_dict({mine: weights[name] for name, mine in names.items()}, strict=False)
