"""The model that is exported is read whole or refused in one line, and described as its plans have it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_dinomed3d.exporting.description import describe
from nnunetv2_dinomed3d.exporting.model import TrainedModel, load_model
from nnunetv2_dinomed3d.weights.files import sha256
from tests.export_models import INTENSITIES, STOCK, dataset_json, plans, resampling, write_model

NANO = "nnUNetTrainerDINOMed3D_nano"
CHECKPOINT = Path("fold_0", "checkpoint_final.pth")


def loaded(folder: Path) -> TrainedModel:
    return load_model(folder / CHECKPOINT)


def change_checkpoint(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(folder / CHECKPOINT)
    change(content)
    torch.save(content, folder / CHECKPOINT)


def test_description(tmp_path: Path) -> None:
    """Everything that nnU-Net does before and after the network."""
    channels = 2
    folder = write_model(tmp_path, STOCK, plans(channels=channels), dataset_json(channels))
    found = describe(loaded(folder), "onnx", half=False)
    assert json.loads(json.dumps(found)) == found
    assert found["input"] == {
        "name": "image",
        "axes": ["batch", "channel", "d", "h", "w"],
        "shape": [1, channels, 4, 16, 16],
        "dtype": "float32",
        "channels": [
            {
                "name": f"CT{i}",
                "normalization": "CTNormalization",
                "use_mask_for_norm": False,
                "foreground_intensity_properties": INTENSITIES,
            }
            for i in range(channels)
        ],
        "previous_stage": None,
    }
    assert found["output"] == {
        "name": "logits",
        "axes": ["batch", "channel", "d", "h", "w"],
        "shape": [1, 3, 4, 16, 16],
        "dtype": "float32",
        "values": [0, 1, 2],
        "activation": "softmax",
        "regions_class_order": None,
    }
    assert found["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert (found["patch_size"], found["spacing"]) == ([4, 16, 16], [3.0, 1.0, 0.5])
    assert found["transpose_forward"] == found["transpose_backward"] == [1, 0, 2]
    assert found["mirror_axes"] == [0, 1, 2]
    assert found["resampling"]["data"] == {"function": "resample_data_or_seg_to_shape", "arguments": resampling(3)}
    assert found["resampling"]["seg"]["arguments"]["is_seg"]
    assert found["resampling"]["probabilities"]["arguments"] == resampling(1)
    assert found["model"] == {
        "dataset": "Dataset901_Test",
        "trainer": STOCK,
        "plans": "nnUNetPlans",
        "configuration": "3d_fullres",
        "fold": "0",
        "checkpoint": CHECKPOINT.name,
        "sha256": sha256(folder / CHECKPOINT),
    }
    assert {"nnunetv2_dinomed3d", "nnunetv2", "torch"} <= found["versions"].keys()


def test_description_of_regions(tmp_path: Path) -> None:
    """The channels of the logits are the regions, in the file's order; the order of painting is another list."""
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    dataset = dataset_json(labels=labels, regions_class_order=[1, 2])
    found = describe(loaded(write_model(tmp_path, dataset=dataset)), "onnx", half=True)
    assert found["input"]["dtype"] == "float16"
    output = found["output"]
    assert (output["dtype"], output["shape"][1], output["activation"]) == ("float32", 2, "sigmoid")
    assert (output["values"], output["regions_class_order"]) == ([[1, 2], 2], [1, 2])
    assert found["labels"] == labels


def test_description_of_a_cascade(tmp_path: Path) -> None:
    """The previous stage's labels follow the image, one-hot."""
    folder = write_model(tmp_path, model_plans=plans(previous_stage="3d_lowres"))
    found = describe(loaded(folder), "torch.export", half=False)
    assert found["input"]["shape"][1] == 3
    assert len(found["input"]["channels"]) == 1
    assert found["input"]["previous_stage"] == {"configuration": "3d_lowres", "one_hot_values": [1, 2]}
    assert found["format"] == "torch.export"


def test_description_in_2d(tmp_path: Path) -> None:
    found = describe(loaded(write_model(tmp_path, model_plans=plans((16, 16)))), "onnx", half=False)
    assert found["input"]["axes"] == ["batch", "channel", "h", "w"]
    assert (found["mirror_axes"], found["spacing"]) == ([0, 1], [1.0, 0.5])


def test_weights_of_stage_1(tmp_path: Path) -> None:
    folder = write_model(tmp_path, NANO, plans((4, 32, 32)), stage=1)
    with pytest.raises(ValueError, match=r"checkpoint_final\.pth is of stage 1, and only the network of stage 2 is"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plans.json", "{", r"plans\.json is no valid JSON"),
        ("plans.json", "{}", r"plans\.json is no plans file of nnU-Net with the configuration '3d_fullres'"),
        ("plans.json", json.dumps(plans((4, 16, 0))), r"has the patch size \[4, 16, 0\]"),
        ("dataset.json", "{}", r"dataset\.json.*labels"),
        ("dataset.json", json.dumps(dataset_json(2)), r"does not fit its trainer, plans\.json and dataset\.json"),
    ],
)
def test_files_that_do_not_fit(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        loaded(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("init_args"), "is not a checkpoint of nnU-Net"),
        (lambda content: content.update(trainer_name="nnUNetTrainerOfNobody"), "There is no trainer 'nnUNetTrainerOf"),
        (lambda content: content.update(inference_allowed_mirroring_axes=(3,)), r"mirroring axes \(3,\)"),
        (lambda content: content["network_weights"].popitem(), "does not fit its trainer"),
    ],
)
def test_checkpoint_that_does_not_fit(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    change_checkpoint(folder, change)
    with pytest.raises(ValueError, match=message):
        loaded(folder)


def test_without_mirroring(tmp_path: Path) -> None:
    """As _released predicts."""
    folder = write_model(tmp_path)
    change_checkpoint(folder, lambda content: content.update(inference_allowed_mirroring_axes=None))
    assert loaded(folder).mirror_axes == ()
