"""A trained model to look at: nnU-Net's predictor and the network, read without running code in their files."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import STAGE_KEY
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.weights import WeightsUnavailableError, read_checkpoint, read_pretrained
from nnunetv2_dinomed3d.weights.check import as_float32

MAX_PATCH = 1 << 27
"""Voxels."""


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
    read_dataset_json(folder / "dataset.json")
    dataset_json = read_json(folder / "dataset.json")
    plans, configuration = _read_plans(folder / "plans.json", content, dataset_json)
    if configuration.previous_stage_name is not None:
        raise ValueError(
            f"{content['init_args'].get('configuration')} also needs the segmentation of "
            f"{configuration.previous_stage_name}. Look at that one instead."
        )
    network = trainer.build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    weights = _load_weights(network, content["network_weights"], checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with redirect_stdout(StringIO()):  # on a CPU nnU-Net prints which of its options it switches off
        predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    network = network.to(device)
    predictor.manual_initialization(
        network,
        plans,
        configuration,
        [weights],
        dataset_json,
        content["trainer_name"],
        _mirroring_axes(content.get("inference_allowed_mirroring_axes"), checkpoint),
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


def _read_plans(
    path: Path, checkpoint: dict[str, Any], dataset_json: dict[str, Any]
) -> tuple[PlansManager, ConfigurationManager]:
    content = read_json(path)
    name = checkpoint["init_args"].get("configuration")
    try:
        plans = PlansManager(content)
        configuration = plans.get_configuration(name)
        patch = configuration.patch_size
        sound = len(patch) == 3 and all(isinstance(side, int) and side > 0 for side in patch)
        determine_num_input_channels(plans, configuration, dataset_json)
        found = [*configuration.spacing, *plans.transpose_forward, configuration.data_identifier]
        _ = [configuration.previous_stage_name, configuration.preprocessor_class, plans.get_label_manager(dataset_json)]
    except Exception as error:  # nnU-Net does not check them
        reason = printable(f"{type(error).__name__}: {error}")
        raise ValueError(f"{path} is no plans file of nnU-Net with the configuration {name!r} ({reason}).") from error
    if not sound or prod(patch) > MAX_PATCH or len(found) != 7:
        raise ValueError(
            f"{path}: {name} has the patch size {printable(patch)}, which no network here is trained with."
        )
    return plans, configuration


def _load_weights(network: nn.Module, state: Mapping[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """Load the checkpoint's weights into the network, in float32, and return them."""
    try:
        weights = {**state, **as_float32({name: t for name, t in state.items() if name != STAGE_KEY})}
        network.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint} does not fit its trainer, plans.json and dataset.json ({printable(error)}). Was one of them "
            "changed?"
        ) from error
    return weights


def _mirroring_axes(axes: Any, checkpoint: Path) -> tuple[int, ...] | None:
    if axes is None:
        return None
    if not isinstance(axes, tuple | list) or not set(map(repr, axes)) <= {"0", "1", "2"}:
        raise ValueError(f"{checkpoint} has the mirroring axes {printable(axes)}. The axes of a volume are 0, 1 and 2.")
    return tuple(axes)


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
