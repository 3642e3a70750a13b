"""What a trainer takes of a GPU's memory on nnU-Net's plans, and the patch and batch that would suit it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.planning.patch_choice import PatchSize, choose
from nnunetv2_dinomed3d.planning.step_memory import Memory, training_step_memory

if TYPE_CHECKING:
    from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D

GB = 10**9

MAX_DATASET_COVERED = 0.05
"""Share of the data set's voxels that a batch has at most; nnU-Net's."""


@dataclass(frozen=True)
class Choice:
    """Patch and batch for one configuration, and the memory that each trained stage takes with them."""

    patch_size: PatchSize
    batch_size: int
    memory: dict[int, Memory]


def visible_gpu_memory() -> int | None:
    """Bytes of the current GPU; None where there is none."""
    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None


class TrainingMemory:
    """Memory of a trainer on one configuration for any patch and batch: one GPU, bfloat16, not compiled.

    Args:
        trainer: its class.
        plans: nnU-Net's.
        configuration: name of a 3D one.
        dataset_json: content of the file.
    """

    def __init__(
        self, trainer: type[nnUNetTrainerDINOMed3D], plans: dict, configuration: str, dataset_json: dict
    ) -> None:
        self.trainer = trainer
        self.plans_manager = PlansManager(plans)
        self.configuration: ConfigurationManager = self.plans_manager.get_configuration(configuration)
        self.in_channels = determine_num_input_channels(self.plans_manager, self.configuration, dataset_json)
        self.heads = self.plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        self.cases = dataset_json.get("numTraining", 0)  # for `choose` alone: training does not need it
        self._known: dict[tuple[int, ...], Memory] = {}

    def of(self, patch_size: Sequence[int], batch_size: int) -> dict[int, Memory]:
        """Memory of each stage that is trained."""
        return {stage: self._of_stage(stage, patch_size, batch_size) for stage in self.trainer.stages}

    def _of_stage(self, stage: int, patch_size: Sequence[int], batch_size: int) -> Memory:
        if stage == 1:
            batch_shape = (self.trainer.slab_batch_size, self.in_channels, self.trainer.slab_depth, *patch_size[1:])
        else:
            batch_shape = (batch_size, self.in_channels, *patch_size)
        key = (stage, *batch_shape, *patch_size)  # the depth of a patch has a part in the in-plane scale
        if key not in self._known:
            configuration = ConfigurationManager({**self.configuration.configuration, "patch_size": list(patch_size)})

            def build() -> DINOMed3D:
                network = self.trainer.build_network_architecture(
                    self.plans_manager, configuration, self.in_channels, self.heads, False
                )
                network = cast(DINOMed3D, network)
                network.checkpoint_activations(self.trainer.checkpoint_activations)
                return network

            self._known[key] = training_step_memory(build, stage, batch_shape)
        return self._known[key]

    def choose(self, budget: int) -> Choice:
        """The patch and batch that make most of ``budget`` bytes.

        Raises:
            ValueError: nothing fits.
        """
        median_shape = self.configuration.median_image_size_in_voxels
        max_voxels = math.prod(median_shape) * self.cases * MAX_DATASET_COVERED
        patch_size, batch_size = choose(
            median_shape,
            lambda patch: round(max_voxels / math.prod(patch)),
            budget,
            lambda patch, batch: max(memory.total for memory in self.of(patch, batch).values()),
        )
        return Choice(patch_size, batch_size, self.of(patch_size, batch_size))


def memory_warning(memory: TrainingMemory, available: int) -> str | None:
    """What to tell a user whose patch and batch do not fit a GPU of so many bytes; None where they do."""
    configuration = memory.configuration
    needed = {stage: m.total for stage, m in memory.of(configuration.patch_size, configuration.batch_size).items()}
    stage = max(needed, key=needed.__getitem__)
    if needed[stage] <= available:
        return None
    warning = (
        f"Patch {list(configuration.patch_size)} with batch {configuration.batch_size} takes about "
        f"{needed[stage] / GB:.1f} GB in stage {stage}, and this GPU has {available / GB:.1f} GB."
    )
    try:
        choice = memory.choose(available)
    except ValueError as error:
        return f"{warning} {error}"
    target = math.floor(10 * available / GB) / 10
    return (
        f"{warning} Plans with patch {list(choice.patch_size)} and batch {choice.batch_size} would fit, on the same "
        f"preprocessed data: dinomed3d plan -d {shlex.quote(memory.plans_manager.dataset_name)} -gpu_memory_target "
        f"{target} -tr {memory.trainer.__name__}; then train with -p nnUNetDINOMed3DPlans."
    )
