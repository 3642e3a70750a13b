"""Model folders as nnU-Net leaves them, with random weights and made-up plans, for the tests of exporting."""

import json
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks.random_models import architecture
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.trainers.registry import find_trainer
from tests.networks import with_trained_lora

STOCK = "nnUNetTrainer"
INTENSITIES = {"mean": 12.5, "std": 3.0, "percentile_00_5": -7.0, "percentile_99_5": 40.0}


def resampling(order: int) -> dict[str, Any]:
    return {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}


def plans(patch_size: tuple[int, ...] = (4, 16, 16), channels: int = 1, **changes: Any) -> dict[str, Any]:
    """Plans with one configuration, 3d_fullres, of a U-Net of two stages; `changes` are the configuration's."""
    dimensions = len(patch_size)
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "spacing": [3.0, 1.0, 0.5][-dimensions:],
        "normalization_schemes": ["CTNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling(3),
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling(1), "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling(1),
        "architecture": architecture(dimensions, (4, 8)),
        **changes,
    }
    return {
        "dataset_name": "Dataset901_Test",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "foreground_intensity_properties_per_channel": {str(i): INTENSITIES for i in range(channels)},
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
    }


def dataset_json(channels: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "channel_names": {str(i): f"CT{i}" for i in range(channels)},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **changes,
    }


def write_model(
    folder: Path,
    trainer: str = STOCK,
    model_plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    stage: int = 2,
) -> Path:
    """Write a model folder that has fold 0 with a final checkpoint; LoRA in it is as after a training."""
    model_plans, dataset = model_plans or plans(), dataset or dataset_json()
    manager = PlansManager(json.loads(json.dumps(model_plans)))
    configuration = manager.get_configuration("3d_fullres")
    torch.manual_seed(0)
    network = find_trainer(trainer).build_network_architecture(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, dataset),
        manager.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    if isinstance(network, DINOMed3D):
        with_trained_lora(network).set_stage(1 if stage == 1 else 2)
    model = folder / f"{trainer}__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(model_plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": trainer,
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "inference_allowed_mirroring_axes": tuple(range(len(configuration.patch_size))),
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    return model
