"""What is refused before anything is loaded: names of files, folds and checkpoints, and packages that are missing."""

import sys
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.exporting.files import checkpoint_file, require_writable


@pytest.fixture
def with_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages of the extra were installed."""
    monkeypatch.setattr("nnunetv2_dinomed3d.exporting.files.find_spec", lambda name: name)


@pytest.mark.parametrize("name", ["net.pt", "net", "net.ONNX", "net.onnx.gz", "net.json"])
def test_suffix_of_no_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the suffix is the format. Name a file that ends with \.onnx or \.pt2"):
        require_writable(tmp_path / name)


@pytest.mark.parametrize("there", ["net.onnx", "net.json", "net.onnx.data"])
def test_nothing_is_written_over(there: str, tmp_path: Path, with_extra: None) -> None:
    assert require_writable(tmp_path / "net.onnx") == "onnx"
    (tmp_path / there).touch()
    with pytest.raises(ValueError, match=f"{there} exists and is not written over"):
        require_writable(tmp_path / "net.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX needs it, a program of torch.export does not."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{package}.* not installed: pip install "nnunetv2_dinomed3d\[export\]"'):
        require_writable(tmp_path / "net.onnx")
    assert require_writable(tmp_path / "net.pt2") == "torch.export"


def test_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "fold_all" / "checkpoint_best.pth"
    file.parent.mkdir()
    file.touch()
    assert checkpoint_file(tmp_path, "all", "checkpoint_best.pth") == file


@pytest.mark.parametrize(
    ("model", "fold", "name", "message"),
    [
        (".", "0", "checkpoint_final.pth", r"does not exist \(there are the folds 1, 3\)"),
        (".", "1", "checkpoint_final.pth", r"fold_1/checkpoint_final.pth does not exist"),
        ("fold_1", "0", "checkpoint_final.pth", r"does not exist \(it has no folds\)"),
        ("nothing", "0", "checkpoint_final.pth", r"is no folder. Name a model's, nnUNet_results/DATASET/TRAINER__"),
        (".", "../1", "checkpoint_final.pth", r"-f '../1' is no fold"),
        (".", "1", "../plans.json", r"-chk '../plans.json' is no name"),
        (".", "1", "", r"-chk '' is no name"),
    ],
)
def test_no_checkpoint(model: str, fold: str, name: str, message: str, tmp_path: Path) -> None:
    for there in ("fold_1", "fold_3"):
        (tmp_path / there).mkdir()
    with pytest.raises(ValueError, match=message):
        checkpoint_file(tmp_path / model, fold, name)
