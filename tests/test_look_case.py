"""The case to look at: preprocessed or raw, its reference, its slices; damaged files are named, none is run."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.look.case import Case, choose_slices, load_case
from nnunetv2_dinomed3d.look.model import load_model
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.command_line import NANO
from tests.conftest import DATASET
from tests.look_models import CHECKPOINT, case_of, write_model
from tests.made_up_weights import Malicious

pytestmark = pytest.mark.own


def write_volume(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def load_raw(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str | None]:
    """Read a raw image of two channels without a model; the reference's path stands in the segmentation."""
    seen: list[str | None] = []

    class Preprocessor:
        def __init__(self, verbose: bool) -> None: ...

        def run_case(self, images: list[str], labels: str | None, *rest: object) -> tuple:
            seen.append(labels)
            return np.zeros((2, 4, 9, 9), np.float32), np.zeros((1, 4, 9, 9)), {}

    monkeypatch.setattr("nnunetv2_dinomed3d.look.case.determine_num_input_channels", lambda *rest: 2)

    def load(file: str) -> str | None:
        load_case(file, DATASET, None, SimpleNamespace(preprocessor_class=Preprocessor), {"file_ending": ".nii.gz"})
        return seen[-1]

    return load


def test_reference_of_a_raw_image(
    load_raw: Callable[[str], str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in labelsTr beside imagesTr. A file of its name elsewhere is an image or a prediction."""
    image, labels = np.zeros((4, 9, 9), np.float32), np.zeros((4, 9, 9), np.uint8)
    for folder in ("imagesTr", "plain", "my_images"):
        for channel in ("0000", "0001"):
            write_volume(tmp_path / folder / f"case_{channel}.nii.gz", image)
    for folder in ("labelsTr", "plain", "my_labels", "my_images"):
        write_volume(tmp_path / folder / "case.nii.gz", labels)
    assert load_raw(str(tmp_path / "imagesTr" / "case_0000.nii.gz")) == str(tmp_path / "labelsTr" / "case.nii.gz")
    for folder in ("plain", "my_images"):
        monkeypatch.chdir(tmp_path / folder)
        for name in ("case_0000.nii.gz", "./case_0000.nii.gz", str(tmp_path / folder / "case_0000.nii.gz")):
            assert load_raw(name) is None, name
    monkeypatch.chdir(tmp_path / "imagesTr")
    assert load_raw("case_0000.nii.gz") == str(tmp_path / "labelsTr" / "case.nii.gz")


def test_raw_images_that_are_none(load_raw: Callable[[str], str | None], tmp_path: Path) -> None:
    """Damaged ones, channels of two sizes, a pipe, labels that are none: named before anything is preprocessed."""
    first, second = (tmp_path / "imagesTr" / f"case_{channel}.nii.gz" for channel in ("0000", "0001"))
    write_volume(first, np.zeros((4, 9, 9), np.float32))
    write_volume(second, np.zeros((4, 9, 8), np.float32))
    with pytest.raises(ValueError, match=r"case_0001.nii.gz has .* The channels of a case have one size"):
        load_raw(str(first))
    content = first.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"case_0001.nii.gz .*cut off"):
        load_raw(str(first))
    second.unlink()
    os.mkfifo(second)
    with pytest.raises(ValueError, match=r"case_0001.nii.gz is no file"):
        load_raw(str(first))
    second.unlink()
    second.write_bytes(content)
    write_volume(tmp_path / "labelsTr" / "case.nii.gz", np.full((4, 9, 9), -1, np.int16))
    with pytest.raises(ValueError, match=r"labelsTr/case.nii.gz holds -1"):
        load_raw(str(first))


def test_preprocessed_case_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, missing its labels, or a few bytes that unpack to all of the memory."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / DATASET / "data"
    folder.mkdir(parents=True)
    configuration = SimpleNamespace(data_identifier="data")

    def load() -> Case:
        return load_case("case", DATASET, None, configuration, {"file_ending": ".nii.gz"})

    array, seg = np.ones((1, 4, 9, 9), np.float32), np.ones((1, 4, 9, 9), np.int8)
    blosc2.asarray(array, urlpath=str(folder / "case.b2nd"), mode="w")
    with pytest.raises(ValueError, match=r"case.b2nd cannot be read .*_seg.b2nd does not exist"):
        load()
    blosc2.asarray(seg, urlpath=str(folder / "case_seg.b2nd"), mode="w")
    assert torch.equal(load().image, torch.from_numpy(array))
    whole = (folder / "case.b2nd").read_bytes()
    (folder / "case.b2nd").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"case.b2nd cannot be read"):
        load()
    blosc2.zeros((1, 10_000, 10_000, 10_000), np.float32, urlpath=str(folder / "case.b2nd"), mode="w")
    with pytest.raises(ValueError, match="claim to hold an array of 4,000,000,000,000 bytes"):
        load()
    (folder / "case.b2nd").unlink()
    np.savez_compressed(folder / "case.npz", data=array, seg=seg)
    assert torch.equal(load().image, torch.from_numpy(array))
    np.savez(folder / "case.npz", data=array, seg=np.array([Malicious(tmp_path / "made")], object))
    with pytest.raises(ValueError, match=r"case.npz cannot be read"):
        load()
    assert not (tmp_path / "made").exists()


def test_raw_image_is_the_preprocessed_case(
    make_trainer: Callable[..., nnUNetTrainer], nnunet_environment: dict[str, str]
) -> None:
    model = load_model(write_model(make_trainer, trainer_class(NANO)) / CHECKPOINT)
    raw = Path(nnunet_environment["nnUNet_raw"]) / DATASET / "imagesTr" / "case_0_0000.nii.gz"
    found, expected = case_of(model, str(raw)), case_of(model)
    assert found.name == expected.name
    torch.testing.assert_close(found.image, expected.image)
    assert found.reference is not None
    assert expected.reference is not None
    assert np.array_equal(found.reference, expected.reference)


def test_slices_are_chosen_where_labels_are() -> None:
    labels = np.zeros((20, 4, 4), int)
    labels[5:14, 1, 1] = 1
    assert choose_slices(None, labels) == [6, 9, 12]
    assert choose_slices(None, np.zeros((2, 4, 4))) == [0, 1]
    assert choose_slices([19, 0], labels) == [19, 0]
    with pytest.raises(ValueError, match="--slices 20"):
        choose_slices([20], labels)
