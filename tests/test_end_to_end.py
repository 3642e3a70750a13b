"""nnU-Net's real commands, as a user types them, on generated and on real volumes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import preprocess
from tests.prediction_cases import assert_equal_but_ties, read

pytestmark = pytest.mark.end_to_end

Run = Callable[..., str]
TRAIN = ("nnUNetv2_train", "-device", "cpu")


def prepare(run: Run, shared: Path, environment: dict[str, str], dataset: str) -> Path:
    """Copy a real data set and let nnU-Net preprocess it; its raw folder."""
    raw = Path(environment["nnUNet_raw"]) / dataset
    if not raw.exists():
        shutil.copytree(shared / "data" / dataset, raw)
        preprocess(run, dataset[7:10], "3d_fullres")
    return raw


def results(environment: dict[str, str], dataset: str, trainer: str, fold: str) -> Path:
    return Path(environment["nnUNet_results"]) / dataset / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}"


@pytest.mark.usefixtures("preprocessed")
def test_train_resume_validate_and_predict(run: Run, nnunet_environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ("901", "3d_fullres", "1", "-tr", "nnUNetTrainerQuick")
    run(*TRAIN, *arguments, nnUNet_n_proc_DA="2")  # with worker processes, as users have it
    folder = results(nnunet_environment, "Dataset901_Test", "nnUNetTrainerQuick", "1")
    assert (folder / "checkpoint_final.pth").is_file()
    assert not (folder / "checkpoint_latest.pth").exists()
    assert (folder / "progress.png").is_file()
    assert (folder / "validation" / "summary.json").is_file()

    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    assert "Epoch 0" not in run(*TRAIN, *arguments, "--c")

    images = Path(nnunet_environment["nnUNet_raw"]) / "Dataset901_Test" / "imagesTr"
    predict: tuple[str | Path, ...] = (
        "nnUNetv2_predict",
        "-i",
        images,
        "-d",
        "901",
        "-c",
        "3d_fullres",
        "-f",
        "1",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
    )
    predict = (*predict, "-tr", "nnUNetTrainerQuick")
    run(*predict, "-o", tmp_path / "final", DINOMED3D_WEIGHTS="/nowhere")
    assert len(list((tmp_path / "final").glob("*.nii.gz"))) == 5
    # a checkpoint of stage 1 is predicted with as what it is
    run(*predict, "-o", tmp_path / "stage1", "-chk", "checkpoint_best_stage1.pth")
    assert len(list((tmp_path / "stage1").glob("*.nii.gz"))) == 5


@pytest.mark.long
@pytest.mark.usefixtures("preprocessed")
def test_base_trains_from_random_weights_if_asked_to(run: Run, nnunet_environment: dict[str, str]) -> None:
    output = run(*TRAIN, "901", "3d_fullres", "2", "-tr", "nnUNetTrainerQuickBase", DINOMED3D_WEIGHTS="random")
    assert "training starts from random weights, as asked for" in output
    assert "Mean Validation Dice" in output


@pytest.mark.usefixtures("preprocessed")
def test_two_dimensions_are_refused(run: Run) -> None:
    with pytest.raises(pytest.fail.Exception, match="'2d' has the patch size"):
        run(*TRAIN, "901", "2d", "0", "-tr", "nnUNetTrainerDINOMed3D_nano")


@pytest.mark.long
def test_a_thick_sliced_brain_trains(run: Run, shared: Path, nnunet_environment: dict[str, str]) -> None:
    """256 x 256 in plane, 25 slices of 6.5 mm; two cases, so fold all."""
    dataset = "Dataset005_BrainTumour2"
    prepare(run, shared, nnunet_environment, dataset)
    run(*TRAIN, "5", "3d_fullres", "all", "-tr", "nnUNetTrainerQuick", OMP_NUM_THREADS="2")
    validation = results(nnunet_environment, dataset, "nnUNetTrainerQuick", "all") / "validation"
    assert len(list(validation.glob("*.nii.gz"))) == 2


@pytest.mark.long
def test_nano_learns_the_hippocampus(
    run: Run, shared: Path, nnunet_environment: dict[str, str], tmp_path: Path
) -> None:
    """Mean foreground Dice of at least 0.75 on the 10 test cases; training takes 15 minutes at most on two cores.

    Plans are nnU-Net's own: neither 56 nor 40 is a multiple of 16.

    `dinomed3d predict` differs from nnUNetv2_predict in fewer than 1 of 100,000 voxels, all of them ties.
    """
    raw = prepare(run, shared, nnunet_environment, "Dataset004_Hippocampus")
    arguments = ("-tr", "nnUNetTrainerDINOMed3D_nano", "-device", "cpu")
    run("nnUNetv2_train", "4", "3d_fullres", "0", *arguments, nnUNet_n_proc_DA="2", OMP_NUM_THREADS="2")
    predict = ("-i", raw / "imagesTs", "-d", "4", "-c", "3d_fullres", "-f", "0", *arguments)
    nnunets, ours = tmp_path / "nnunet", tmp_path / "ours"
    run("nnUNetv2_predict", *predict, "-o", nnunets, "--save_probabilities")
    run("dinomed3d", "predict", *predict, "-o", ours)
    run("nnUNetv2_evaluate_simple", raw / "labelsTs", nnunets, "-l", "1", "2", "-o", tmp_path / "summary.json")
    dice = json.loads((tmp_path / "summary.json").read_text())["foreground_mean"]["Dice"]
    assert_equal_but_ties(nnunets, ours, at_most=1e-4)
    different = [read(file) != read(ours / file.name) for file in sorted(nnunets.glob("*.nii.gz"))]
    count, voxels = sum(int(case.sum()) for case in different), sum(case.size for case in different)
    print(f"mean foreground Dice on the test cases: {dice:.3f}; {count} of {voxels} voxels differ")  # pytest -rP
    fold = results(nnunet_environment, "Dataset004_Hippocampus", "nnUNetTrainerDINOMed3D_nano", "0")
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 8
    assert len(different) == 10
    assert count < voxels / 100_000
    assert dice >= 0.75
