"""Precision of a forward pass, whatever autocast the caller has turned on."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def has_bfloat16(device_type: str) -> bool:
    """Whether the current device of this type computes in bfloat16 itself, without emulation."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device_type == "cuda" else True


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    # the meta device has none, and asking there whether it is enabled is an error
    return torch.amp.is_autocast_available(device_type)


def precision(x: Tensor, mixed: bool = True, float16: bool = True) -> AbstractContextManager[object]:
    """Precision of what runs inside; nothing changes if autocast is off.

    nnU-Net's autocast is float16, in which a ViT's attention can overflow. It becomes bfloat16 if the device has it.

    Args:
        x: a tensor on the device that computes.
        mixed: False computes in float32.
        float16: whether float16 remains on a device without bfloat16; else float32.
    """
    device_type = x.device.type
    if not _has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    if mixed and has_bfloat16(device_type):
        return torch.autocast(device_type, dtype=torch.bfloat16)
    return nullcontext() if mixed and float16 else torch.autocast(device_type, enabled=False)
