"""Training steps that are run: what they take of the visible GPU, and a choice of patch and batch that truly fits."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunetv2_dinomed3d.planning.step_memory import Step, step_loss
from nnunetv2_dinomed3d.planning.training_memory import GB, PatchAndBatch, TrainingMemory, training_steps

WARM_UP = 2
"""Steps before the timed one: cuDNN tries its algorithms in the first."""

OUT_OF_MEMORY_FACTOR = 1.25
"""A step that ran out of memory is taken to need so many times the budget: how much it needs, nobody knows."""


@dataclass(frozen=True)
class Measured:
    """What a training step took.

    Attributes:
        nbytes: in use on the GPU, with CUDA's context and what other processes have; None on the CPU.
        seconds: of one step, without waiting for data.
    """

    nbytes: int | None
    seconds: float


Measure = Callable[[Step], Measured | None]


def measure_step(step: Step, device: str = "cuda") -> Measured | None:
    """Run a step a few times on random data, not compiled.

    Args:
        step: the step.
        device: "cuda" or "cpu".

    Returns:
        The measured; None where the GPU's memory is not enough.
    """
    on_cuda = device == "cuda"
    if on_cuda:
        torch.backends.cudnn.benchmark = True  # as nnU-Net trains
    try:
        return _run(step, device)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if on_cuda:
            torch.cuda.empty_cache()


def _run(step: Step, device: str) -> Measured:
    with torch.device(device):
        network = step.build().train()
        batch = torch.randn(step.batch_shape)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = step.optimizer(trained)
        for _ in range(WARM_UP + 1):
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # of what the first step tried
            begin = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=step.mixed_precision):
                outputs = network(batch)
                outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
                targets = [torch.zeros(len(logits), 1, *logits.shape[2:]) for logits in outputs]
                loss = torch.stack([step_loss(*pair) for pair in zip(outputs, targets, strict=True)]).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 12)
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
    if device != "cuda":
        return Measured(None, seconds)
    free, total = torch.cuda.mem_get_info()
    return Measured(total - free, seconds)


def steps_of(memory: TrainingMemory, choice: PatchAndBatch) -> list[Step]:
    """The steps of a trainer with a chosen patch and batch."""
    settings = {"patch_size": list(choice.patch_size), "batch_size": choice.batch_size}
    configuration = ConfigurationManager({**memory.configuration.configuration, **settings})
    return training_steps(memory.trainer, memory.plans_manager, configuration, memory.in_channels, memory.num_classes)


def choose_measured(
    memory: TrainingMemory, budget: int, measure: Measure = measure_step
) -> tuple[PatchAndBatch, dict[str, Measured]]:
    """The patch and batch that make most of ``budget`` bytes by the estimate and were seen to fit.

    A choice that does not fit is made anew for a smaller budget, less by as much as the estimate was too low.

    Args:
        memory: of the trainer on a configuration.
        budget: bytes of the GPU.
        measure: runs a step.

    Raises:
        ValueError: nothing fits.
    """
    estimated = budget
    while True:
        choice = memory.choose(estimated)
        measured: dict[str, Measured] = {}
        taken = 0.0
        for step in steps_of(memory, choice):
            result = measure(step)
            if result is None:
                taken = max(taken, OUT_OF_MEMORY_FACTOR * budget)
                break
            measured[step.name] = result
            taken = max(taken, result.nbytes or 0)
        if taken <= budget:
            return choice, measured
        needed = max(use.total for use in choice.memory.values())
        estimated = min(int(needed * budget / taken), needed - 1)


def training_hours(steps: Sequence[Step], measured: Mapping[str, Measured]) -> float | None:
    """Hours of all steps of a training on this GPU, without validation or waiting for data; None if nobody counts them.

    Args:
        steps: of the training.
        measured: by name of the step.
    """
    seconds = [step.count * measured[step.name].seconds for step in steps if step.count is not None]
    return sum(seconds) / 3600 if len(seconds) == len(steps) else None


def sentences(name: str, memory: TrainingMemory, choice: PatchAndBatch, measured: Mapping[str, Measured]) -> list[str]:
    """What was measured of a configuration, a line for each step, and the hours of the training.

    Args:
        name: of the configuration, printable.
        memory: of the trainer on it.
        choice: patch and batch.
        measured: by name of the step.
    """
    lines = []
    for step, result in measured.items():
        estimate = choice.memory[step].total / GB
        taken = "" if result.nbytes is None else f"{result.nbytes / GB:.2f} GB in use ({estimate:.2f} estimated), "
        lines.append(f"Measured, {name}, {step}: {taken}{result.seconds:.3f} s a step.")
    hours = training_hours(steps_of(memory, choice), measured)
    if hours is None:
        lines.append(
            f"{name}: {memory.trainer.__name__} does not say how many steps a training has: no hours are told."
        )
    else:
        lines.append(f"{name}: the steps of a training take {hours:.1f} hours here, without validation.")
    return lines


def measure_planned(
    name: str, memory: TrainingMemory, planned: PatchAndBatch, measure: Measure = measure_step
) -> list[str]:
    """`sentences` of plans that stay as they are; of those that do not fit, this one.

    Args:
        name: of the configuration, printable.
        memory: of the trainer on it.
        planned: its patch and batch.
        measure: runs a step.
    """
    measured: dict[str, Measured] = {}
    for step in steps_of(memory, planned):
        result = measure(step)
        if result is None:
            return [f"Measured, {name}, {step.name}: this GPU's memory is not enough."]
        measured[step.name] = result
    return sentences(name, memory, planned, measured)
