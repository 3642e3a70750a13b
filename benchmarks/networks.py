"""The networks that are measured."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, NetworkOptions

Size = tuple[int, int, int]
Network = TypeVar("Network", bound=DINOMed3D)

CLASSES = 2


def build(network_class: type[Network], variant: str, scale: int, **options: Any) -> Network:
    """A network of ours (`DINOMed3D`, or the plain one) for one channel, at a given in-plane scale, in training mode.

    LoRA's B and LayerScale get values as after training: as they start, nearly nothing of a block is in the output.
    """
    size = VARIANTS[variant]
    network = network_class(
        1,
        CLASSES,
        scale=scale,
        **size.network_kwargs,
        options=NetworkOptions(**options),
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)
            elif ".gamma" in name:
                parameter.fill_(0.1)
    return network.train()


def checkpointed(network: Network, enable: bool) -> Network:
    """The network, with activations recomputed in the backward pass or kept."""
    network.checkpoint_activations(enable)
    return network


def stock(patch: Size) -> nn.Module:
    """nnU-Net's plain U-Net as its planner makes it for a patch, with deep supervision, as it trains.

    The planner's patches have about the same extent in mm along all axes, so the spacing follows from the patch.
    """
    # imported here: all else of this file runs without nnU-Net
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    spacing = [max(patch) / side for side in patch]
    _, strides, kernels, padded, _ = get_pool_and_conv_props(spacing, patch, 4, math.inf)
    if tuple(padded) != tuple(patch):
        raise ValueError(f"nnU-Net's planner would not make the patch {patch}, but {tuple(map(int, padded))}.")
    stages = len(strides)
    options = {
        "n_stages": stages,
        "features_per_stage": [min(320, 32 * 2**i) for i in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    imported = ("conv_op", "norm_op", "dropout_op", "nonlin")
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    return get_network_from_plans(name, options, imported, 1, CLASSES, deep_supervision=True).train()


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within, tensors on the CPU have no values and take no memory: FLOPs and bytes of any size can be counted.

    Build a network before, under ``torch.device("meta")``, and bring it in by `to_shapes`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def to_shapes(network: nn.Module) -> nn.Module:
    """Replace a network's tensors by new ones on the CPU; for use within `shapes_only`."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network
