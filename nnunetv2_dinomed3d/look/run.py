"""``dinomed3d look``: a picture per trainer of what the network sees of a case."""

import argparse
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch._dynamo import OptimizedModule

from nnunetv2_dinomed3d.evaluation.dataset import dataset_name, folder_of, model_name
from nnunetv2_dinomed3d.look.case import Case, choose_slices, load_case
from nnunetv2_dinomed3d.look.features import Windows, encoder_features, feature_colours, fusion_gate
from nnunetv2_dinomed3d.look.figure import Column, draw, label_names
from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D
from nnunetv2_dinomed3d.trainers.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.weights import WeightsUnavailableError, load_pretrained_weights

DPI = 150


@dataclass(frozen=True)
class Model:
    """A trained model: nnU-Net's predictor with it, and its network as that of the method."""

    predictor: nnUNetPredictor
    network: DINOMed3D
    trainer: type[nnUNetTrainerDINOMed3D]
    title: str


def load_model(dataset: str, trainer: str, plans: str, configuration: str, fold: str, checkpoint: str) -> Model:
    """The model of that name, on the GPU if there is one.

    Raises:
        ValueError: there is none, or it is none of DINO-Med3D.
    """
    folder = folder_of("nnUNet_results") / dataset / model_name(trainer, plans, configuration)
    file = folder / f"fold_{fold}" / checkpoint
    if not file.is_file():
        raise ValueError(f"{file} does not exist. Train {trainer} first, or check -tr, -p, -c, -f and -chk.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
    network = predictor.network._orig_mod if isinstance(predictor.network, OptimizedModule) else predictor.network
    if not isinstance(network, DINOMed3D):
        raise ValueError(
            f"{trainer} has no slab encoder and no gate to look at: name a trainer of DINO-Med3D, such as "
            f"{nnUNetTrainerDINOMed3D.__name__}."
        )
    previous = predictor.configuration_manager.previous_stage_name
    if previous is not None:
        raise ValueError(f"{configuration} also needs the segmentation of {previous}: look at that one instead.")
    trainer_class = cast(type[nnUNetTrainerDINOMed3D], recursive_find_trainer_class_by_name(predictor.trainer_name))
    return Model(predictor, network.to(device), trainer_class, f"{trainer}, fold {fold}, {checkpoint}")


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
    for trainer in args.tr:
        model = load_model(dataset, trainer, args.p, args.c, args.f, args.chk)
        predictor = model.predictor
        case = load_case(
            args.case, dataset, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
        figure = look(model, case, args.slices)
        out = args.o or Path(f"look_{case.name}")
        out.mkdir(parents=True, exist_ok=True)
        picture = out / f"{case.name}__{trainer}.png"
        figure.savefig(picture, dpi=DPI)
        print(picture)
    return 0
