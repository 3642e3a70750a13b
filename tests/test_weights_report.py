"""The report on a file of weights: what it is, which variants it fits, and what to do with it."""

import hashlib
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.variants import Variant
from nnunetv2_dinomed3d.weights.report import describe_weights
from tests.released_checkpoints import parameters, released_shapes

pytestmark = pytest.mark.own

REAL_VARIANTS = dict(VARIANTS)
NANO = {"embed_dim": 96, "depth": 4, "num_heads": 3}
VIT = "vit_small_patch16_dinov3"


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more variant, small enough for files in tests, with the released decoder; not the slow ones."""
    for name in ("small_plus", "large", "huge_plus"):
        monkeypatch.delitem(VARIANTS, name)
    monkeypatch.setitem(VARIANTS, "mini", Variant(VIT, VIT, NANO))


def add_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variant in REAL_VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, variant)


def meta_network(variant: str, **options: Any) -> DINOMed3D:
    with torch.device("meta"):
        return build_dinomed3d(variant, 1, 2, (16, 512, 512), **options)


def timm_file(path: Path, variant: str = "mini") -> None:
    """A file that fits a variant."""
    save_file({name: torch.zeros(shape) for name, shape in meta_network(variant).pretrained_shapes().items()}, path)


def lines_of(path: Path, usable: bool) -> list[str]:
    """The report's lines."""
    report = describe_weights(path)
    assert report.usable == usable
    return report.lines


def test_file_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is, its checksum, what it fits, and what it needs where it does not."""
    add_all_variants(monkeypatch)
    path = tmp_path / "vit.safetensors"
    timm_file(path)
    lines = lines_of(path, usable=True)
    assert any(hashlib.sha256(path.read_bytes()).hexdigest() in line for line in lines)
    assert "format: timm, a ViT of width 96 and depth 4" in lines
    assert "mini: fits" in lines
    assert "base: does not fit, it needs width 768 and depth 12" in lines
    assert {line.split(":")[0] for line in lines if "fit" in line} >= set(VARIANTS) - {"nano"}
    assert f"export DINOMED3D_WEIGHTS={path}" in lines[-1]


def as_meta(shapes: Mapping[str, tuple[int, ...]], width: int, depth: int, qkv_bias: float = 0.0) -> dict[str, Tensor]:
    """Tensors with those shapes under Meta's names, and all that Meta's files have besides."""
    state = {}
    for name, shape in shapes.items():
        theirs = name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma")
        state[theirs.replace("gamma_2", "ls2.gamma")] = torch.zeros(shape)
    for i in range(depth):
        state[f"blocks.{i}.attn.qkv.bias"] = torch.full((3 * width,), qkv_bias)
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full((3 * width,), torch.nan)
    return state | {"mask_token": torch.zeros(1, width), "rope_embed.periods": torch.ones(8)}


def test_lightlytrains_tiny_vit(tmp_path: Path) -> None:
    """An exported dinov3/vitt16 has Meta's names, 192 channels, and a qkv bias that was trained."""
    path = tmp_path / "exported.pt"
    torch.save(as_meta(meta_network("tiny").pretrained_shapes(), 192, 12, qkv_bias=0.5), path)
    lines = lines_of(path, usable=True)
    assert "format: meta, a ViT of width 192 and depth 12" in lines
    assert "tiny: fits" in lines


def test_folder(tmp_path: Path) -> None:
    """A snapshot of timm's repository."""
    timm_file(tmp_path / "model.safetensors")
    assert "mini: fits" in lines_of(tmp_path, usable=True)


def test_incomplete_file(tmp_path: Path) -> None:
    """Of the right size, but a tensor is missing: it is named."""
    path = tmp_path / "vit.safetensors"
    shapes = meta_network("mini").pretrained_shapes()
    del shapes["blocks.2.norm1.bias"]
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    lines = lines_of(path, usable=False)
    assert any(line.startswith("mini: does not fit. 1 tensor does not fit: blocks.2") for line in lines)
    assert lines[-1] == "It fits none of the variants."


def test_file_of_another_model(tmp_path: Path) -> None:
    """The reason is printed, and scripts see it by the exit code."""
    path = tmp_path / "model.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, path)
    assert "no DINOv3 ViT in a known format" in lines_of(path, usable=False)[-1]
    state = {name: torch.zeros(shape) for name, shape in meta_network("mini").pretrained_shapes().items()}
    state["reg_token"][0, 1] = torch.nan
    save_file(state, path)
    assert "reg_token holds values that are not finite" in lines_of(path, usable=False)[-1]


def test_commands_to_paste(tmp_path: Path) -> None:
    """A folder's name may hold anything, a command too: what is printed sets the variable to the file, and no more."""
    path = tmp_path / "my $(touch made) weights'.safetensors"
    timm_file(path)
    command = lines_of(path, usable=True)[-1].split("To train with it: ")[1].split(", and the trainer")[0]
    done = subprocess.run(
        ["bash", "-c", f'{command}; printf %s "$DINOMED3D_WEIGHTS"'], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == (str(path), "")
    torch.save({"model_state_dict": released_stage1()}, path)
    command = lines_of(path, usable=True)[-1].split("for this plugin: ")[1]
    assert shlex.split(command) == ["dinomed3d", "convert", str(path), "-o", "OUT"]


@pytest.mark.parametrize("slab_depth", [3, 5])
def test_our_own_checkpoint(slab_depth: int, tmp_path: Path) -> None:
    """Which stage and trainer it is of; and with K = 5 how to use it, since as a 2D ViT it cannot be."""
    shapes = {name: t.shape for name, t in meta_network("mini", slab_depth=slab_depth).state_dict().items()}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()} | {"_extra_state": torch.tensor(1)}
    path = tmp_path / "checkpoint_best_stage1.pth"
    content = {"network_weights": weights, "trainer_name": "nnUNetTrainerDINOMed3D", "init_args": {}}
    torch.save(content | {"_best_ema": np.float32(0.5)}, path)
    lines = lines_of(path, usable=slab_depth == 3)
    assert f"a checkpoint of this plugin: stage 1, trainer nnUNetTrainerDINOMed3D, K = {slab_depth}" in lines
    assert ("mini: fits" in lines) == (slab_depth == 3)
    assert ("DINOMED3D_STAGE1=FILE" in lines[-1]) == (slab_depth == 5)


def released_stage1() -> dict[str, Tensor]:
    """Of the mini variant, with 3 classes."""
    vit = as_meta(meta_network("mini").pretrained_shapes(), 96, 4)
    state = {f"backbone.model.{name}": tensor for name, tensor in vit.items()}
    return state | {"head.weight": torch.zeros(3, 96, 1, 1), "head.bias": torch.zeros(3)}


def released_stage2(shared: Path, rank: int) -> dict[str, Tensor]:
    """Of the mini variant, with 2 classes."""
    listed = released_shapes(parameters(shared)[2], 96, 4, rank, classes=2)
    return {name: torch.zeros(shape) for name, shape in listed}


def test_stage1_of_the_released_code(tmp_path: Path) -> None:
    """The authors' file is recognised, checked, and the user is led to the command that converts it."""
    path = tmp_path / "stage1_best.pth"
    torch.save({"model_state_dict": released_stage1(), "epoch": 3}, path)
    lines = lines_of(path, usable=True)
    assert (
        "a checkpoint of the released DINO-Med3D code: stage 1, 3 classes, K = 3, a ViT of width 96 and depth 4"
        in lines
    )
    assert "mini: fits" in lines
    assert lines[-1].endswith(f"dinomed3d convert {path} -o OUT")


def test_stage2_of_the_released_code(shared: Path, tmp_path: Path) -> None:
    """Stage 2's is told apart, and one with LoRA of another rank is not for our trainers."""
    path = tmp_path / "stage2_best.pth"
    torch.save({"model_state_dict": released_stage2(shared, rank=16)}, path)
    lines = lines_of(path, usable=True)
    assert any("stage 2, 2 classes, K = 3, a ViT of width 96 and depth 4, LoRA of rank 16" in line for line in lines)
    assert "mini: fits" in lines
    torch.save({"model_state_dict": released_stage2(shared, rank=4)}, path)
    assert any("LoRA has rank 4, the network's 16" in line for line in lines_of(path, usable=False))


def test_incomplete_checkpoint_of_the_released_code(tmp_path: Path) -> None:
    """Found before it is converted."""
    state = released_stage1()
    del state["backbone.model.norm.bias"]
    torch.save({"model_state_dict": state}, tmp_path / "stage1_best.pth")
    lines = lines_of(tmp_path / "stage1_best.pth", usable=False)
    assert any(line.startswith("mini: does not fit. 1 tensor does not fit") for line in lines)
    assert lines[-1] == "It fits none of the variants."


def test_damaged_file(tmp_path: Path) -> None:
    """An error page, a damaged download from Meta, a path with a typo."""
    (tmp_path / "vit.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="neither a safetensors nor a PyTorch file"):
        describe_weights(tmp_path / "vit.pth")
    timm_file(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    with pytest.raises(ValueError, match="starts with 08c60483"):
        describe_weights(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    with pytest.raises(ValueError, match=r"vti.pth does not exist"):
        describe_weights(tmp_path / "vti.pth")
