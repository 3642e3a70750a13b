"""The network that a trainer builds for a configuration of nnU-Net's plans: its input, its classes, their layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, shapes_of
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.weights.files import shortened
from nnunetv2_dinomed3d.weights.spreading import Channels


@dataclass(frozen=True)
class PlannedInput:
    """What a network is built for.

    Attributes:
        plans: nnU-Net's.
        configuration: one of the plans.
        patch_size: its patch, in voxels.
        channels: of the network's input.
        num_classes: N, segmentation heads.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    patch_size: tuple[int, ...]
    channels: Channels
    num_classes: int

    @classmethod
    def of(cls, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> "PlannedInput":
        """From the content of nnU-Net's files, or of a checkpoint; nothing of it is checked."""
        manager = PlansManager(plans)
        chosen = manager.get_configuration(configuration)
        images = len(dataset_json["modality" if "modality" in dataset_json else "channel_names"])
        total = determine_num_input_channels(manager, chosen, dataset_json)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
        patch_size = tuple(int(side) for side in chosen.patch_size)
        return cls(manager, chosen, patch_size, Channels(images, total - images), heads)

    @classmethod
    def read(cls, plans_file: Path, configuration: str, description: Path) -> "PlannedInput":
        """From nnU-Net's files.

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
        if not isinstance(configurations, dict) or configuration not in configurations:
            there = ", ".join(map(printable, configurations)) if isinstance(configurations, dict) else ""
            raise ValueError(
                f"{plans_file} has no configuration {configuration!r}; it has {there or 'none. Is it a file of plans'}."
            )
        try:
            return cls.of(plans, configuration, dataset_json)
        except Exception as error:  # nnU-Net does not check them
            raise ValueError(f"{plans_file} is no plans file of nnU-Net ({shortened(error)}).") from error


@dataclass(frozen=True)
class PlannedNetwork:
    """A trainer's network.

    Attributes:
        trainer: its class.
        planned: what it is built for.
    """

    trainer: type
    planned: PlannedInput

    def build(self, in_channels: int | None = None, num_classes: int | None = None) -> nn.Module:
        """The network with random weights, for training.

        Args:
            in_channels, num_classes: others than those that are planned.
        """
        channels = self.planned.channels.total if in_channels is None else in_channels
        classes = self.planned.num_classes if num_classes is None else num_classes
        build = self.trainer.build_network_architecture  # type: ignore[attr-defined]
        network: nn.Module = build(self.planned.plans, self.planned.configuration, channels, classes, True)
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
