"""nnU-Net's commands and configurations with our trainer: folds, validation, ensembles, shared models, the cascade."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from tests.test_features_helpers import (
    ALONE,
    BRIEF,
    DataSet,
    brief_trainers,
    load,
    losses,
    make_dataset,
    make_it_answer,
    nested_boxes,
    nnunet,
    predict,
    read_volume,
    train,
)

pytestmark = pytest.mark.end_to_end


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What nnU-Net's loaders draw, in this process, is the same in every run."""
    np.random.seed(0)
    torch.manual_seed(0)


STOCK = ("-tr", "nnUNetTrainerBriefStock")
SHAPE = (7, 20, 18)


@pytest.fixture(scope="module", autouse=True)
def trainers(nnunet_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trainers")
    with brief_trainers(folder):
        yield folder


@pytest.fixture(scope="module")
def data(trainers: Path) -> DataSet:
    """With a 3d_lowres of half the resolution and the cascade on it, in the plans as nnU-Net writes them."""
    rng = np.random.default_rng(0)
    lowres = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [3.0, 2.0, 2.0],
        "patch_size": [7, 10, 10],
        "next_stage": "3d_cascade_fullres",
    }
    return make_dataset(
        921,
        [nested_boxes(SHAPE, rng) for _ in range(5)],
        {"background": 0, "box": 1, "core": 2},
        configurations={
            "3d_lowres": lowres,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    )


@pytest.fixture(scope="module")
def folds(data: DataSet) -> DataSet:
    """Five folds of ours and two of stock nnU-Net, validated with probabilities."""
    for fold in range(5):
        train(data.number, "3d_fullres", fold, *BRIEF, "--npz")
    for fold in range(2):
        train(data.number, "3d_fullres", fold, *STOCK, "--npz")
    return data


def names(folder: Path, kind: str = ".nii.gz") -> list[str]:
    """Cases that have a file of this kind in a folder."""
    return sorted(file.name.removesuffix(kind) for file in folder.glob(f"*{kind}"))


# ---- folds ----


def test_fold_all_trains_on_and_validates_every_case(data: DataSet, tmp_path: Path) -> None:
    train(data.number, "3d_fullres", "all", *BRIEF)
    fold = data.model() / "fold_all"
    assert np.isfinite(losses(fold / "checkpoint_final.pth")).all()
    assert names(fold / "validation") == [f"case_{i}" for i in range(5)]
    predict(data.number, "3d_fullres", data.images, tmp_path, *BRIEF, "-f", "all")
    assert names(tmp_path) == [f"case_{i}" for i in range(5)]


def predictor(model: Path, folds: tuple[int, ...]) -> nnUNetPredictor:
    made = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(model), folds)
    return made


def test_five_folds_predict_at_once(folds: DataSet, tmp_path: Path) -> None:
    """One network is filled five times: what it kept of the fold before would falsify the ensemble."""
    volume = torch.randn(1, *SHAPE)
    single = [predictor(folds.model(), (f,)).predict_logits_from_preprocessed_data(volume) for f in range(5)]
    together = predictor(folds.model(), (0, 1, 2, 3, 4)).predict_logits_from_preprocessed_data(volume)
    assert not torch.allclose(single[0], single[1], atol=1e-3)
    torch.testing.assert_close(together, sum(single) / 5, rtol=1e-3, atol=1e-3)
    predict(folds.number, "3d_fullres", folds.images, tmp_path, *BRIEF)  # all five are the command's default
    assert names(tmp_path) == [f"case_{i}" for i in range(5)]


# ---- validation ----


def test_npz_are_probabilities_of_the_volume(folds: DataSet) -> None:
    """find_best_configuration and ensembling read them."""
    validation = folds.model() / "fold_0" / "validation"
    assert names(validation, ".npz") == names(validation)
    for case in names(validation):
        probabilities = np.load(validation / f"{case}.npz")["probabilities"]
        assert probabilities.shape == (3, *SHAPE)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
        assert (probabilities.argmax(0) == read_volume(validation / f"{case}.nii.gz")).all()


def test_val_and_val_best_validate_the_checkpoint_they_name(folds: DataSet, tmp_path: Path) -> None:
    """Of the final epoch and of the best one; both without training on."""
    fold = folds.model() / "fold_4"
    kept = {name: shutil.copy(fold / name, tmp_path) for name in ("checkpoint_final.pth", "checkpoint_best.pth")}
    make_it_answer(fold / "checkpoint_final.pth", (0, 5, 0))
    make_it_answer(fold / "checkpoint_best.pth", (0, 0, 5))
    written = {}
    for arguments in (("--val",), ("--val", "--val_best")):
        train(folds.number, "3d_fullres", 4, *BRIEF, *arguments)
        (case,) = names(fold / "validation")
        written[arguments[-1]] = np.unique(read_volume(fold / "validation" / f"{case}.nii.gz")).tolist()
    assert written == {"--val": [1], "--val_best": [2]}
    for name, copy in kept.items():
        shutil.copy(copy, fold / name)


# ---- beside stock nnU-Net ----


def test_best_configuration_is_found_among_ours_stock_and_both(folds: DataSet) -> None:
    nnunet(
        *("nnUNetv2_find_best_configuration", folds.number, "-c", "3d_fullres", "-f", 0, 1, "-np", 1),
        *("-tr", BRIEF[1], STOCK[1]),
    )
    results = folds.model().parent
    scores = json.loads((results / "inference_information.json").read_text())["all_results"]
    ours, stock = folds.model().name, folds.model(STOCK[1]).name
    assert set(scores) == {ours, stock, f"ensemble___{ours}___{stock}___0_1"}
    for model in (ours, stock):
        merged = results / model / "crossval_results_folds_0_1"
        assert len(names(merged)) == 2
        assert scores[model] == json.loads((merged / "summary.json").read_text())["foreground_mean"]["Dice"]
    assert "nnUNetv2_predict" in (results / "inference_instructions.txt").read_text()


def test_ours_and_stock_are_ensembled(folds: DataSet, tmp_path: Path) -> None:
    for trainer in (BRIEF, STOCK):
        predict(folds.number, "3d_fullres", folds.images, tmp_path / trainer[1], *trainer, "-f", 0)
    members = [tmp_path / trainer[1] for trainer in (BRIEF, STOCK)]
    nnunet("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path / "both", "-np", 1)
    for case in names(members[0]):
        mean = sum(np.load(member / f"{case}.npz")["probabilities"].astype(np.float32) for member in members) / 2
        assert (read_volume(tmp_path / "both" / f"{case}.nii.gz") == mean.argmax(0)).all()


# ---- other plans ----


def test_residual_encoder_plans(data: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nnU-Net recommends them; their patch and batch must be taken, and their U-Net not be built."""
    with monkeypatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")
        nnunet("nnUNetv2_plan_experiment", "-d", data.number, "-pl", "nnUNetPlannerResEncM")
    plans = "nnUNetResEncUNetMPlans"
    file = data.preprocessed / f"{plans}.json"
    content = json.loads(file.read_text())
    configuration = content["configurations"]["3d_fullres"]
    assert "ResidualEncoderUNet" in configuration["architecture"]["network_class_name"]
    configuration |= {"patch_size": [5, 16, 12], "batch_size": 3}
    file.write_text(json.dumps(content))
    train(data.number, "3d_fullres", 0, *BRIEF, "-p", plans)
    fold = data.model(plans=plans) / "fold_0"
    assert np.isfinite(losses(fold / "checkpoint_final.pth")).all()
    assert "encoder.ice.conv.weight" in load(fold / "checkpoint_final.pth")["network_weights"]
    assert "3 patches a batch" in next(fold.glob("training_log*")).read_text()
    assert names(fold / "validation")
    predict(data.number, "3d_fullres", data.images, tmp_path, *BRIEF, "-p", plans, "-f", 0)
    assert names(tmp_path) == [f"case_{i}" for i in range(5)]


def test_2d_stops_at_once(data: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the reason, and with nothing written that looks like a training."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    with pytest.raises(ValueError, match=r"'2d' has the patch size.*it is 2D.*Train 3d_fullres"):
        train(data.number, "2d", 0, *BRIEF)
    assert not list(tmp_path.iterdir())


# ---- models that travel ----


def test_pretrained_weights_of_a_model_with_other_classes(folds: DataSet) -> None:
    """Everything but the heads comes from there, through both stages; no DINOv3 weights are asked for."""
    rng = np.random.default_rng(1)
    cases = [(image, labels > 0) for image, labels in (nested_boxes(SHAPE, rng) for _ in range(5))]
    target = make_dataset(922, cases, {"background": 0, "box": 1})
    source = folds.model() / "fold_0" / "checkpoint_final.pth"
    trainer = "nnUNetTrainerBriefStill"
    train(target.number, "3d_fullres", 0, "-tr", trainer, "-pretrained_weights", source)
    fold = target.model(trainer) / "fold_0"
    before, after = (load(file)["network_weights"] for file in (source, fold / "checkpoint_final.pth"))
    other = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert other == {f"{head}.seg_layers.{kind}" for head in ("decoder", "proxy_head") for kind in ("weight", "bias")}
    assert [len(weights["decoder.seg_layers.bias"]) for weights in (before, after)] == [3, 2]
    assert "random weights" not in next(fold.glob("training_log*")).read_text()


def test_a_model_predicts_elsewhere_without_weights(
    data: DataSet, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A colleague installs the zip file on a machine that has no data, no DINOv3 weights and no internet."""
    trainer = ("-tr", "nnUNetTrainerBriefPretrained")
    with monkeypatch.context() as patch:
        patch.setenv("DINOMED3D_WEIGHTS", "random")
        train(data.number, "3d_fullres", 0, *trainer)
    predict(data.number, "3d_fullres", data.images, tmp_path / "here", *trainer, "-f", 0)
    nnunet(
        "nnUNetv2_export_model_to_zip",
        "-d",
        data.number,
        "-o",
        tmp_path / "model.zip",
        "-c",
        "3d_fullres",
        "-f",
        0,
        *trainer,
    )

    elsewhere = {
        **{name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "HF_HOME")},
        "DINOMED3D_WEIGHTS": "/nowhere",
        "HF_HUB_OFFLINE": "1",
    }
    with monkeypatch.context() as patch:
        for name, value in elsewhere.items():
            patch.setenv(name, value)
        (tmp_path / "nnUNet_results").mkdir()
        nnunet("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    images = ("-i", data.images, "-o", tmp_path / "there", "--save_probabilities")
    run("nnUNetv2_predict", "-d", data.number, "-c", "3d_fullres", *images, *ALONE, *trainer, "-f", "0", **elsewhere)
    assert names(tmp_path / "there") == [f"case_{i}" for i in range(5)]
    for case in names(tmp_path / "there"):
        here, there = (np.load(tmp_path / place / f"{case}.npz")["probabilities"] for place in ("here", "there"))
        np.testing.assert_allclose(there, here, atol=1e-3)

    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere")
    with pytest.raises(Exception, match="/nowhere"):  # that trainer does need weights to be trained
        train(data.number, "3d_fullres", 1, *trainer)


# ---- cascade ----


@pytest.fixture(scope="module")
def cascade(data: DataSet) -> DataSet:
    """3d_lowres on all cases, which are then predicted for the next stage; on that 3d_cascade_fullres."""
    train(data.number, "3d_lowres", "all", *BRIEF)
    train(data.number, "3d_cascade_fullres", 0, *BRIEF)
    return data


def next_stage(data: DataSet) -> Path:
    return data.model(configuration="3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"


def fill(data: DataSet, label: int) -> None:
    """Let 3d_lowres have predicted this label everywhere."""
    for file in next_stage(data).glob("*.b2nd"):
        file.unlink()
    for case in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nnUNetDatasetBlosc2.save_seg(np.full(SHAPE, label, np.int16), str(next_stage(data) / f"case_{case}"))


def test_the_cascade_trains_both_stages(cascade: DataSet) -> None:
    for configuration, fold, channels in (("3d_lowres", "fold_all", 1), ("3d_cascade_fullres", "fold_0", 3)):
        folder = cascade.model(configuration=configuration) / fold
        assert np.isfinite(losses(folder / "checkpoint_final.pth")).all()
        weights = load(folder / "checkpoint_final.pth")["network_weights"]
        assert weights["encoder.ice.conv.weight"].shape[1] == weights["detail.scale_1.0.weight"].shape[1] == channels
        assert names(folder / "validation")


@pytest.mark.parametrize("stage", [1, 2])
def test_what_lowres_predicted_is_input_of_both_stages(cascade: DataSet, stage: Stage, tmp_path: Path) -> None:
    """One channel a class, 1 where it was predicted; without it the second network of the cascade is the first."""
    kept = shutil.copytree(next_stage(cascade), tmp_path / "kept")
    trainer = cascade.trainer("3d_cascade_fullres")
    trainer.begin_stage(stage)
    name = "encoder.ice.conv.weight" if stage == 1 else "detail.scale_1.0.weight"
    parameter = trainer.module.get_parameter(name)
    try:
        for label in (1, 2):
            fill(cascade, label)
            batch = next(trainer.get_dataloaders()[1])
            data = batch["data"]
            assert data.shape[1:3] == (3, 3 if stage == 1 else SHAPE[0])
            assert data[:, label].mean() > 0.3
            assert set(data[:, 1:].unique().tolist()) == {0, 1}
            assert not data[:, 3 - label].any()
            trainer.optimizer.zero_grad()
            trainer.loss(trainer.module(data), batch["target"]).backward()
            assert parameter.grad is not None
            assert parameter.grad[:, label].any()
            assert not parameter.grad[:, 3 - label].any()
    finally:
        shutil.rmtree(next_stage(cascade))
        shutil.copytree(kept, next_stage(cascade))


def test_the_cascade_predicts_from_the_lowres_prediction(cascade: DataSet, tmp_path: Path) -> None:
    predict(cascade.number, "3d_lowres", cascade.images, tmp_path / "lowres", *BRIEF, "-f", "all")
    shutil.copytree(cascade.raw / "labelsTr", tmp_path / "other")
    found = {}
    for previous in ("lowres", "other"):
        arguments = ("-f", 0, "-prev_stage_predictions", tmp_path / previous)
        predict(cascade.number, "3d_cascade_fullres", cascade.images, tmp_path / f"{previous}_out", *BRIEF, *arguments)
        assert names(tmp_path / f"{previous}_out") == [f"case_{i}" for i in range(5)]
        found[previous] = np.load(tmp_path / f"{previous}_out" / "case_0.npz")["probabilities"]
    assert (
        read_volume(tmp_path / "lowres" / "case_0.nii.gz") != read_volume(tmp_path / "other" / "case_0.nii.gz")
    ).any()
    assert np.abs(found["lowres"] - found["other"]).max() > 1e-4
