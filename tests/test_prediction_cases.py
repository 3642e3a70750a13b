"""Which cases a folder has, which of them are done, and reading them ahead."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.prediction import cases as module
from nnunetv2_dinomed3d.prediction.cases import Case, find_cases, is_predicted, read_ahead


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_cases_in_order_with_all_channels(tmp_path: Path) -> None:
    names = ["b_0000.nii.gz", "b_0001.nii.gz", "a_0001.nii.gz", "a_0000.nii.gz", "notes.txt", "a.nii.gz", "c_1.nii.gz"]
    found = find_cases(touch(tmp_path, *names), ".nii.gz", 2)
    assert [case.name for case in found] == ["a", "b"]
    assert [file.name for file in found[0].files] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ((), "No image in .*case_0000.nii.gz"),
        (("a.nii.gz",), "No image in"),
        (("a_0000.nii.gz",), "a_0001.nii.gz is missing: the model takes 2 channel"),
        (("a_0001.nii.gz",), "a_0000.nii.gz is missing"),
        (("a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"), "a_0002.nii.gz is one too many"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, names: tuple[str, ...], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        find_cases(touch(tmp_path, *names), ".nii.gz", 2)


def test_a_missing_folder_or_previous_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        find_cases(tmp_path / "nowhere", ".nii.gz", 1)
    images, previous = touch(tmp_path / "i", "a_0000.nii.gz", "b_0000.nii.gz"), touch(tmp_path / "p", "a.nii.gz")
    with pytest.raises(ValueError, match=r"p/b.nii.gz is missing: the cascade"):
        find_cases(images, ".nii.gz", 1, previous)


def test_only_whole_files_count_as_predicted(tmp_path: Path) -> None:
    case = Case("a", (), None)
    assert not is_predicted(case, tmp_path, ".nii.gz", False)
    file = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(0, 3, (20, 30, 30)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(file))
    assert is_predicted(case, tmp_path, ".nii.gz", False)
    assert not is_predicted(case, tmp_path, ".nii.gz", True)
    np.savez_compressed(tmp_path / "a.npz", probabilities=noise)
    (tmp_path / "a.pkl").write_bytes(b"x")
    assert is_predicted(case, tmp_path, ".nii.gz", True)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:-40])
    assert not is_predicted(case, tmp_path, ".nii.gz", True)
    file.write_bytes(file.read_bytes()[:1000])
    assert not is_predicted(case, tmp_path, ".nii.gz", False)


@pytest.mark.parametrize(("threads", "memory", "ahead"), [(0, 10**9, 0), (2, 10**9, 2), (2, 0, 0), (3, 40_000, 1)])
def test_reading_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch, threads: int, memory: int, ahead: int) -> None:
    """A case of 1000 voxels counts as 32,000 bytes."""
    begun: list[str] = []
    begin = threading.Lock()

    def read_case(case: Case, predictor: Any) -> Any:
        with begin:
            begun.append(case.name)
        return SimpleNamespace(case=case, properties={"shape_before_cropping": (10, 10, 10)})

    monkeypatch.setattr(module, "read_case", read_case)
    names = [str(number) for number in range(8)]
    predictor: Any = None
    for number, preprocessed in enumerate(
        read_ahead([Case(name, (Path(name),), None) for name in names], predictor, threads, memory)
    ):
        assert preprocessed.case.name == names[number]
        assert len(begun) <= number + 1 + ahead
    assert sorted(begun) == names
