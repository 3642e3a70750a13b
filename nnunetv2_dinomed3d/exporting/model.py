"""The model to export: a fold of a folder of nnU-Net's results, read without running code in its files."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nnunetv2_dinomed3d.network_architecture.state_dict import stage_of
from nnunetv2_dinomed3d.planning.planned_network import PlannedInput, PlannedNetwork
from nnunetv2_dinomed3d.trainers.registry import find_trainer
from nnunetv2_dinomed3d.weights import read_checkpoint
from nnunetv2_dinomed3d.weights.trained_network import load_trained, mirroring_axes


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what nnU-Net knows of its input and output.

    Attributes:
        network: on the CPU, in float32 and eval mode.
        planned: what it was built for.
        configuration_name: of the configuration in the plans.
        mirror_axes: spatial axes along which nnU-Net mirrors windows when it predicts.
        trainer: name of the trainer.
        checkpoint: file of the weights.
    """

    network: nn.Module
    planned: PlannedInput
    configuration_name: str
    mirror_axes: tuple[int, ...]
    trainer: str
    checkpoint: Path

    @property
    def window(self) -> tuple[int, ...]:
        """Shape of one window, ``(1, C, *patch)``; C counts a previous stage's labels, one-hot."""
        return (1, self.planned.channels.total, *self.planned.patch_size)


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
    configuration_name = content["init_args"].get("configuration")
    planned = PlannedInput.read(folder / "plans.json", configuration_name, folder / "dataset.json")
    network = PlannedNetwork(find_trainer(name), planned).build(deep_supervision=False)
    load_trained(network, weights, checkpoint)
    axes = mirroring_axes(content, len(planned.patch_size), checkpoint) or ()
    return TrainedModel(network.eval(), planned, configuration_name, axes, name, checkpoint)
