"""Training steps on the device: seconds, memory and operations."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.card import synchronize
from benchmarks.gpu.results import Values
from benchmarks.measure import flops
from benchmarks.networks import CLASSES, Size, build, stock
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale
from nnunetv2_dinomed3d.planning.step_memory import CUDA_RESERVE, Step, training_step_memory

STOCK = "stock nnU-Net"
SLAB_DEPTH = 3
GB = 10**9

SECTION = "Training steps"

TOLERANCE = 0.15
"""Share by which plan's estimate may be off the measured memory."""


@dataclass(frozen=True)
class Setting:
    """A network as it is trained.

    Attributes:
        network: a variant of ours, or `STOCK`.
        stage: 1 or 2; of `STOCK` 2.
        patch: ``(D, H, W)``; stage 1 has slabs of three of its slices.
        batch: patches, or slabs.
        compiled: by ``torch.compile``.
        recomputed: whether activations are recomputed in the backward pass; `STOCK` has no such option.
        channels_last: whether weights and input are in ``channels_last_3d``.
    """

    network: str
    stage: Stage
    patch: Size
    batch: int
    compiled: bool = False
    recomputed: bool = True
    channels_last: bool = False

    @property
    def what(self) -> dict[str, Any]:
        """The setting, by column."""
        return {
            "network": self.network,
            "stage": "" if self.network == STOCK else str(self.stage),
            "patch": "x".join(map(str, self.shape[2:])),
            "batch": self.batch,
            "compiled": self.compiled,
            "recomputed": None if self.network == STOCK else self.recomputed,
            "channels last": self.channels_last,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """``(b, 1, d, h, w)`` of the input."""
        return (self.batch, 1, SLAB_DEPTH if self.stage == 1 else self.patch[0], *self.patch[1:])

    @property
    def layout(self) -> torch.memory_format:
        """Of weights and input."""
        return torch.channels_last_3d if self.channels_last else torch.contiguous_format

    def build(self) -> nn.Module:
        """The network on the default device, in training mode."""
        if self.network == STOCK:
            return stock(self.patch)
        network = build(DINOMed3D, self.network, in_plane_scale(self.patch))
        network.checkpoint_activations(self.recomputed)
        network.set_stage(self.stage, single_slab_input=self.stage == 1)
        return network


def loss(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """The paper's cross-entropy and Dice, weighed 0.2 and 0.8; of several outputs (deep supervision) the sum.

    Args:
        outputs: logits ``(b, N, d, h, w)``.
        labels: ``(b, d, h, w)`` of the first output.
    """
    total = torch.zeros((), device=labels.device)
    for logits in [outputs] if isinstance(outputs, Tensor) else outputs:
        reference = F.interpolate(labels[:, None].float(), logits.shape[2:])[:, 0].long()
        probabilities = logits.float().softmax(1)[:, 1]
        overlap = 2 * (probabilities * reference).sum() / (probabilities.sum() + reference.sum()).clamp_min(1e-5)
        total = total + 0.2 * F.cross_entropy(logits.float(), reference) + 0.8 * (1 - overlap)
    return total


def training_step(network: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward in bfloat16, backward, clipped gradients and AdamW's update, as the trainers do."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            outputs = network(x)
        loss(outputs, labels).backward()
        nn.utils.clip_grad_norm_(trained, 12)
        optimizer.step()

    return step


def timed(call: Callable[[], None], device: str, least: int, most: int, enough: float) -> float:
    """Median seconds of at least so many calls, and of no more after enough seconds."""
    taken: list[float] = []
    while len(taken) < least or (len(taken) < most and sum(taken) < enough):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - begin)
    return median(taken)


def measure_step(
    setting: Setting, device: str, peak: Values | None, backend: str = "inductor", least: int = 3
) -> Values:
    """Seconds of a step, memory, and how much of the card's matrix peak is reached.

    Operations are those of the step that is not compiled, with what it computes again.

    Args:
        setting: what to train.
        device: "cuda" or "cpu"; memory is measured on CUDA alone.
        peak: `card.matrix_peak` in bfloat16; without it no share is told.
        backend: of ``torch.compile``.
        least: steps that are timed at least.
    """
    with torch.device(device):
        network = setting.build()
        x = torch.randn(setting.shape)
        depth = 1 if setting.stage == 1 else setting.patch[0]
        labels = torch.randint(CLASSES, (setting.batch, depth, *setting.patch[1:]))
    nn.Module.to(network, memory_format=setting.layout)  # ours has a layout of its own for each device
    x = x.contiguous(memory_format=setting.layout)
    operations = flops(training_step(network, x, labels))
    gc.collect()  # that step's optimiser
    if setting.compiled:
        network = cast(nn.Module, torch.compile(network, backend=backend))
    step = training_step(network, x, labels)
    begin = time.perf_counter()
    step()
    synchronize(device)
    first = time.perf_counter() - begin
    step()
    memory: dict[str, float | None] = {"peak GB": None, "device GB": None}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, device, least, most=20, enough=3.0 if device == "cuda" else 0.0)
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory = {"peak GB": torch.cuda.max_memory_allocated() / GB, "device GB": (total - free) / GB}
    return {
        "step ms": 1000 * seconds,
        "images/s": setting.batch / seconds,
        **memory,
        "TFLOP": operations / 1e12,
        "TFLOP/s": operations / seconds / 1e12,
        "of matrix peak": operations / seconds / 1e12 / peak["TFLOP/s"] if peak else None,
        "first step s": first,
    }


def compare_estimate(setting: Setting, measured: Values, device: str) -> Values:
    """`dinomed3d plan`'s estimate of a step's memory, beside what was measured.

    Args:
        setting: not compiled; recomputed or not.
        measured: `measure_step`'s.
        device: that it was measured on; on the CPU there is no comparison.
    """
    estimate = training_step_memory(Step("step", setting.build, setting.shape)).total
    values: dict[str, Any] = {"estimate GB": estimate / GB, "device GB": measured["device GB"]}
    if device == "cuda":
        ratio = estimate / GB / measured["device GB"]
        values["of measured"] = ratio
        values["tensors, of measured"] = (estimate - CUDA_RESERVE) / GB / measured["peak GB"]
        values["within 15%"] = abs(ratio - 1) <= TOLERANCE
    return values
