"""The network's mathematics, written plainly, for comparison with faster formulations.

Slabs are stacked as images, what is fused is concatenated first, LoRA stays beside its weight, nothing is recomputed
in the backward pass. Parameters and state dict are `DINOMed3D`'s. Of its modules only timm's ViT is called; of all
others this file takes the weights and nothing else, so that it stays what it is when they change.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.token_grid import TOKEN_SIZE, padded_side

POOL_SCALES = (1, 2, 3, 6)
LEVEL_STRIDES = (4, 8, 16, 32)


def _conv(layer: Any, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution with the layer's weights, padded to keep the size; the stride is in plane."""
    padding = layer.weight.shape[-1] // 2
    return F.conv3d(x, layer.weight, layer.bias, stride=(1, stride, stride), padding=padding)


def _instance_norm(x: Tensor) -> Tensor:
    return x if x.shape[2:].numel() == 1 else F.instance_norm(x)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)


def _conv_norm_act(layers: Any, x: Tensor) -> Tensor:
    """The decoder's convolution, GroupNorm and PReLU."""
    convolution, norm, activation = layers
    x = F.group_norm(_conv(convolution, x), norm.num_groups, norm.weight, norm.bias)
    return F.prelu(x, activation.weight)


class PlainDINOMed3D(DINOMed3D):
    """`DINOMed3D` with the plain forward pass, in float32, without the ablations.

    ``load_state_dict(network.state_dict())`` gives it the weights and the stage of another; `set_stage` is the same.
    """

    def to(self, *args: Any, **kwargs: Any) -> "PlainDINOMed3D":
        """Move as any module, in the usual layout, in which this network is faster."""
        nn.Module.to(self, *args, **kwargs)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits as of `DINOMed3D.forward`."""
        height, width = x.shape[-2:]
        padded = padded_side(height, self.scale), padded_side(width, self.scale)
        volume = F.pad(x, (0, padded[1] - width, 0, padded[0] - height))
        features = self._features(x, padded)
        logits = self._stage1(features[-1], padded) if self.stage == 1 else self._stage2(features, volume)
        return logits[..., :height, :width]

    def _features(self, x: Tensor, padded: tuple[int, int]) -> list[Tensor]:
        """Every slab as an image of C * K channels, through the ViT: four maps ``(b, E, d, h, w)``."""
        weight, bias = self.encoder.ice.conv.weight, self.encoder.ice.conv.bias
        slab_depth = weight.shape[2]
        if not self.single_slab_input:
            before = slab_depth // 2
            x = F.pad(x, (0, 0, 0, 0, before, slab_depth - 1 - before))
        slabs = torch.stack([x[:, :, d : d + slab_depth] for d in range(x.shape[2] - slab_depth + 1)], dim=1)
        images = rearrange(slabs, "b d c k h w -> (b d) (c k) h w")
        if self.scale > 1:
            images = F.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)
        height, width = images.shape[-2:]
        images = F.pad(images, (0, padded[1] * self.scale - width, 0, padded[0] * self.scale - height))
        embedded = F.conv2d(images, rearrange(weight, "e c k h w -> e (c k) h w"), bias, stride=TOKEN_SIZE)
        features = self.encoder.vit.forward_intermediates(
            embedded, indices=self.encoder.feature_blocks, intermediates_only=True
        )
        return [rearrange(f, "(b d) e h w -> b e d h w", b=len(x)) for f in features]

    def _stage1(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        logits = rearrange(_conv(self.proxy_head.seg_layers, feature), "b n d h w -> (b d) n h w")
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return rearrange(logits, "(b d) n h w -> b n d h w", b=len(feature))

    def _stage2(self, features: list[Tensor], volume: Tensor) -> Tensor:
        levels = [self._adapt(i, feature) for i, feature in enumerate(features)]
        full, half, quarter = self._details(volume)
        decoder: Any = self.decoder
        x = _upernet(decoder.upernet, [self._fuse(levels[0], quarter), *levels[1:]])
        x = _refine(decoder.refine_half.body, x, half)
        x = _refine(decoder.refine_full.body, x, full)
        return _conv(decoder.seg_layers, x)

    def _adapt(self, level: int, feature: Tensor) -> Tensor:
        """The 3D adapter's level, from the tokens' grid to its own."""
        layers: Any = self.adapter.levels[level]
        convolution, _, activation, resample = layers
        x = F.prelu(_instance_norm(_conv(convolution, feature)), activation.weight)
        stride, token_stride = LEVEL_STRIDES[level], TOKEN_SIZE // self.scale
        if stride > token_stride:
            if stride == 2 * token_stride:
                return _conv(resample, x, 2)
            pool = stride // token_stride // 2
            kernel = (1, min(pool, x.shape[3]), min(pool, x.shape[4]))
            return _conv(resample[1], F.avg_pool3d(x, kernel, (1, pool, pool), ceil_mode=True), 2)
        if stride < token_stride:
            factor = token_stride // stride
            depth = 1 if resample.weight.shape[2] == 3 else 0  # 3 slices keep the depth, the released 4 and 2 do not
            return F.conv_transpose3d(
                x, resample.weight, resample.bias, stride=(1, factor, factor), padding=(depth, 0, 0)
            )
        return x

    def _details(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The detail stream at full, 1/2 and 1/4 in-plane scale."""
        detail: Any = self.detail
        full = F.relu(_instance_norm(_conv(detail.scale_1[0], volume)))
        full = _residual(detail.scale_1[3], full)
        half = _residual(detail.scale_2[1], _residual(detail.scale_2[0], full, stride=2))
        quarter = _residual(detail.scale_4[1], _residual(detail.scale_4[0], half, stride=2))
        return full, half, _conv(detail.projection, quarter)

    def _fuse(self, semantic: Tensor, detail: Tensor) -> Tensor:
        detail = _resize(detail, semantic)
        gate = torch.sigmoid(_conv(self.fusion.gate, torch.cat([semantic, detail], dim=1)))
        return semantic + gate * detail


def _upernet(upernet: Any, levels: list[Tensor]) -> Tensor:
    """Pyramid pooling, the way down to the finest level, and all levels joined on it."""
    coarsest = levels[-1]
    pooled = [
        _resize(_conv_norm_act(pool[1], F.adaptive_avg_pool3d(coarsest, scale)), coarsest)
        for pool, scale in zip(upernet.pools, POOL_SCALES, strict=True)
    ]
    outputs = [_conv_norm_act(upernet.bottleneck, torch.cat([coarsest, *pooled], dim=1))]
    for i in (2, 1, 0):
        lateral = _conv_norm_act(upernet.laterals[i], levels[i])
        outputs.insert(0, _conv_norm_act(upernet.smooth[i], lateral + _resize(outputs[0], lateral)))
    joined = torch.cat([_resize(output, outputs[0]) for output in outputs], dim=1)
    fusion, dropout = upernet.fusion
    return F.dropout(_conv_norm_act(fusion, joined), dropout.p, dropout.training)


def _residual(block: Any, x: Tensor, stride: int = 1) -> Tensor:
    """The detail stream's block: two convolutions, added to the input or its projection."""
    y = F.relu(_instance_norm(_conv(block.body[0], x, stride)))
    y = _instance_norm(_conv(block.body[3], y))
    if not isinstance(block.shortcut, nn.Identity):
        x = _instance_norm(_conv(block.shortcut[0], x, stride))
    return F.relu(y + x)


def _refine(layers: Any, x: Tensor, detail: Tensor) -> Tensor:
    """The refinement block: coarse features resized, detail features beside them, two convolutions."""
    x = torch.cat([_resize(x, detail), detail], dim=1)
    x = F.relu(_instance_norm(_conv(layers[0], x)))
    return F.relu(_instance_norm(_conv(layers[3], x)))
