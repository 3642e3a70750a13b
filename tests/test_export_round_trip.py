"""An exported file gives the trained network's logits: onnxruntime within 1e-4, for every kind of network."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnunetv2_dinomed3d.exporting import export
from nnunetv2_dinomed3d.exporting.export import HALF_TOLERANCE, TOLERANCE, export_model
from nnunetv2_dinomed3d.exporting.model import load_model
from nnunetv2_dinomed3d.exporting.network import merge_for_export
from nnunetv2_dinomed3d.exporting.program import run_onnx, run_program
from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.network_architecture.variants import Variant
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer
from nnunetv2_dinomed3d.trainers.registry import BASE, FAMILIES, SUFFIX_GROUPS, find_trainer, suffix
from tests.export_models import dataset_json, plans, write_model
from tests.tiny_baselines import options_of

NANO_WIDTH = {"embed_dim": 96, "depth": 4, "num_heads": 3, "init_values": 0.1}

NETWORKS: dict[str, tuple[tuple[int, int, int], int]] = {
    "_nano_K4_released": ((3, 368, 32), 2),
    "_S_plus_K2_noDetail": ((5, 32, 200), 1),
    "_T_K1_loraStage1": ((3, 32, 32), 3),
    "_nano_K5": ((5, 30, 40), 1),
}
"""Suffixes of trainers whose networks together have every part that a trainer can choose; patch and channels."""

OF_SIZE_ALONE = {"_S", "_L", "_H_plus"}
OF_TRAINING_ALONE = {"_noStage1", "_UPerNetProxy", "_paper", "_20epochs", "_250epochs", "_1000epochs"}
OF_STAGE_1 = {"_frozen", "_stage1"}
BASELINES = ("nnFormer", "SwinUNETR", "VoCo_B", "VoCo_L_v1", "DinoUNet_S")


@pytest.fixture
def nano_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes whose code differs (bias of qkv, SwiGLU), as narrow as nano."""
    for name in ("tiny", "small_plus"):
        own = VARIANTS[name]
        narrow = Variant(own.vit_name, None, NANO_WIDTH, own.qkv_bias, decoder_channels=64, detail_channels=8)
        monkeypatch.setitem(VARIANTS, name, narrow)


def logits_of(folder: Path) -> tuple[Tensor, Tensor]:
    """A window, and the trained network's logits of it."""
    model = load_model(folder / "fold_0" / "checkpoint_final.pth")
    window = torch.randn(model.window, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return window, model.network(window)


def exported(folder: Path, name: str, half: bool = False) -> Path:
    out = folder / "made" / name
    files, _ = export_model(load_model(folder / "fold_0" / "checkpoint_final.pth"), out, half=half)
    assert files == [out, out.with_suffix(".json")] == sorted(out.parent.iterdir(), reverse=True)
    return out


def assert_onnx_is_equal(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    window, expected = logits_of(folder)
    logits = run_onnx(exported(folder, "net.onnx"), window)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


def test_stock_network_as_onnx(tmp_path: Path) -> None:
    assert_onnx_is_equal(write_model(tmp_path))


@pytest.mark.parametrize("half", [False, True])
def test_stock_network_as_program(half: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    window, expected = logits_of(folder)
    out = exported(folder, "net.pt2", half)
    logits = run_program(out, window.half() if half else window)
    torch.testing.assert_close(logits, expected, rtol=0, atol=HALF_TOLERANCE if half else TOLERANCE)
    description = json.loads(out.with_suffix(".json").read_text())
    assert description["input"]["dtype"] == ("float16" if half else "float32")
    assert description["check"]["largest_difference"] <= description["check"]["tolerance"]
    assert description["check"]["by"].startswith("torch")


def test_other_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that gives others never gets its name."""
    monkeypatch.setattr(export, "run_program", lambda path, window: run_program(path, window) + 0.01)
    folder = write_model(tmp_path)
    with pytest.raises(ValueError, match=r"would give other logits .* differences up to 0\.01 .* Nothing was written"):
        exported(folder, "net.pt2")
    assert not (folder / "made").exists()


def test_logits_that_are_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "run_program", lambda path, window: run_program(path, window) * float("nan"))
    with pytest.raises(ValueError, match="would give other logits"):
        exported(write_model(tmp_path), "net.pt2")


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written, and that nobody checked it is said."""
    monkeypatch.setattr(export, "require_writable", lambda file: "onnx")
    monkeypatch.setattr(export, "write", lambda program, path, kind: path.touch())
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    out = tmp_path / "net.onnx"
    _, check = export_model(load_model(write_model(tmp_path) / "fold_0" / "checkpoint_final.pth"), out)
    assert str(check).startswith("Not checked, as onnxruntime is not installed: pip install")
    assert json.loads(out.with_suffix(".json").read_text())["check"]["by"] is None


def test_every_variant_is_among_the_networks() -> None:
    """Of the trainers that have a network of stage 2."""
    untested = OF_SIZE_ALONE | OF_TRAINING_ALONE | OF_STAGE_1
    every = {suffix(trainer) for trainers in SUFFIX_GROUPS.values() for trainer in trainers}
    tested = {word for name in NETWORKS for word in FAMILIES[0].match(f"{BASE}{name}") or []}
    assert tested | untested == every
    assert not tested & untested


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", NETWORKS)
def test_dinomed3d_as_onnx(name: str, tmp_path: Path, nano_width: None) -> None:
    patch_size, channels = NETWORKS[name]
    assert_onnx_is_equal(write_model(tmp_path, f"{BASE}{name}", plans(patch_size, channels), dataset_json(channels)))


@pytest.mark.end_to_end
def test_dinomed3d_in_half_as_onnx(tmp_path: Path) -> None:
    """All weights are float16; the logits are near."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    folder = write_model(tmp_path, f"{BASE}_nano", plans((4, 32, 32)))
    window, expected = logits_of(folder)
    out = exported(folder, "net.onnx", half=True)
    torch.testing.assert_close(run_onnx(out, window.half()), expected, rtol=0, atol=HALF_TOLERANCE)
    network = load_model(folder / "fold_0" / "checkpoint_final.pth").network
    merge_for_export(network)
    in_half = [t for t in onnx.load(out).graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    weights = [parameter for name, parameter in network.named_parameters() if ".vit.norm." not in name]
    assert sum(math.prod(tensor.dims) for tensor in in_half) >= sum(weight.numel() for weight in weights)


@pytest.mark.end_to_end
def test_dinomed3d_as_program(tmp_path: Path) -> None:
    folder = write_model(tmp_path, f"{BASE}_nano", plans((4, 32, 32)))
    window, expected = logits_of(folder)
    torch.testing.assert_close(run_program(exported(folder, "net.pt2"), window), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("name", BASELINES)
def test_baseline_as_onnx(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaselineTrainer, "network_options", classmethod(options_of))
    trainer = f"nnUNetTrainerBaseline_{name}"
    is_2d = 3 not in find_trainer(trainer).axes
    patch_size = (64, 48) if is_2d else (32, 64, 48)
    assert_onnx_is_equal(write_model(tmp_path, trainer, plans(patch_size)))
