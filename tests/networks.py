"""The smallest network, which is the same code as the large ones, for the tests of its parts."""

from dataclasses import fields
from typing import Any

import torch

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, NetworkOptions, build_dinomed3d


def nano(
    patch_size: tuple[int, int, int] = (4, 32, 32), in_channels: int = 1, num_classes: int = 3, **options: Any
) -> DINOMed3D:
    """The nano network with the same random weights each time, in stage 2."""
    torch.manual_seed(0)
    return build_dinomed3d("nano", in_channels, num_classes, patch_size, **options)


def with_trained_lora(network: DINOMed3D, std: float = 0.1) -> DINOMed3D:
    """LoRA as after training: it starts with B = 0, which hides it."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return network


def network_of(**settings: Any) -> DINOMed3D:
    """A network from keyword arguments of `DINOMed3D` and of `NetworkOptions` together."""
    names = {option.name for option in fields(NetworkOptions)}
    options = NetworkOptions(**{name: value for name, value in settings.items() if name in names})
    return DINOMed3D(**{name: value for name, value in settings.items() if name not in names}, options=options)
