"""Models with random weights, as nnU-Net's training would leave them: plans, ``dataset.json`` and checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_dinomed3d.trainers.registry import find_trainer

RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}

INTENSITIES = {"mean": 40.0, "std": 100.0, "percentile_00_5": -160.0, "percentile_99_5": 240.0}
"""What CT normalisation takes."""


def architecture(dimensions: int, features: Sequence[int]) -> dict[str, Any]:
    """nnU-Net's plain U-Net, in its plans' form, with two convolutions a stage."""
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [[1] * dimensions, *[[2] * dimensions] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(
    spacing: Sequence[float], patch: Sequence[int], features: Sequence[int] = (8, 16), channels: int = 1
) -> dict[str, Any]:
    """A configuration of plans.

    Args:
        spacing: in mm, of 3 axes, or 2 for slices.
        patch: of as many.
        features: of each stage of nnU-Net's U-Net.
        channels: of the images.
    """
    return {
        "data_identifier": "made_up",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": dict(RESAMPLING),
        "architecture": architecture(len(patch), features),
        "batch_dice": False,
    }


def plans(configurations: Mapping[str, dict[str, Any]], transpose: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Plans with these configurations, by name; ``transpose`` brings an image's axes into the preprocessed order."""
    return {
        "dataset_name": "Dataset902_MadeUp",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [list(transpose).index(axis) for axis in range(3)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): INTENSITIES for channel in range(4)},
        "configurations": dict(configurations),
    }


def labels(count: int) -> dict[str, int]:
    """So many labels of a ``dataset.json``, the background among them."""
    return {"background": 0, **{f"organ_{value}": value for value in range(1, count)}}


def write_model(
    folder: Path,
    made_plans: Mapping[str, Any],
    name: str,
    *,
    trainer: str = "nnUNetTrainer",
    folds: Sequence[int | str] = (0,),
    mirror: Sequence[int] | None = (0, 1, 2),
    **dataset_json: Any,
) -> Path:
    """Write a model's folder; it.

    Args:
        folder: to write.
        made_plans: of `plans`.
        name: of its configuration.
        trainer: builds the network.
        folds: each with weights of its own.
        mirror: axes that may be mirrored.
        dataset_json: its content, beside what every one has.
    """
    description = {"channel_names": {"0": "CT"}, "labels": labels(2), "numTraining": 1, "file_ending": ".nii.gz"}
    description |= dataset_json
    manager = PlansManager(dict(made_plans))
    chosen = manager.get_configuration(name)
    for fold in folds:
        torch.manual_seed(0 if fold == "all" else int(fold))
        builder: Any = find_trainer(trainer)
        network = builder.build_network_architecture(
            manager,
            chosen,
            determine_num_input_channels(manager, chosen, description),
            manager.get_label_manager(description).num_segmentation_heads,
            enable_deep_supervision=False,
        )
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": name},
            "inference_allowed_mirroring_axes": None if mirror is None else tuple(mirror),
        }
        (folder / f"fold_{fold}").mkdir(parents=True)
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(made_plans))
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
