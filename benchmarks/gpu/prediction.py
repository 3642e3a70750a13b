"""Prediction of a volume of many slices on the device, without mirroring."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from benchmarks.gpu.card import synchronize
from benchmarks.gpu.results import Values
from benchmarks.networks import CLASSES, Size, build
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale

WAYS = ("windows", "windows, slabs encoded once", "nnU-Net's predictor")
"""The last one needs nnU-Net."""


def windows(slices: int, depth: int) -> Iterator[slice]:
    """Windows along the slices that overlap by half; the last one ends with the volume."""
    step = max(depth // 2, 1)
    for start in range(0, max(slices - depth, 0) + step, step):
        begin = min(start, max(slices - depth, 0))
        yield slice(begin, begin + depth)
        if begin + depth >= slices:
            return


def _predict(network: DINOMed3D, volume: Tensor, patch: Size, once: bool) -> None:
    logits = torch.zeros(CLASSES, *volume.shape[1:], device=volume.device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(volume.device.type, dtype=torch.bfloat16))
        stack.enter_context(network.merged_lora())
        if once:
            stack.enter_context(network.cached_slab_features())
        for window in windows(volume.shape[1], patch[0]):
            logits[:, window] += network(volume[None, :, window])[0]


def predict(variant: str, way: str, slices: int, patch: Size, device: str) -> Values:
    """Seconds for a volume whose slices are as large as the patch's; the second of two runs.

    Args:
        variant: of the network.
        way: one of `WAYS`.
        slices: of the volume.
        patch: ``(D, H, W)`` of the windows.
        device: "cuda" or "cpu".
    """
    with torch.device(device):
        network = build(DINOMed3D, variant, in_plane_scale(patch))
    network = network.to(torch.device(device)).eval()
    volume = torch.randn(1, slices, *patch[1:])
    run: Callable[[], object]
    if way == WAYS[2]:
        from benchmarks.inference import case_prediction

        run = case_prediction(network, patch, volume, device)
    else:
        on_device = volume.to(device)

        def run() -> None:
            _predict(network, on_device, patch, once=way == WAYS[1])

    for _ in range(2):
        synchronize(device)
        begin = time.perf_counter()
        run()
        synchronize(device)
        seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return {"seconds": seconds, "slices/s": slices / seconds, "peak GB": peak}
