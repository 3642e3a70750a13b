"""The demo's parts; CI runs the demo itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.demo import run as demo
from nnunetv2_dinomed3d.demo.figure import draw
from nnunetv2_dinomed3d.demo.phantom import LABELS, SHAPE, make_case, make_dataset


def test_data_set_is_in_nnunets_raw_format(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset900_Demo"
    make_dataset(folder, training_cases=2, test_cases=1)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dataset.json",
        "imagesTr/train_00_0000.nii.gz",
        "imagesTr/train_01_0000.nii.gz",
        "imagesTs/test_00_0000.nii.gz",
        "labelsTr/train_00.nii.gz",
        "labelsTr/train_01.nii.gz",
        "labelsTs/test_00.nii.gz",
    ]
    assert json.loads((folder / "dataset.json").read_text())["labels"] == LABELS
    image = sitk.ReadImage(str(folder / "imagesTr/train_00_0000.nii.gz"))
    assert image.GetSpacing() == (1.0, 1.0, 3.0)
    assert image.GetSize() == SHAPE[::-1]


def test_every_case_has_both_structures_and_look_alikes() -> None:
    """A nodule that brightness alone could tell would not need a network."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        image, labels = make_case(rng)
        assert set(np.unique(labels)) == set(LABELS.values())
        assert (labels == LABELS["nodule"]).sum() > 60
        bright = image > image[labels == LABELS["nodule"]].mean() - 20
        assert (bright & (labels == 0)).sum() > 20


def test_same_seed_same_data() -> None:
    cases = [make_case(np.random.default_rng(3)) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*cases, strict=True))


@pytest.mark.parametrize(("dice", "code"), [(0.85, 0), (0.79, 1)])
def test_exit_code_says_whether_the_network_learned(
    dice: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def pretend(command: list[str], environment: dict[str, str]) -> None:
        commands.append(command[0])
        out = tmp_path / "out"
        if command[0] == "nnUNetv2_predict":
            (out / "predictions").mkdir()
            for truth in (out / "nnUNet_raw" / demo.DATASET / "labelsTs").iterdir():
                (out / "predictions" / truth.name).write_bytes(truth.read_bytes())
        if command[0] == "nnUNetv2_evaluate_simple":
            metrics = {"mean": {"1": {"Dice": dice}, "2": {"Dice": dice}}, "foreground_mean": {"Dice": dice}}
            (out / "predictions" / "summary.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(demo, "_run", pretend)
    assert demo.run_demo(tmp_path / "out") == code
    assert commands == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "nnUNetv2_evaluate_simple",
    ]
    output = capsys.readouterr().out
    assert f"mean     {dice:.3f}" in output
    assert str(tmp_path / "out") in output
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000


def test_picture_shows_every_case(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_dataset(folder, training_cases=1, test_cases=2)
    draw(folder / "imagesTs", folder / "labelsTs", folder / "labelsTs", LABELS, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
