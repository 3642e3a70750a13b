"""The network that a trainer builds for a configuration of nnU-Net's plans: its input, its classes, their layers."""

import inspect
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, shapes_of
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.weights.files import shortened
from nnunetv2_dinomed3d.weights.spreading import Channels

MAX_PATCH = 1 << 27
"""Most voxels of a patch that is taken for one."""


@dataclass(frozen=True)
class PlannedInput:
    """What a network is built for.

    Attributes:
        plans: nnU-Net's.
        configuration: one of the plans.
        labels: nnU-Net's, of the data set.
        dataset_json: content of the file.
        patch_size: its patch, in voxels.
        channels: of the network's input.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    labels: LabelManager
    dataset_json: dict[str, Any]
    patch_size: tuple[int, ...]
    channels: Channels

    @property
    def num_classes(self) -> int:
        """N, segmentation heads."""
        heads: int = self.labels.num_segmentation_heads
        return heads

    @classmethod
    def of(cls, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> "PlannedInput":
        """From the content of nnU-Net's files, or of a checkpoint; nothing of it is checked."""
        manager = PlansManager(plans)
        chosen = manager.get_configuration(configuration)
        with redirect_stdout(StringIO()):  # nnU-Net prints that old plans name no label manager
            labels = manager.get_label_manager(dataset_json)
            total = determine_num_input_channels(manager, chosen, dataset_json)
        images = len(dataset_json["modality" if "modality" in dataset_json else "channel_names"])
        return cls(manager, chosen, labels, dataset_json, tuple(chosen.patch_size), Channels(images, total - images))

    @classmethod
    def read(cls, plans_file: Path, configuration: Any, description: Path) -> "PlannedInput":
        """From nnU-Net's files, which may be a stranger's.

        Args:
            plans_file: such as ``nnUNetPlans.json``.
            configuration: name of one.
            description: ``dataset.json``.

        Raises:
            ValueError: a file is missing or malformed, or has not this configuration.
        """
        read_dataset_json(description)
        plans, dataset_json = read_json(plans_file), read_json(description)
        configurations = plans.get("configurations") if isinstance(plans, dict) else None
        name = printable(repr(configuration))
        if not isinstance(configurations, dict) or not isinstance(configuration, str):
            raise ValueError(f"{plans_file} is no plans file of nnU-Net with the configuration {name}.")
        if configuration not in configurations:
            there = ", ".join(map(printable, configurations)) or "none"
            raise ValueError(f"{plans_file} has no configuration {name}; it has {there}.")
        try:
            planned = cls.of(plans, configuration, dataset_json)
            chosen, manager = planned.configuration, planned.plans
            axes = [*chosen.spacing, *manager.transpose_forward, *manager.transpose_backward]
            _ = [chosen.data_identifier, chosen.preprocessor_class, chosen.previous_stage_name]
        except Exception as error:  # nnU-Net does not check them
            raise ValueError(
                f"{plans_file} is no plans file of nnU-Net with the configuration {name} ({shortened(error)})."
            ) from error
        patch = planned.patch_size
        is_patch = len(patch) in (2, 3) and all(isinstance(side, int) and side > 0 for side in patch)
        if not is_patch or prod(patch) > MAX_PATCH or len(axes) not in (8, 9):
            raise ValueError(
                f"{plans_file}: {name} has the patch size {printable(list(patch))}, which no network here is trained "
                "with."
            )
        return planned


@dataclass(frozen=True)
class PlannedNetwork:
    """A trainer's network.

    Attributes:
        trainer: its class.
        planned: what it is built for.
    """

    trainer: type[nnUNetTrainer]
    planned: PlannedInput

    def build(
        self, in_channels: int | None = None, num_classes: int | None = None, *, deep_supervision: bool = True
    ) -> nn.Module:
        """The network with random weights.

        Args:
            in_channels, num_classes: others than those that are planned.
            deep_supervision: as in training; without it the network returns one map of logits.

        Raises:
            ValueError: the trainer builds its network as nnU-Net did before 2.8.
        """
        planned = self.planned
        channels = planned.channels.total if in_channels is None else in_channels
        classes = planned.num_classes if num_classes is None else num_classes
        build = self.trainer.build_network_architecture
        if "plans_manager" not in inspect.signature(build).parameters:
            raise ValueError(
                f"{self.trainer.__name__} has build_network_architecture of nnU-Net before 2.8. Give it the arguments "
                "of nnUNetTrainer's."
            )
        network: nn.Module = build(planned.plans, planned.configuration, channels, classes, deep_supervision)
        return network

    def input_layers(self, own: Mapping[str, Shape]) -> frozenset[str]:
        """Tensors whose second axis is the input's channels: a network for one channel more has other shapes there.

        Args:
            own: names and shapes of the network.
        """
        with torch.device("meta"):
            other = shapes_of(self.build(in_channels=self.planned.channels.total + 1).state_dict())
        return frozenset(
            name
            for name, shape in own.items()
            if len(shape) > 1 and other.get(name) == (shape[0], shape[1] + 1, *shape[2:])
        )

    def heads(self, own: Mapping[str, Shape]) -> frozenset[str]:
        """Tensors whose shape depends on the number of classes; the argument is as above."""
        with torch.device("meta"):
            other = shapes_of(self.build(num_classes=self.planned.num_classes + 1).state_dict())
        return frozenset(name for name, shape in own.items() if other.get(name) != shape)
