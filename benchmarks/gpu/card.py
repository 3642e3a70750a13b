"""The device, the versions, and the peak of its matrix products as it is reached here."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.results import Values
from nnunetv2_dinomed3d import __version__

PACKAGES = ("torch", "timm", "peft", "einops", "numpy", "nnunetv2")

PRECISIONS = ("bfloat16", "float32")


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def about(device: str) -> dict[str, Any]:
    """The card's name and the versions.

    Raises:
        ValueError: there is no such device.
    """
    machine: dict[str, Any] = {}
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device is cuda, and PyTorch sees no GPU here. --device cpu runs a miniature.")
        properties = torch.cuda.get_device_properties()
        machine["device"] = properties.name
        machine["memory GB"] = properties.total_memory / 1e9
        machine["CUDA"] = str(torch.version.cuda or torch.version.hip)
        machine["cuDNN"] = str(torch.backends.cudnn.version())
    else:
        machine["device"] = f"CPU, {torch.get_num_threads()} threads: a miniature, whose numbers say nothing"
    machine["CPU cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine["Python"] = platform.python_version()
    machine["nnunetv2_dinomed3d"] = __version__
    for package in PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = "not installed"
    return machine


def matrix_peak(device: str, precision: str, side: int, rounds: int = 20) -> Values:
    """Operations per second of a product of two square matrices, the fastest of some; float32 without TF32.

    Args:
        device: "cuda" or "cpu".
        precision: one of `PRECISIONS`.
        side: of the matrices.
        rounds: products that are timed.
    """
    first, second = torch.randn(2, side, side, device=device, dtype=getattr(torch, precision))
    taken = []
    for _ in range(rounds):
        synchronize(device)
        begin = time.perf_counter()
        first @ second
        synchronize(device)
        taken.append(time.perf_counter() - begin)
    return {"TFLOP/s": 2 * side**3 / min(taken) / 1e12}
