"""Memory that a trainer takes of a GPU on nnU-Net's plans, and the patch and batch that suit the GPU."""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_dinomed3d.planning.patch_choice import PatchSize, candidates, choose_patch_and_batch, multiples
from nnunetv2_dinomed3d.planning.step_memory import MemoryUse, Step, training_step_memory

GB = 10**9

PLANS_NAME = "nnUNetDINOMed3DPlans"
"""Name of the plans for all trainers of DINO-Med3D."""

STOCK_EPOCHS, STOCK_ITERATIONS = 1000, 250
"""nnU-Net's default."""

MAX_DATASET_COVERED = 0.05
"""Share of the data set's voxels that a batch has at most; nnU-Net's."""


@dataclass(frozen=True)
class PatchAndBatch:
    """Patch and batch for one configuration, and the memory that each kind of step takes with them, by its name."""

    patch_size: PatchSize
    batch_size: int
    memory: dict[str, MemoryUse]


def visible_gpu_memory() -> int | None:
    """Bytes of the current GPU; None where there is none."""
    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None


def training_steps(
    trainer: type, plans: PlansManager, configuration: ConfigurationManager, in_channels: int, num_classes: int
) -> list[Step]:
    """The steps of any trainer of nnU-Net: those that it names, else the one of nnU-Net's own recipe.

    A trainer names its steps by a class method ``training_steps`` with the last four of these arguments.

    Args:
        trainer: its class.
        plans: nnU-Net's.
        configuration: whose patch and batch the steps have.
        in_channels: C.
        num_classes: N, segmentation heads.
    """
    named: Callable[..., list[Step]] | None = getattr(trainer, "training_steps", None)
    if named is not None:
        return named(plans, configuration, in_channels, num_classes)
    build: Any = partial(
        trainer.build_network_architecture,  # type: ignore[attr-defined]
        plans,
        configuration,
        in_channels,
        num_classes,
        True,
    )
    shape = (configuration.batch_size, in_channels, *configuration.patch_size)
    optimizer = partial(torch.optim.SGD, momentum=0.99, nesterov=True)
    return [Step("training", build, shape, optimizer, count=_stock_steps(trainer))]


def _stock_steps(trainer: type) -> int | None:
    """Steps of a training with one of nnU-Net's own trainers, whose names say the length; None for others."""
    named = re.fullmatch(r"nnUNetTrainer(?:_(\d+)epochs?)?", trainer.__name__)
    return STOCK_ITERATIONS * int(named[1] or STOCK_EPOCHS) if named else None


class TrainingMemory:
    """Memory of a trainer on one configuration for any patch and batch: one GPU, 16 bits, not compiled.

    Args:
        trainer: its class.
        plans: nnU-Net's.
        configuration: name of one.
        dataset_json: content of the file.
    """

    def __init__(self, trainer: type, plans: dict, configuration: str, dataset_json: dict) -> None:
        self.trainer = trainer
        self.plans_manager = PlansManager(plans)
        self.configuration: ConfigurationManager = self.plans_manager.get_configuration(configuration)
        self.in_channels = determine_num_input_channels(self.plans_manager, self.configuration, dataset_json)
        self.num_classes = self.plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        self.cases = dataset_json.get("numTraining", 0)  # for `choose` alone: training does not need it
        self._known: dict[tuple, MemoryUse] = {}

    def of(self, patch_size: Sequence[int], batch_size: int) -> dict[str, MemoryUse]:
        """Memory of each kind of step, by its name."""
        settings = {"patch_size": list(patch_size), "batch_size": batch_size}
        configuration = ConfigurationManager({**self.configuration.configuration, **settings})
        steps = training_steps(self.trainer, self.plans_manager, configuration, self.in_channels, self.num_classes)
        return {step.name: self._of_step(step, patch_size) for step in steps}

    def _of_step(self, step: Step, patch_size: Sequence[int]) -> MemoryUse:
        key = (step.name, *step.batch_shape, *patch_size)  # the patch has a part in the network
        if key not in self._known:
            self._known[key] = training_step_memory(step)
        return self._known[key]

    def as_planned(self) -> PatchAndBatch:
        """The configuration's own patch and batch."""
        patch_size, batch_size = tuple(self.configuration.patch_size), self.configuration.batch_size
        return PatchAndBatch(patch_size, batch_size, self.of(patch_size, batch_size))

    def patches(self) -> list[list[PatchSize]]:
        """The patches to choose from: those of DINO-Med3D's rule, or multiples of what the network divides."""
        median_shape = self.configuration.median_image_size_in_voxels
        divisor = getattr(self.trainer, "patch_divisor", None)
        if divisor is None:
            return candidates(median_shape)
        return multiples(
            median_shape, divisor(self.plans_manager, self.configuration, self.in_channels, self.num_classes)
        )

    def choose(self, budget: int) -> PatchAndBatch:
        """The patch and batch that make most of ``budget`` bytes; a trainer's own patch, if it has a fixed one.

        Raises:
            ValueError: nothing fits.
        """
        fixed: PatchSize | None = getattr(self.trainer, "fixed_patch", None)
        if fixed is not None:
            return self._choose_fixed(fixed, budget)
        median_shape = self.configuration.median_image_size_in_voxels
        slices = 1 if len(median_shape) == 3 else self.plans_manager.original_median_shape_after_transp[0]
        max_voxels = math.prod(median_shape) * slices * self.cases * MAX_DATASET_COVERED
        patch_size, batch_size = choose_patch_and_batch(
            self.patches(),
            lambda patch: round(max_voxels / math.prod(patch)),
            budget,
            lambda patch, batch: max(memory.total for memory in self.of(patch, batch).values()),
        )
        return PatchAndBatch(patch_size, batch_size, self.of(patch_size, batch_size))

    def _choose_fixed(self, patch: PatchSize, budget: int) -> PatchAndBatch:
        memory = self.of(patch, 1)
        needed = max(use.total for use in memory.values())
        if needed > budget:
            raise ValueError(
                f"{self.trainer.__name__} trains on patches of {list(patch)} alone, which takes {needed / GB:.1f} GB, "
                f"and {budget / GB:.1f} GB are there. Take a GPU with more memory or a smaller variant of the network."
            )
        return PatchAndBatch(patch, 1, memory)


def memory_warning(memory: TrainingMemory, available: int) -> str | None:
    """A warning for a user whose patch and batch do not fit a GPU of so many bytes; None where they do."""
    planned = memory.as_planned()
    step, needed = max(((name, use.total) for name, use in planned.memory.items()), key=lambda pair: pair[1])
    if needed <= available:
        return None
    warning = (
        f"Patch {list(planned.patch_size)} with batch {planned.batch_size} takes about {needed / GB:.1f} GB in {step}, "
        f"and this GPU has {available / GB:.1f} GB."
    )
    if not can_be_planned_for(memory.trainer):
        return f"{warning} Plan a smaller patch or batch for it."
    try:
        choice = memory.choose(available)
    except ValueError as error:
        return f"{warning} {error}"
    target = math.floor(10 * available / GB) / 10
    return (
        f"{warning} Plans with patch {list(choice.patch_size)} and batch {choice.batch_size} would fit, on the same "
        f"preprocessed data: dinomed3d plan -d {shlex.quote(memory.plans_manager.dataset_name)} -gpu_memory_target "
        f"{target} -tr {memory.trainer.__name__}; then train with -p {name_of_plans(memory.trainer)}."
    )


def can_be_planned_for(trainer: type) -> bool:
    """Whether a patch can be chosen for a trainer, by a rule of `patch_choice`; of others only the memory is known."""
    return bool(getattr(trainer, "takes_chosen_patch", False))


def name_of_plans(trainer: type) -> str:
    """Name of the plans that are made for a trainer. Those of one network are not for another."""
    own: str | None = getattr(trainer, "own_plans_name", None)
    if own is not None:
        return own
    network: str | None = getattr(trainer, "network_name", None)
    return PLANS_NAME if network is None else f"nnUNetPlans_{network}"
