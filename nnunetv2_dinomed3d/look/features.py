"""The network's inside on some slices: features of the slab encoder, and the gate of the fusion.

As in prediction, the network sees a slice through windows of the patch's size. Here the windows lie side by side, so
that no more than a patch is in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.token_grid import padded_side

SHOWN_PERCENTILES = (0.01, 0.99)
"""The percentiles of a principal component that are drawn with none and with all of its colour."""


class Windows:
    """Windows of the patch's height and width that cover the slices of a volume, the last ones overlapping.

    Args:
        volume: ``(C, d, h, w)``; it is padded with zeros at its ends if it is smaller than the patch.
        patch_size: ``(D, H, W)``.
    """

    def __init__(self, volume: Tensor, patch_size: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)
        self.shape = tuple(volume.shape[1:])
        missing = [max(0, wanted - there) for wanted, there in zip(self.patch_size, self.shape, strict=True)]
        self.volume = F.pad(volume, [end for axis in reversed(missing) for end in (0, axis)])
        rows, columns = compute_steps_for_sliding_window(self.volume.shape[2:], self.patch_size[1:], 1.0)
        self.corners = [(y, x) for y in rows for x in columns]

    def _cut(self, volume: Tensor) -> list[Tensor]:
        _, height, width = self.patch_size
        return [volume[None, :, :, y : y + height, x : x + width] for y, x in self.corners]

    def slabs(self, index: int, slab_depth: int) -> list[Tensor]:
        """The slab of each window around a slice, ``(1, C, K, H, W)``. Slices outside of the volume are zero."""
        before = slab_depth // 2
        first, end = index - before, index - before + slab_depth
        inside = self.volume[:, max(0, first) : end]
        end_padding = max(0, end - self.volume.shape[1])
        return self._cut(F.pad(inside, (0, 0, 0, 0, max(0, -first), end_padding)))

    def patches(self, index: int) -> tuple[list[Tensor], int]:
        """The patch of each window with the slice as near to its middle as possible.

        Returns:
            The patches ``(1, C, D, H, W)``, and the position of the slice in them.
        """
        depth = self.patch_size[0]
        first = min(max(0, index - depth // 2), self.volume.shape[1] - depth)
        return self._cut(self.volume[:, first : first + depth]), index - first

    def join(self, parts: list[Tensor]) -> Tensor:
        """Join the maps of the windows to the slice ``(c, h, w)``; a map is ``(c, H, W)`` or padded at its ends."""
        _, height, width = self.patch_size
        joined = parts[0].new_zeros(len(parts[0]), *self.volume.shape[2:])
        for part, (y, x) in zip(parts, self.corners, strict=True):
            joined[:, y : y + height, x : x + width] = part[:, :height, :width]
        return joined[:, : self.shape[1], : self.shape[2]]


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collect the outputs of a module, in order, while the context is open."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def _looking(network: DINOMed3D) -> Iterator[None]:
    """Keep the network in eval mode and without gradients. Afterwards it is in its former stage and mode."""
    stage, training = network.stage, network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.set_stage(stage)
        network.train(training)


def encoder_features(network: DINOMed3D, windows: Windows, slices: list[int], lora: bool) -> list[list[Tensor]]:
    """The last feature map of the slab encoder, which stage 1's head sees.

    Args:
        network: in any stage; it stays as it is.
        windows: of the case.
        slices: numbers of slices.
        lora: whether LoRA is on.

    Returns:
        For each slice and window ``(E, h, w)`` on the CPU, h and w in tokens.
    """
    slab_depth = network.encoder.ice.slab_depth
    with _looking(network), _outputs_of(network.encoder) as outputs:
        network.set_stage(1, single_slab_input=True)
        for layer in network.encoder.lora_layers():
            layer.enable_adapters(lora)
        found = []
        for index in slices:
            for slab in windows.slabs(index, slab_depth):
                network(slab)
            found.append([maps[-1][0, :, 0].float().cpu() for maps in outputs])
            outputs.clear()
    return found


def fusion_gate(network: DINOMed3D, windows: Windows, slices: list[int]) -> list[Tensor]:
    """The gate of the fusion, which says how much of the detail stream passes, averaged over its channels.

    Args:
        network: in stage 2, with a detail stream; it stays as it is.
        windows: of the case.
        slices: numbers of slices.

    Returns:
        For each slice ``(h, w)`` of the volume's size, from 0 to 1, on the CPU.
    """
    depth, *sides = windows.patch_size
    size = (depth, *(padded_side(side, network.scale) for side in sides))
    found = []
    with _looking(network), _outputs_of(network.fusion.gate) as outputs:
        for index in slices:
            patches, place = windows.patches(index)
            for patch in patches:
                network(patch)
            gates = [torch.sigmoid(output.float()).mean(dim=1, keepdim=True) for output in outputs]
            outputs.clear()
            volumes = [F.interpolate(gate, size=size, mode="trilinear", align_corners=False) for gate in gates]
            found.append(windows.join([volume[0, :, place].cpu() for volume in volumes])[0])
    return found


def principal_components(tokens: Tensor, count: int = 3) -> Tensor:
    """The first principal axes ``(E, count)`` of tokens ``(n, E)``. The largest entry of each axis is positive."""
    centred = (tokens - tokens.mean(dim=0)).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)  # in ascending order
    axes = axes[:, -count:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return (axes * largest.sign()).to(tokens.dtype)


def feature_colours(features: list[list[Tensor]], windows: Windows, voxels_per_token: int) -> list[Tensor]:
    """Features as colours: the first three principal components, over all slices and windows, as RGB.

    Args:
        features: of `encoder_features`.
        windows: the windows of these features.
        voxels_per_token: side of a token in voxels, in plane.

    Returns:
        For each slice ``(h, w, 3)`` of the volume's size, from 0 to 1.
    """
    tokens = torch.cat([part.flatten(1).T for parts in features for part in parts])
    mean, axes = tokens.mean(dim=0), principal_components(tokens)
    values = (tokens - mean) @ axes
    low, high = torch.tensor([[_percentile(column, p) for column in values.T] for p in SHOWN_PERCENTILES])
    found = []
    for parts in features:
        projected = [torch.einsum("ehw,ec->chw", part - mean[:, None, None], axes) for part in parts]
        scaled = [
            ((p - low[:, None, None]) / (high - low).clamp(min=1e-12)[:, None, None]).clamp(0, 1) for p in projected
        ]
        enlarged = [F.interpolate(part[None], scale_factor=float(voxels_per_token))[0] for part in scaled]
        found.append(windows.join(enlarged).permute(1, 2, 0))
    return found


def _percentile(values: Tensor, share: float) -> float:
    """The value at a share of the sorted values. torch.quantile refuses more than 16 million values."""
    ordered = values.sort().values
    return float(ordered[round(share * (len(ordered) - 1))])
