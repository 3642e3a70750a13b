"""The figure of a case as a trained model sees it: image, reference, features, gate and prediction."""

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.look.case import Case, choose_slices
from nnunetv2_dinomed3d.look.features import Windows, encoder_features, feature_colours, fusion_gate
from nnunetv2_dinomed3d.look.figure import Column, draw, label_names
from nnunetv2_dinomed3d.look.model import LoadedModel, before_stage1
from nnunetv2_dinomed3d.network_architecture import DINOMed3D


def case_figure(model: LoadedModel, case: Case, wanted: list[int] | None) -> Figure:
    """Predict the case, look into the network on some slices, and draw the columns that the model has.

    Args:
        model: of any trainer of DINO-Med3D, in either stage.
        case: preprocessed for the model.
        wanted: numbers of slices; None lets `choose_slices` choose.

    Raises:
        ValueError: there is no such slice, or the weights before stage 1 cannot be had.
    """
    network, configuration = model.network, model.predictor.configuration_manager
    if wanted:
        choose_slices(wanted, case.image[0].numpy())
    prediction = _predict(model, case)
    slices = choose_slices(wanted, prediction if case.reference is None else case.reference)
    windows = Windows(case.image.to(model.predictor.device), configuration.patch_size)

    columns = [Column("image", list(case.image[0].numpy()[slices]), "grey")]
    if case.reference is not None:
        columns.append(Column("reference", list(case.reference[slices]), "labels"))
    if 1 in model.trainer.stages and network.options.train_encoder:
        start, note = before_stage1(model)
        if start is not None:
            columns.append(_features("features\nbefore stage 1", start, windows, slices))
        lora = network.stage == 1 and network.options.stage1_lora  # later it is in the weights
        columns.append(_features("features\nafter stage 1", network, windows, slices, lora=lora))
    else:
        note = "The encoder was not trained in a stage 1: apart from LoRA, it is the one that training started with."
        columns.append(_features("features\nof the frozen encoder", network, windows, slices))
    title = f"{case.name}: {model.title}"
    if network.stage == 2:
        columns.append(_features("features after\nstage 2 (LoRA)", network, windows, slices, lora=True))
    if network.stage == 2 and network.options.detail_stream:
        gate = [picture.numpy() for picture in fusion_gate(network, windows, slices)]
        low, high = float(np.min(gate)), float(np.max(gate))
        columns.append(Column(f"gate, mean of channels\n{low:.2f} (dark) to {high:.2f}", gate, "gate"))
    else:
        title += f" (no fusion: {'stage 1' if network.stage == 1 else 'no detail stream'})"
    columns.append(Column("prediction", list(prediction[slices]), "labels"))

    _, height, width = configuration.patch_size
    note = (
        "Features: the last map of the slab encoder. Red, green and blue are its first three principal components, in "
        f"each column others. The network sees windows of {height} x {width} voxels, here side by side. {note}"
    )
    dy, dx = configuration.spacing[1:]
    names = label_names(model.predictor.dataset_json["labels"])
    return draw(title, note, slices, columns, names=names, aspect=dy / dx)


def _predict(model: LoadedModel, case: Case) -> np.ndarray:
    """nnU-Net's prediction of the case, labels ``(d, h, w)``."""
    logits = model.predictor.predict_logits_from_preprocessed_data(case.image)
    return np.asarray(model.predictor.label_manager.convert_logits_to_segmentation(logits))


def _features(title: str, network: DINOMed3D, windows: Windows, slices: list[int], *, lora: bool = False) -> Column:
    found = encoder_features(network, windows, slices, lora)
    colours = feature_colours(found, windows, network.encoder.stride // network.scale)
    return Column(title, [picture.numpy() for picture in colours], "colours")
