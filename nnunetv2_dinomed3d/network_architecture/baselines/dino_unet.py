"""Dino U-Net: a 2D U-Net on a frozen DINOv3 ViT (Gao et al., arXiv 2508.20909)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork
from nnunetv2_dinomed3d.network_architecture.baselines.fidelity_projection import FidelityProjection
from nnunetv2_dinomed3d.network_architecture.baselines.vit_adapter import SCALES, ViTAdapter
from nnunetv2_dinomed3d.network_architecture.efficiency.precision import has_bfloat16
from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, misfit, shapes_of

BACKBONES = {
    "small": "vit_small_patch16_dinov3",
    "base": "vit_base_patch16_dinov3",
    "large": "vit_large_patch16_dinov3",
}
"""Name here -> timm's, of ViTs without qkv bias: it is zero in the weights that Meta released."""

DIVISOR = 32
"""Of both sides: the coarsest map's stride."""

ROPE_RESCALE = 2.0
"""R: in training, RoPE's coordinates are scaled by a factor in [1 / R, R], log-uniform, one per forward pass."""

COLOURS = {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 2)}
"""Number of input channels -> those that stand for the ViT's three colours."""

Channels = Literal["all", "first_three"]


def default_blocks(depth: int) -> tuple[int, ...]:
    """The blocks, counted from 0, whose maps are taken from a ViT of this depth: at its quarters, but for L's first."""
    return (4, 11, 17, 23) if depth == 24 else tuple(depth * (i + 1) // SCALES - 1 for i in range(SCALES))


class FrozenViT(nn.Module):
    """A DINOv3 ViT that is never trained, and its four maps. Only its RoPE has a training mode.

    It computes without gradients; on a GPU in bfloat16, whatever autocast the caller has turned on.

    Args:
        backbone: one of `BACKBONES`.
        vit_kwargs: overrides for timm's model, e.g. to make it smaller.
        blocks: see `DinoUNet`.

    Attributes:
        model: timm's.
        embed_dim: E.
    """

    def __init__(self, backbone: str, vit_kwargs: Mapping[str, Any], blocks: Sequence[int] | None) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"There is no backbone {backbone!r}; there are {', '.join(BACKBONES)}.")
        self.model = timm.create_model(
            BACKBONES[backbone], pretrained=False, num_classes=0, global_pool="", **vit_kwargs
        )
        self.embed_dim: int = self.model.embed_dim
        depth = len(self.model.blocks)
        self.blocks = default_blocks(depth) if blocks is None else tuple(blocks)
        if len(self.blocks) != SCALES or sorted(set(self.blocks) & set(range(depth))) != list(self.blocks):
            raise ValueError(f"blocks={self.blocks}; they are {SCALES} of 0 to {depth - 1}, in order.")
        self.model.rope.rescale_coords, self.model.rope.aug_active = ROPE_RESCALE, True
        self.model.rope.to(self.model.cls_token.device)  # timm leaves it on the CPU when the default device is another
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "FrozenViT":
        """RoPE alone follows ``mode``."""
        super().train(False)
        self.training = mode
        self.model.rope.train(mode)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """``(b, 3, H, W)`` to four maps ``(b, E, H / 16, W / 16)``, shallow to deep, each after the final norm."""
        if not x.is_cuda:
            return self._maps(x)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=has_bfloat16("cuda")):
            return self._maps(x)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            x, indices=list(self.blocks), norm=True, stop_early=True, intermediates_only=True
        )
        return maps


class DinoEncoder(nn.Module):
    """Frozen ViT, adapter, projection to the decoder's widths, and upsampling by four.

    Args:
        vit: the ViT.
        features: channels of the skips, fine to coarse.
        image_channels: of the image that the adapter sees.
    """

    def __init__(self, vit: FrozenViT, features: Sequence[int], image_channels: int = 3) -> None:
        super().__init__()
        self.vit = vit
        self.adapter = ViTAdapter(vit.embed_dim, image_channels)
        self.projection = FidelityProjection(vit.embed_dim, features)
        self.upsampling = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for width in features)

    def forward(self, x: Tensor, colours: Tensor) -> list[Tensor]:
        """The image and what stands for it before the ViT, to skips ``(b, features[i], H / 2^i, W / 2^i)``.

        A map is upsampled by two twice, with the same weights.

        Args:
            x: ``(b, image channels, H, W)``.
            colours: ``(b, 3, H, W)``.
        """
        levels = self.projection(self.adapter(x, self.vit(colours)))
        return [double(double(level)) for double, level in zip(self.upsampling, levels, strict=True)]


class ConvNormAct(nn.Module):
    """nnU-Net's block in 2D: 3x3 convolution, InstanceNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.InstanceNorm2d(out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, in_channels, h, w)`` to ``(b, out_channels, h, w)``."""
        return F.leaky_relu(self.norm(self.conv(x)), inplace=True)


class DecoderStage(nn.Module):
    """Upsampling by two, concatenation with the skip, two convolutions."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.convs = nn.Sequential(ConvNormAct(2 * channels, channels), ConvNormAct(channels, channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(b, in_channels, h, w)`` and skip ``(b, channels, 2 h, 2 w)`` to the skip's shape."""
        return self.convs(torch.cat([self.up(x), skip], dim=1))


class UNetDecoder(nn.Module):
    """nnU-Net's decoder in 2D, without deep supervision.

    Args:
        features: channels of the skips, fine to coarse.
        num_classes: N, segmentation heads.

    Attributes:
        stages, seg_layers: the deepest first. As in the official code each stage has a head, and only the finest is
            used. The others have gradients of zero in training: `DistributedDataParallel` waits for every gradient.
    """

    def __init__(self, features: Sequence[int], num_classes: int) -> None:
        super().__init__()
        deep_to_fine = features[::-1]
        self.stages = nn.ModuleList(DecoderStage(deep, own) for deep, own in pairwise(deep_to_fine))
        self.seg_layers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in deep_to_fine[1:])

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        """Skips ``(b, features[i], H / 2^i, W / 2^i)`` to logits ``(b, N, H, W)``."""
        *finer, x = skips
        for stage, skip in zip(self.stages, finer[::-1], strict=True):
            x = stage(x, skip)
        logits = self.seg_layers[-1](x)
        return logits + 0 * self._sum_of_unused() if self.training else logits

    def _sum_of_unused(self) -> Tensor:
        unused = [parameter.sum() for head in list(self.seg_layers)[:-1] for parameter in head.parameters()]
        return torch.stack(unused).sum()


class DinoUNet(AnySizeNetwork):
    """Logits of 2D images from a frozen DINOv3 ViT, a ViT-Adapter, a projection and nnU-Net's decoder.

    The official network has no deep supervision: with it on, `forward` returns a list of one.

    Args:
        in_channels: C. One channel stands for all three colours, of two the first also for the third. Of more than
            three, the ViT, which cannot be trained, sees the mean as a grey image, and the adapter sees all.
        num_classes: N, segmentation heads.
        patch_size: ``(H, W)``. Nothing depends on it: images of any size can be passed.
        backbone: ViT-S, B or L: "small", "base" or "large".
        vit_kwargs: overrides for timm's model, e.g. to make it smaller.
        blocks: four of the ViT's blocks, counted from 0, whose maps are taken; default: `default_blocks`.
        features: channels of the decoder, fine to coarse.
        channels: "first_three" leaves out all channels but three, as the official code does.

    Attributes:
        weights_name: timm's name of the ViT whose pretrained weights fit.

    Raises:
        ValueError: a backbone, blocks or channels of this kind there are not.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        *,
        backbone: str = "large",
        vit_kwargs: Mapping[str, Any] | None = None,
        blocks: Sequence[int] | None = None,
        features: Sequence[int] = (32, 64, 128, 256),
        channels: Channels = "all",
    ) -> None:
        super().__init__((DIVISOR, DIVISOR), min_cells=2)
        self.in_channels = in_channels
        if channels not in get_args(Channels):
            raise ValueError(f"channels={channels!r}; it is {' or '.join(map(repr, get_args(Channels)))}.")
        self.shows_mean = in_channels > 3 and channels == "all"
        self.colours = COLOURS[min(in_channels, 3)]
        vit = FrozenViT(backbone, vit_kwargs or {}, blocks)
        self.encoder = DinoEncoder(vit, tuple(features), in_channels if self.shows_mean else 3)
        self.decoder = UNetDecoder(tuple(features), num_classes)
        self.weights_name = BACKBONES[backbone]

    def logits(self, x: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` to one tensor ``(B, N, H, W)``; sides are multiples of 32."""
        if x.shape[1] != self.in_channels:
            raise ValueError(f"The network takes {self.in_channels} channels, and the image has {x.shape[1]}.")
        if self.shows_mean:
            return [self.decoder(self.encoder(x, x.mean(1, keepdim=True).expand(-1, 3, -1, -1)))]
        colours = x[:, list(self.colours)]
        return [self.decoder(self.encoder(colours, colours))]

    def pretrained_shapes(self) -> dict[str, Shape]:
        """Name (timm's) and shape of every tensor that `load_pretrained` needs."""
        return shapes_of(self.encoder.vit.model.state_dict())

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Start from a DINOv3 ViT.

        Args:
            weights: exactly the tensors of `pretrained_shapes`.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        if wrong := misfit(shapes_of(weights), self.pretrained_shapes()):
            raise ValueError(f"{wrong} Are the weights of another backbone?")
        self.encoder.vit.model.load_state_dict(weights)
        self.weights_loaded = True
