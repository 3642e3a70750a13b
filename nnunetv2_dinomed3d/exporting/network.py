"""The network as it is exported: LoRA merged, without what only training needs; on request in float16."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.adapter import MeanOfTokens
from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork
from nnunetv2_dinomed3d.network_architecture.lora import fold_lora


class MeanOfBins(nn.Module):
    """`torch.nn.AdaptiveAvgPool3d` by a matrix for each axis, since ONNX has no such layer.

    Args:
        bins: along each axis; None for as many as there are voxels.
    """

    def __init__(self, bins: Sequence[int | None]) -> None:
        super().__init__()
        self.bins = tuple(bins)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, d, h, w)`` to ``(b, c, *bins)``."""
        for axis, bins in enumerate(self.bins, 2):
            if bins is None:
                continue
            weights = x.new_tensor(_shares(x.shape[axis], bins))
            x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
        return x


def _shares(side: int, bins: int) -> list[list[float]]:
    """For each bin, the weights of the voxels along an axis in its mean; bins overlap where they share a voxel."""
    ranges = [range(i * side // bins, -(-(i + 1) * side // bins)) for i in range(bins)]
    return [[(j in each) / len(each) for j in range(side)] for each in ranges]


NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
MEANS = (nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d, MeanOfBins, MeanOfTokens)
"""Layers that sum over voxels, as the norms do. PyTorch has some of them only in float32 on the CPU."""


def merge_for_export(network: nn.Module) -> None:
    """Add LoRA to the weights it stands beside, for good, and remove it; of DINO-Med3D remove stage 1's head too.

    Layers that ONNX lacks are replaced by others of the same result.

    The logits stay, up to rounding. Afterwards no checkpoint fits the network.
    """
    fold_lora(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            network.set_submodule(name, module.get_base_layer())
        elif isinstance(module, nn.AdaptiveAvgPool3d):
            bins = module.output_size
            network.set_submodule(name, MeanOfBins(bins if isinstance(bins, tuple) else (bins,) * 3))
    if isinstance(network, DINOMed3D):
        del network.proxy_head


def require_exportable(network: nn.Module, trainer: str) -> None:
    """Raise ValueError for a network whose program would be another one: a scan is a loop over all voxels."""
    if not isinstance(network, AnySizeNetwork):
        return
    from nnunetv2_dinomed3d.network_architecture.baselines.mamba import MambaLayer

    if any(isinstance(module, MambaLayer) for module in network.modules()):
        raise ValueError(
            f"{trainer} cannot be exported: Mamba's scan is a loop over all voxels of a map, which neither ONNX nor "
            "torch.export keeps as one. Predict with nnUNetv2_predict."
        )


class HalfPrecision(nn.Module):
    """A network with weights in float16 that takes float16 and returns logits in float32.

    It computes in float16 where nnU-Net's autocast may. Norms, means and the ViT's blocks, whose attention can
    overflow, compute in float32, with weights in float16. So does the whole of a network that is never in float16
    here: the baselines, and DINO-Med3D with the released code's recipe.

    Args:
        network: in eval mode. Its parameters become float16, its buffers stay as they are.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for parameter in network.parameters():
            parameter.data = parameter.data.half()
        parts = _parts_in_float32(network)
        inside = {module for part in parts for module in part.modules()}
        sums = [module for module in network.modules() if isinstance(module, NORMS + MEANS) and module not in inside]
        owners = inside.union(sums)
        self._in_float32 = [
            f"{name}.{parameter}".removeprefix(".")
            for name, module in network.named_modules()
            if module in owners
            for parameter, _ in module.named_parameters(recurse=False)
        ]
        for module in [*parts, *sums]:
            module.register_forward_pre_hook(_inputs_in_float32, with_kwargs=True)
        for module in sums:
            module.register_forward_hook(lambda module, inputs, result: result.half())
        if isinstance(network, DINOMed3D) and network not in inside:
            network.adapter.register_forward_pre_hook(lambda module, inputs: ([level.half() for level in inputs[0]],))

    def forward(self, x: Tensor) -> Tensor:
        """``(1, C, ...)`` in float16 to logits ``(1, N, ...)`` in float32."""
        weights = {name: self.network.get_parameter(name).float() for name in self._in_float32}
        logits: Tensor = functional_call(self.network, weights, (x,))
        return logits.float()


def _parts_in_float32(network: nn.Module) -> list[nn.Module]:
    if isinstance(network, AnySizeNetwork):
        return [network]
    if isinstance(network, DINOMed3D):
        return list(network.encoder.vit.blocks) if network.options.mixed_precision else [network]
    return []


def _inputs_in_float32(
    module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_in_float32, inputs)), {name: _in_float32(value) for name, value in named.items()}


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
