"""The model to export: a fold of a folder of nnU-Net's results, read without running code in its files."""

import inspect
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.network_architecture.state_dict import STAGE_KEY, stage_of
from nnunetv2_dinomed3d.trainers.registry import find_trainer
from nnunetv2_dinomed3d.weights import read_checkpoint
from nnunetv2_dinomed3d.weights.check import as_float32
from nnunetv2_dinomed3d.weights.files import printable, shortened

MAX_PATCH = 1 << 27
"""Voxels."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what nnU-Net knows of its input and output.

    Attributes:
        network: on the CPU, in float32 and eval mode.
        plans, configuration, labels, dataset_json: nnU-Net's.
        configuration_name: of the configuration in the plans.
        in_channels: C; with a previous stage, its labels one-hot included.
        mirror_axes: spatial axes along which nnU-Net mirrors windows when it predicts.
        trainer: name of the trainer.
        checkpoint: file of the weights.
    """

    network: nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    labels: LabelManager
    dataset_json: dict[str, Any]
    configuration_name: str
    in_channels: int
    mirror_axes: tuple[int, ...]
    trainer: str
    checkpoint: Path

    @property
    def window(self) -> tuple[int, ...]:
        """Shape of one window, ``(1, C, *patch)``."""
        return (1, self.in_channels, *self.configuration.patch_size)

    @property
    def num_outputs(self) -> int:
        """N, channels of the logits."""
        heads: int = self.labels.num_segmentation_heads
        return heads


def load_model(checkpoint: Path) -> TrainedModel:
    """Load the network of a checkpoint.

    Args:
        checkpoint: file in a fold of a model's folder, beside whose folds are ``plans.json`` and ``dataset.json``.

    Raises:
        ValueError: a file is malformed, they do not fit each other, or the checkpoint is of stage 1.
    """
    folder = checkpoint.parent.parent
    content = read_checkpoint(checkpoint)
    name, weights = content["trainer_name"], content["network_weights"]
    if stage_of(weights) == 1:
        raise ValueError(
            f"{checkpoint} is of stage 1, and only the network of stage 2 is exported. Name a checkpoint of stage 2 "
            "with -chk, or finish the training."
        )
    trainer = find_trainer(name)
    read_dataset_json(folder / "dataset.json")
    dataset_json = read_json(folder / "dataset.json")
    configuration_name = content["init_args"].get("configuration")
    plans, configuration, labels = _read_plans(folder / "plans.json", configuration_name, dataset_json)
    in_channels = determine_num_input_channels(plans, configuration, dataset_json)
    network = _build(trainer, plans, configuration, in_channels, labels.num_segmentation_heads)
    try:
        network.load_state_dict({**weights, **as_float32({k: t for k, t in weights.items() if k != STAGE_KEY})})
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint} does not fit its trainer, plans.json and dataset.json ({shortened(error)}). Was one of them "
            "changed?"
        ) from error
    axes = _mirror_axes(content.get("inference_allowed_mirroring_axes"), len(configuration.patch_size), checkpoint)
    return TrainedModel(
        network.eval(),
        plans,
        configuration,
        labels,
        dataset_json,
        configuration_name,
        in_channels,
        axes,
        name,
        checkpoint,
    )


def _build(
    trainer: type[nnUNetTrainer], plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int
) -> nn.Module:
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        raise ValueError(
            f"{trainer.__name__} has build_network_architecture of nnU-Net before 2.8. Give it the arguments of "
            "nnUNetTrainer's."
        )
    return trainer.build_network_architecture(plans, configuration, channels, heads, enable_deep_supervision=False)


def _read_plans(
    path: Path, name: Any, dataset_json: dict[str, Any]
) -> tuple[PlansManager, ConfigurationManager, LabelManager]:
    content = read_json(path)
    try:
        plans = PlansManager(content)
        configuration = plans.get_configuration(name)
        patch = configuration.patch_size
        axes = [*configuration.spacing, *plans.transpose_forward, *plans.transpose_backward]
        sound = len(patch) in (2, 3) and len(axes) in (8, 9) and all(isinstance(n, int) and n > 0 for n in patch)
        with redirect_stdout(StringIO()):  # nnU-Net prints that old plans name no label manager
            labels = plans.get_label_manager(dataset_json)
            determine_num_input_channels(plans, configuration, dataset_json)
    except Exception as error:  # nnU-Net does not check them
        raise ValueError(
            f"{path} is no plans file of nnU-Net with the configuration {name!r} ({shortened(error)}). Copy it from "
            "the training's folder again."
        ) from error
    if not sound or prod(patch) > MAX_PATCH:
        raise ValueError(
            f"{path}: {name} has the patch size {printable(patch)}, which no network here is trained with. Copy the "
            "file from the training's folder again."
        )
    return plans, configuration, labels


def _mirror_axes(axes: Any, dimensions: int, checkpoint: Path) -> tuple[int, ...]:
    if axes is None:
        return ()
    if not isinstance(axes, tuple | list) or not set(map(repr, axes)) <= set(map(str, range(dimensions))):
        raise ValueError(
            f"{checkpoint} has the mirroring axes {printable(axes)}. The axes of its patch are 0 to {dimensions - 1}."
        )
    return tuple(axes)
