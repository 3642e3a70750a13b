"""Outputs and gradients on the device against those on the CPU in float64."""

from collections.abc import Mapping
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.results import Values
from benchmarks.gpu.steps import SLAB_DEPTH
from benchmarks.networks import Size, build
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale

FLOORS: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 2e-2}
"""Deviations that are well in any case, relative."""

FACTOR = 3.0
"""The device may deviate so many times as much as the CPU does in the same precision."""


class Pass(NamedTuple):
    """Logits and all gradients in one vector, on the CPU in float64."""

    outputs: Tensor
    gradients: Tensor


def run_pass(network: DINOMed3D, x: Tensor, device: str, precision: str) -> Pass:
    """Forward and backward pass of a copy of the network, in eval mode, where nothing is random.

    Args:
        network: on the CPU in float32.
        x: its input.
        device: to run on.
        precision: "float64", "float32" (without TF32) or "bfloat16" (autocast).
    """
    dtype = torch.float64 if precision == "float64" else torch.float32
    network = deepcopy(network).to(device=device, dtype=dtype).eval()
    x = x.to(device, dtype)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(x)
        logits.square().mean().backward()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    gradients = [p.grad.detach().cpu().double().flatten() for p in network.parameters() if p.grad is not None]
    return Pass(logits.detach().cpu().double(), torch.cat(gradients))


def _deviation(value: Pass, reference: Pass) -> tuple[float, float]:
    """Relative, in the Euclidean norm: of outputs and of gradients."""
    pairs = zip(value, reference, strict=True)
    outputs, gradients = (((off - exact).norm() / exact.norm()).item() for off, exact in pairs)
    return outputs, gradients


def compare(variant: str, stage: Stage, patch: Size, device: str, precision: str) -> Values:
    """How far the device is from float64, beside how far the CPU is in the same precision.

    Args:
        variant: of the network.
        stage: 1, on slabs, or 2.
        patch: ``(D, H, W)``.
        device: "cuda" or "cpu".
        precision: "float32" or "bfloat16".
    """
    network = build(DINOMed3D, variant, in_plane_scale(patch))
    network.set_stage(stage, single_slab_input=stage == 1)
    x = torch.randn(1, 1, SLAB_DEPTH if stage == 1 else patch[0], *patch[1:])
    exact = run_pass(network, x, "cpu", "float64")
    here = _deviation(run_pass(network, x, device, precision), exact)
    cpu = _deviation(run_pass(network, x, "cpu", precision), exact)
    allowed = [max(FLOORS[precision], FACTOR * own) for own in cpu]
    return {
        "outputs off": here[0],
        "gradients off": here[1],
        "outputs off on the CPU": cpu[0],
        "gradients off on the CPU": cpu[1],
        "agrees": all(off <= limit for off, limit in zip(here, allowed, strict=True)),
    }
