"""Files of a case are there whole or not at all; labels and arrays of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_dinomed3d.prediction.output import CaseOutput, FoldMean, array_for, written_together
from nnunetv2_dinomed3d.prediction.resampling import ResampledRows


class Predictor:
    def __init__(self, count: int) -> None:
        names = {"background": 0, **{f"organ_{value}": value for value in range(1, count)}}
        self.label_manager = LabelManager(names, None)


def output(count: int, shape: tuple[int, ...], box: list[list[int]]) -> CaseOutput:
    properties = {"shape_before_cropping": shape, "bbox_used_for_cropping": box}
    predictor: Any = Predictor(count)
    return CaseOutput(predictor, properties, None)


@pytest.mark.parametrize(("count", "dtype"), [(3, np.uint8), (255, np.uint8), (300, np.uint16)])
def test_labels_are_put_where_the_case_was_cropped(count: int, dtype: type) -> None:
    made = output(count, (4, 5, 6), [[1, 4], [2, 5], [0, 6]])
    logits = torch.zeros(count, 3, 3, 6)
    logits[count - 1, 1:] = 1
    made(ResampledRows(0, logits[:, :1]))
    made(ResampledRows(1, logits[:, 1:]))
    expected: np.ndarray = np.zeros((4, 5, 6), dtype)
    expected[2:, 2:5] = count - 1
    assert made.labels.dtype == dtype
    np.testing.assert_array_equal(made.labels, expected)


def test_close_logits_are_looked_at_again() -> None:
    """Of equal logits the first counts, as for nnU-Net, and which are equal only nnU-Net's rounding tells."""
    asked = []

    def exact(mask: torch.Tensor) -> torch.Tensor:
        asked.append(mask)
        return torch.tensor([[0.0], [1.0], [1.0]])

    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0001, 2.0]])[:, None, None]
    made = output(3, (1, 1, 2), [[0, 1], [0, 1], [0, 2]])
    made(ResampledRows(0, logits, error=1e-6, exact=exact))
    assert made.labels.tolist() == [[[1, 2]]]
    assert [mask.tolist() for mask in asked] == [[[[True, False]]]]


def test_files_get_their_names_together(tmp_path: Path) -> None:
    with written_together(tmp_path / "a") as path:
        Path(f"{path}.npz").write_text("1")
        Path(f"{path}.nii.gz").write_text("2")
        assert not [name for name in tmp_path.iterdir() if not name.name.startswith(".")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii.gz", "a.npz"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("before")

    def fail() -> None:
        with written_together(tmp_path / "a") as path:
            Path(f"{path}.nii.gz").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_text() == "before"


def test_large_arrays_go_to_a_file_without_a_name(tmp_path: Path) -> None:
    small, large = (array_for((10, 10), np.float32, limit, tmp_path) for limit in (400, 399))
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[3] = 2
    assert large.sum() == 20
    assert not list(tmp_path.iterdir())


def test_folds_are_averaged_in_float16() -> None:
    first, second = torch.randn(2, 2, 4, 3, 3).half()
    given: list[torch.Tensor] = []
    mean = FoldMean(torch.zeros(2, 4, 3, 3, dtype=torch.half), 2, lambda first, rows: given.append(rows))
    for fold, logits in enumerate((first, second)):
        mean.fold = fold
        mean(0, logits[:, :3])
        mean(3, logits[:, 3:])
    assert torch.equal(torch.cat(given, 1), (first + second) / 2)
