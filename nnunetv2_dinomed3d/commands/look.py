"""``dinomed3d look``: a picture per trainer of what the network sees of a case."""

import argparse
import os
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.look.case import Case, choose_slices, load_case
from nnunetv2_dinomed3d.look.features import Windows, encoder_features, feature_colours, fusion_gate
from nnunetv2_dinomed3d.look.figure import Column, draw, label_names
from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D
from nnunetv2_dinomed3d.nnunet_files import dataset_name, folder_of, folds_in, model_name
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.weights import WeightsUnavailableError, load_pretrained_weights, read_checkpoint
from nnunetv2_dinomed3d.weights.check import as_float32
from nnunetv2_dinomed3d.weights.files import printable
from nnunetv2_dinomed3d.written import written_whole

DPI = 150
LARGEST_PATCH = 1 << 27
"""Voxels."""


@dataclass(frozen=True)
class Model:
    """A trained model: nnU-Net's predictor with it, and its network as that of the method."""

    predictor: nnUNetPredictor
    network: DINOMed3D
    trainer: type[nnUNetTrainerDINOMed3D]
    title: str


def checkpoint_file(dataset: str, trainer: str, plans: str, configuration: str, fold: str, checkpoint: str) -> Path:
    """The file of that checkpoint.

    Raises:
        ValueError: there is none, or a name is none of nnU-Net's.
    """
    for option, name in (("-tr", trainer), ("-p", plans), ("-c", configuration), ("-chk", checkpoint)):
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise ValueError(f"{option} {name!r} is a name, not a path: give it as nnU-Net's folders have it.")
    if not re.fullmatch("[0-9]+|all", fold):
        raise ValueError(f"-f {fold!r} is no fold: give its number, or all.")
    folder = folder_of("nnUNet_results") / dataset / model_name(trainer, plans, configuration)
    file = folder / f"fold_{fold}" / checkpoint
    if not os.path.exists(file):
        folds = f"; there are the folds {', '.join(folds_in(folder))}" if folds_in(folder) else ""
        raise ValueError(f"{file} does not exist. Train {trainer} first, or check -tr, -p, -c, -f and -chk{folds}.")
    return file


def load_model(dataset: str, trainer: str, plans: str, configuration: str, fold: str, checkpoint: str) -> Model:
    """The model of that name, on the GPU if there is one. Nothing in its files is run.

    Raises:
        ValueError: there is none, it is none of DINO-Med3D, or a file of it is malformed.
    """
    file = checkpoint_file(dataset, trainer, plans, configuration, fold, checkpoint)
    folder = file.parent.parent
    content = read_checkpoint(file)
    trainer_class = _trainer_class(content["trainer_name"], file)
    read_dataset_json(folder / "dataset.json")
    dataset_json = read_json(folder / "dataset.json")
    plans_manager, configuration_manager = _read_plans(folder / "plans.json", content, dataset_json)
    if configuration_manager.previous_stage_name is not None:
        raise ValueError(
            f"{configuration} also needs the segmentation of {configuration_manager.previous_stage_name}: look at that "
            "one instead."
        )
    network = trainer_class.build_network_architecture(
        plans_manager,
        configuration_manager,
        determine_num_input_channels(plans_manager, configuration_manager, dataset_json),
        plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    weights = _fitting(content["network_weights"], network, file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    network = network.to(device)
    predictor.manual_initialization(
        network,
        plans_manager,
        configuration_manager,
        [weights],
        dataset_json,
        content["trainer_name"],
        _mirroring_axes(content.get("inference_allowed_mirroring_axes"), file),
    )
    return Model(predictor, cast(DINOMed3D, network), trainer_class, f"{trainer}, fold {fold}, {checkpoint}")


def _trainer_class(name: str, file: Path) -> type[nnUNetTrainerDINOMed3D]:
    try:
        found = recursive_find_trainer_class_by_name(name) if name.isidentifier() else None
    except RuntimeError as error:
        raise ValueError(
            f"{file} is of the trainer {name}, which is not found here: name its folder in nnUNet_extTrainer."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nnUNetTrainerDINOMed3D)):
        raise ValueError(
            f"{printable(name)} has no slab encoder and no gate to look at: name a trainer of DINO-Med3D, such as "
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
    if not sound or prod(patch) > LARGEST_PATCH or len(found) != 7:
        raise ValueError(
            f"{path}: {name} has the patch size {printable(patch)}, which no network here is trained with."
        )
    return plans, configuration


def _fitting(state: Mapping[str, Tensor], network: nn.Module, file: Path) -> dict[str, Tensor]:
    """The checkpoint's weights, which the network has now."""
    try:
        weights = {**state, **as_float32({name: t for name, t in state.items() if name != "_extra_state"})}
        network.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{file} does not fit its trainer, plans.json and dataset.json ({printable(error)}): was one of them "
            "changed?"
        ) from error
    return weights


def _mirroring_axes(axes: Any, file: Path) -> tuple[int, ...] | None:
    if axes is None:
        return None
    if not isinstance(axes, tuple | list) or not set(map(repr, axes)) <= {"0", "1", "2"}:
        raise ValueError(f"{file} has the mirroring axes {printable(axes)}, which are none of a volume.")
    return tuple(axes)


def before_stage1(model: Model) -> tuple[DINOMed3D | None, str]:
    """The network with the DINOv3 weights that a training starts from, or None; and a note that says so.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    name = VARIANTS[model.trainer.variant].weights_name
    if name is None:
        return None, "No features before stage 1: there are no DINOv3 weights of this size, it began from random ones."
    try:
        weights = load_pretrained_weights(name, model.network.pretrained_shapes())
    except WeightsUnavailableError as error:
        raise ValueError(error) from error
    if weights is None:
        return None, "No features before stage 1: random weights (DINOMED3D_WEIGHTS=random)."
    network = deepcopy(model.network)
    network.load_pretrained(weights.tensors)
    return network, f"Before stage 1: {weights.file} ({weights.format} format)."


def look(model: Model, case: Case, wanted: list[int] | None) -> Figure:
    """The picture of a case.

    Args:
        model: whose.
        case: preprocessed for it.
        wanted: numbers of slices; None chooses.
    """
    predictor, network = model.predictor, model.network
    configuration, labels = predictor.configuration_manager, predictor.label_manager
    if wanted:
        choose_slices(wanted, case.image[0].numpy())
    prediction = labels.convert_logits_to_segmentation(predictor.predict_logits_from_preprocessed_data(case.image))
    prediction = np.asarray(prediction)
    slices = choose_slices(wanted, prediction if case.truth is None else case.truth)
    windows = Windows(case.image.to(predictor.device), configuration.patch_size)

    def features(title: str, network: DINOMed3D, lora: bool = False) -> Column:
        found = encoder_features(network, windows, slices, lora)
        colours = feature_colours(found, windows, network.encoder.stride // network.scale)
        return Column(title, [picture.numpy() for picture in colours], "colours")

    columns = [Column("image", list(case.image[0].numpy()[slices]), "grey")]
    if case.truth is not None:
        columns.append(Column("truth", list(case.truth[slices]), "labels"))
    if 1 in model.trainer.stages and network.train_encoder:
        start, note = before_stage1(model)
        if start is not None:
            columns.append(features("features\nbefore stage 1", start))
        columns.append(features("features\nafter stage 1", network))
    else:
        note = "The encoder was trained in no stage 1: but for LoRA it is the one that training started with."
        columns.append(features("features\nof the frozen encoder", network))
    title = f"{case.name}: {model.title}"
    if network.stage == 2:
        columns.append(features("features after\nstage 2 (LoRA)", network, lora=True))
    if network.stage == 2 and network.detail_stream:
        gate = [picture.numpy() for picture in fusion_gate(network, windows, slices)]
        low, high = float(np.min(gate)), float(np.max(gate))
        columns.append(Column(f"gate, mean of channels\n{low:.2f} (dark) to {high:.2f}", gate, "gate"))
    else:
        title += f" (no fusion: {'stage 1' if network.stage == 1 else 'no detail stream'})"
    columns.append(Column("prediction", list(prediction[slices]), "labels"))

    _, height, width = configuration.patch_size
    note = (
        "Features: the slab encoder's last map, its first three principal components as red, green and blue, of each "
        f"column its own; seen through windows of {height} x {width} voxels side by side. {note}"
    )
    dy, dx = configuration.spacing[1:]
    return draw(title, note, slices, columns, label_names(predictor.dataset_json["labels"]), dy / dx)


def run_look(args: argparse.Namespace) -> int:
    """Write the pictures, say where they are; 0."""
    dataset = dataset_name(args.d)
    where = [(dataset, trainer, args.p, args.c, args.f, args.chk) for trainer in dict.fromkeys(args.tr)]
    for names in where:
        checkpoint_file(*names)
    for names in where:
        model = load_model(*names)
        predictor = model.predictor
        case = load_case(
            args.case, dataset, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
        out = args.o or Path(f"look_{case.name}")
        picture = out / f"{case.name}__{names[1]}.png"
        if picture.is_dir():
            raise ValueError(f"{picture} is a folder: remove it, or name another one with -o.")
        with written_whole(picture) as path:
            look(model, case, args.slices).savefig(path, dpi=DPI)
        print(picture)
    return 0
