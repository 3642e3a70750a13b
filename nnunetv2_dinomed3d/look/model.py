"""A trained model to look at: nnU-Net's predictor and the network, read without running code in their files."""

from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import cast

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D
from nnunetv2_dinomed3d.planning.planned_network import PlannedInput, PlannedNetwork
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.weights import WeightsUnavailableError, read_checkpoint, read_pretrained
from nnunetv2_dinomed3d.weights.trained_network import load_trained, mirroring_axes


@dataclass(frozen=True)
class LoadedModel:
    """A trained model.

    Attributes:
        predictor: nnU-Net's, with the network, plans, configuration and ``dataset.json``.
        network: the predictor's network.
        trainer: class of its trainer.
        checkpoint: file of its weights, ``TRAINER__PLANS__CONFIGURATION/fold_N/FILE``.
    """

    predictor: nnUNetPredictor
    network: DINOMed3D
    trainer: type[nnUNetTrainerDINOMed3D]
    checkpoint: Path

    @property
    def title(self) -> str:
        """Trainer, fold and checkpoint, for a picture."""
        fold = self.checkpoint.parent
        trainer = fold.parent.name.partition("__")[0]
        return f"{trainer}, fold {fold.name.removeprefix('fold_')}, {self.checkpoint.name}"


def load_model(checkpoint: Path) -> LoadedModel:
    """Load a model onto the GPU, if there is one.

    Args:
        checkpoint: file in a fold of nnU-Net's results.

    Raises:
        ValueError: the model is none of DINO-Med3D, or a file of it is malformed.
    """
    folder = checkpoint.parent.parent
    content = read_checkpoint(checkpoint)
    trainer = _trainer_class(content["trainer_name"], checkpoint)
    name = content["init_args"].get("configuration")
    planned = PlannedInput.read(folder / "plans.json", name, folder / "dataset.json")
    previous = planned.configuration.previous_stage_name
    if previous is not None:
        raise ValueError(f"{name} also needs the segmentation of {previous}. Look at that one instead.")
    network = PlannedNetwork(trainer, planned).build(deep_supervision=False)
    weights = load_trained(network, content["network_weights"], checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with redirect_stdout(StringIO()):  # on a CPU nnU-Net prints which of its options it switches off
        predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    network = network.to(device)
    predictor.manual_initialization(
        network,
        planned.plans,
        planned.configuration,
        [weights],
        planned.dataset_json,
        content["trainer_name"],
        mirroring_axes(content, len(planned.patch_size), checkpoint),
    )
    return LoadedModel(predictor, cast(DINOMed3D, network), trainer, checkpoint)


def _trainer_class(name: str, checkpoint: Path) -> type[nnUNetTrainerDINOMed3D]:
    try:
        with redirect_stdout(StringIO()):  # nnU-Net prints where it looks
            found = recursive_find_trainer_class_by_name(name) if name.isidentifier() else None
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} is of the trainer {name}, which is not found here. Name its folder in nnUNet_extTrainer."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nnUNetTrainerDINOMed3D)):
        raise ValueError(
            f"{printable(name)} has no slab encoder and no gate to look at. Name a trainer of DINO-Med3D, such as "
            f"{nnUNetTrainerDINOMed3D.__name__}."
        )
    return found


def before_stage1(model: LoadedModel) -> tuple[DINOMed3D | None, str]:
    """The network with the DINOv3 weights that a training starts from.

    Returns:
        The network, or None without such weights; and a sentence that says so.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    name = VARIANTS[model.trainer.variant].weights_name
    if name is None:
        return None, "No features before stage 1: training began with random weights, as DINOv3 has none of this size."
    try:
        weights = read_pretrained(name, model.network.pretrained_shapes())
    except WeightsUnavailableError as error:
        raise ValueError(error) from error
    if weights is None:
        return None, "No features before stage 1: random weights (DINOMED3D_WEIGHTS=random)."
    network = deepcopy(model.network)
    network.load_pretrained(weights.tensors)
    return network, f"Before stage 1: {weights.file} ({weights.format} format)."
