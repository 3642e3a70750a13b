"""The figure of a case: the columns of every kind of trainer, and nnU-Net's own prediction in it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from safetensors.torch import save_file

from nnunetv2_dinomed3d.look.case_figure import case_figure
from nnunetv2_dinomed3d.look.model import load_model
from nnunetv2_dinomed3d.network_architecture import VARIANTS, build_dinomed3d
from nnunetv2_dinomed3d.pictures import overlay, value_colours
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.ablations import (
    nnUNetTrainerDINOMed3D_frozen,
    nnUNetTrainerDINOMed3D_noDetail,
    nnUNetTrainerDINOMed3D_noStage1,
)
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.command_line import NANO
from tests.look_models import CHECKPOINT, case_of, write_model

pytestmark = pytest.mark.own


@pytest.fixture
def model_folder(make_trainer: Callable[..., nnUNetTrainer]) -> Callable[..., Path]:
    """See `write_model`."""
    return lambda trainer, stage=2: write_model(make_trainer, trainer, stage)


@pytest.fixture
def nano_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of weights of the nano size, as if DINOv3 had that size."""
    monkeypatch.setitem(VARIANTS, "nano", replace(VARIANTS["nano"], weights_name="vit_small_patch16_dinov3"))
    shapes = build_dinomed3d("nano", 1, 2, (4, 32, 32)).pretrained_shapes()
    torch.manual_seed(1)
    file = tmp_path / "model.safetensors"
    save_file({name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}, file)
    return file


def picture(folder: Path, wanted: list[int] | None = None) -> Figure:
    """The figure of a case of the small data set."""
    model = load_model(folder / CHECKPOINT)
    return case_figure(model, case_of(model), wanted)


def titles(figure: Figure) -> list[str]:
    """Of the columns, in order, on one line."""
    return [axis.get_title().replace("\n", " ").split(" channels")[0] for axis in figure.axes if axis.get_title()]


def drawn(figure: Figure, title: str) -> np.ndarray:
    """What lies on top in the first row of a column."""
    axis = next(axis for axis in figure.axes if axis.get_title().replace("\n", " ").startswith(title))
    return np.asarray(axis.get_images()[-1].get_array())


# ---- the command ----


def test_before_and_after_stage_1(
    model_folder: Callable[..., Path], nano_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(trainer_class(NANO))
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(nano_weights))
    figure = picture(folder)
    assert titles(figure) == [
        "image",
        "reference",
        "features before stage 1",
        "features after stage 1",
        "features after stage 2 (LoRA)",
        "gate, mean of",
        "prediction",
    ]
    features = [drawn(figure, f"features {when}") for when in ("before", "after stage 1", "after stage 2")]
    assert all(picture.shape == (*drawn(figure, "image").shape, 3) for picture in features)
    assert not any(np.allclose(a, b) for a, b in pairwise(features)), "each is its own"
    assert "model.safetensors" in figure.get_suptitle()
    assert len([axis for axis in figure.axes if axis.get_ylabel().startswith("slice")]) == 3


def test_without_weights_there_is_no_before(
    model_folder: Callable[..., Path], nano_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(trainer_class(NANO))
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "random")
    figure = picture(folder)
    assert "features before stage 1" not in titles(figure)
    assert "random weights (DINOMED3D_WEIGHTS=random)" in figure.get_suptitle().replace("\n", " ")
    monkeypatch.setitem(VARIANTS, "nano", replace(VARIANTS["nano"], weights_name=None))
    figure = picture(folder)
    assert "features before stage 1" not in titles(figure)
    assert "as DINOv3 has none of this size" in figure.get_suptitle().replace("\n", " ")


@pytest.mark.parametrize(
    ("part", "stage", "features", "why"),
    [
        (nnUNetTrainerDINOMed3D_noDetail, 2, ["after stage 1", "after stage 2 (LoRA)"], "no fusion: no detail stream"),
        (nnUNetTrainerDINOMed3D_noStage1, 2, ["of the frozen encoder", "after stage 2 (LoRA)"], None),
        (nnUNetTrainerDINOMed3D_frozen, 1, ["of the frozen encoder"], "no fusion: stage 1"),
    ],
)
def test_columns_of_the_ablations(
    part: type, stage: int, features: list[str], why: str | None, model_folder: Callable[..., Path]
) -> None:
    name = f"{NANO}_{part.__name__.rpartition('_')[2]}"
    figure = picture(model_folder(trainer_class(name), stage))
    gate = [] if why else ["gate, mean of"]
    assert titles(figure) == ["image", "reference", *(f"features {which}" for which in features), *gate, "prediction"]
    assert (why or "") in figure.get_suptitle()


def test_prediction_is_nnunets(model_folder: Callable[..., Path]) -> None:
    folder = model_folder(trainer_class(NANO))
    figure = picture(folder, [4])
    model = load_model(folder / CHECKPOINT)
    case, predictor = case_of(model), model.predictor
    logits = predictor.predict_logits_from_preprocessed_data(case.image)
    expected = np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits))[4]
    image = case.image[0, 4].numpy()
    np.testing.assert_array_equal(drawn(figure, "image"), image)
    np.testing.assert_allclose(drawn(figure, "prediction"), overlay(image, expected, value_colours({1})))
    assert (expected > 0).any()
