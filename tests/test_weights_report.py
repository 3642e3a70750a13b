"""``dinomed3d weights``: what it fetches is checked before it is relied on, and of any file it tells what it is."""

import hashlib
import shlex
import subprocess

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.commands.weights import check_weights_file, fetch_weights
from nnunetv2_dinomed3d.network_architecture import VARIANTS, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.variants import Variant
from nnunetv2_dinomed3d.weights import WeightsUnavailableError
from tests.test_weights_reference import parameters, released_shapes

REAL_VARIANTS = dict(VARIANTS)
NANO = {"embed_dim": 96, "depth": 4, "num_heads": 3}
VIT = "vit_small_patch16_dinov3"
REPOSITORY = "timm/vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture(autouse=True)
def mini(monkeypatch):
    """One more variant, small enough for files in tests, with the released decoder; not the slow ones; and no Hub."""
    for name in ("small_plus", "large", "huge_plus"):
        monkeypatch.delitem(VARIANTS, name)
    monkeypatch.setitem(VARIANTS, "mini", Variant(VIT, VIT, NANO))

    def refuse(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)


def add_all_variants(monkeypatch):
    for name, variant in REAL_VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, variant)


def meta_network(variant, **options):
    with torch.device("meta"):
        return build_dinomed3d(variant, 1, 2, (16, 512, 512), **options)


def timm_file(path, variant="mini"):
    """A file that fits a variant."""
    save_file({name: torch.zeros(shape) for name, shape in meta_network(variant).pretrained_shapes().items()}, path)


# ---- fetching ----


@pytest.mark.parametrize("cached", [True, False])
def test_fetch(cached, tmp_path, monkeypatch, capsys):
    """The user gets the file, knows that it is whole, and reads what to do where there is no internet."""
    path = tmp_path / "model.safetensors"
    timm_file(path)
    asked = []

    def download(repository, file, etag_timeout):
        asked.append((repository, file))
        return str(path)

    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere")  # what is fetched does not depend on what is in use
    if cached:
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(path))
    else:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch_weights("mini") == 0
    assert asked == ([] if cached else [(REPOSITORY, "model.safetensors")])
    output = capsys.readouterr().out
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    for part in (REPOSITORY, "fit the variant mini", str(path), checksum, "export DINOMED3D_WEIGHTS="):
        assert part in output


def test_fetched_file_that_does_not_fit(tmp_path, monkeypatch):
    """A damaged or wrong file in the cache is found on the machine with internet, not in the first job without."""
    path = tmp_path / "model.safetensors"
    timm_file(path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(path))
    with pytest.raises(ValueError, match="width 96 and depth 4, the trainer needs width 768 and depth 12"):
        fetch_weights("base")


def test_hub_does_not_answer(monkeypatch):
    """The error is the training's own, with every way out."""

    def fail(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    with pytest.raises(WeightsUnavailableError, match="OSError: offline"):
        fetch_weights("small")


@pytest.mark.parametrize("variant", ["bsae", "nano"])
def test_variant_without_weights(variant, monkeypatch):
    """A typo, or the size that has none: those that have are listed."""
    add_all_variants(monkeypatch)
    with pytest.raises(ValueError, match=rf"'{variant}' is no variant .*: tiny, small, .*huge_plus"):
        fetch_weights(variant)


def test_tiny_is_not_on_the_hub():
    """Its weights are LightlyTrain's."""
    with pytest.raises(ValueError, match="LightlyTrain"):
        fetch_weights("tiny")


# ---- checking a file ----


def lines_of(path, capsys, code):
    """Exit code and printed lines."""
    assert check_weights_file(path) == code
    return capsys.readouterr().out.splitlines()


def test_file_that_fits(tmp_path, capsys, monkeypatch):
    """What it is, its checksum, what it fits, and what it needs where it does not."""
    add_all_variants(monkeypatch)
    path = tmp_path / "vit.safetensors"
    timm_file(path)
    lines = lines_of(path, capsys, 0)
    assert any(hashlib.sha256(path.read_bytes()).hexdigest() in line for line in lines)
    assert "format: timm, a ViT of width 96 and depth 4" in lines
    assert "mini: fits" in lines
    assert "base: does not fit, it needs width 768 and depth 12" in lines
    assert {line.split(":")[0] for line in lines if "fit" in line} >= set(VARIANTS) - {"nano"}
    assert f"export DINOMED3D_WEIGHTS={path}" in lines[-1]


def as_meta(shapes, width, depth, qkv_bias=0.0):
    """Tensors with those shapes under Meta's names, and all that Meta's files have besides."""
    state = {}
    for name, shape in shapes.items():
        theirs = name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma")
        state[theirs.replace("gamma_2", "ls2.gamma")] = torch.zeros(shape)
    for i in range(depth):
        state[f"blocks.{i}.attn.qkv.bias"] = torch.full((3 * width,), qkv_bias)
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full((3 * width,), torch.nan)
    return state | {"mask_token": torch.zeros(1, width), "rope_embed.periods": torch.ones(8)}


def test_lightlytrains_tiny_vit(tmp_path, capsys):
    """An exported dinov3/vitt16 has Meta's names, 192 channels, and a qkv bias that was trained."""
    path = tmp_path / "exported.pt"
    torch.save(as_meta(meta_network("tiny").pretrained_shapes(), 192, 12, qkv_bias=0.5), path)
    lines = lines_of(path, capsys, 0)
    assert "format: meta, a ViT of width 192 and depth 12" in lines
    assert "tiny: fits" in lines


def test_folder(tmp_path, capsys):
    """A snapshot of timm's repository."""
    timm_file(tmp_path / "model.safetensors")
    assert "mini: fits" in lines_of(tmp_path, capsys, 0)


def test_incomplete_file(tmp_path, capsys):
    """Of the right size, but a tensor is missing: it is named."""
    path = tmp_path / "vit.safetensors"
    shapes = meta_network("mini").pretrained_shapes()
    del shapes["blocks.2.norm1.bias"]
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    lines = lines_of(path, capsys, 1)
    assert any(line.startswith("mini: does not fit. 1 tensors do not fit, the first is blocks.2") for line in lines)
    assert lines[-1] == "It fits none of the variants."


def test_file_of_another_model(tmp_path, capsys):
    """The reason is printed, and scripts see it by the exit code."""
    path = tmp_path / "model.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, path)
    assert "no DINOv3 ViT in a known format" in lines_of(path, capsys, 1)[-1]
    state = {name: torch.zeros(shape) for name, shape in meta_network("mini").pretrained_shapes().items()}
    state["reg_token"][0, 1] = torch.nan
    save_file(state, path)
    assert "reg_token holds values that are not finite" in lines_of(path, capsys, 1)[-1]


def test_commands_to_paste(tmp_path, capsys):
    """A folder's name may hold anything, a command too: what is printed sets the variable to the file, and no more."""
    path = tmp_path / "my $(touch made) weights'.safetensors"
    timm_file(path)
    command = lines_of(path, capsys, 0)[-1].split("To train with it: ")[1].split(", and the trainer")[0]
    done = subprocess.run(
        ["bash", "-c", f'{command}; printf %s "$DINOMED3D_WEIGHTS"'], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == (str(path), "")
    torch.save({"model_state_dict": released_stage1()}, path)
    command = lines_of(path, capsys, 0)[-1].split("of it: ")[1]
    assert shlex.split(command) == ["dinomed3d", "convert", str(path), "-o", "OUT"]


@pytest.mark.parametrize(("slab_depth", "code"), [(3, 0), (5, 1)])
def test_our_own_checkpoint(slab_depth, code, tmp_path, capsys):
    """Which stage and trainer it is of; and with K = 5 how to use it, since as a 2D ViT it cannot be."""
    shapes = {name: t.shape for name, t in meta_network("mini", slab_depth=slab_depth).state_dict().items()}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()} | {"_extra_state": torch.tensor(1)}
    path = tmp_path / "checkpoint_best_stage1.pth"
    content = {"network_weights": weights, "trainer_name": "nnUNetTrainerDINOMed3D", "init_args": {}}
    torch.save(content | {"_best_ema": np.float32(0.5)}, path)
    lines = lines_of(path, capsys, code)
    assert f"a checkpoint of this plugin: stage 1, trainer nnUNetTrainerDINOMed3D, K = {slab_depth}" in lines
    assert ("mini: fits" in lines) == (code == 0)
    assert ("DINOMED3D_STAGE1=FILE" in lines[-1]) == (code == 1)


def released_stage1():
    """Of the mini variant, with 3 classes."""
    vit = as_meta(meta_network("mini").pretrained_shapes(), 96, 4)
    state = {f"backbone.model.{name}": tensor for name, tensor in vit.items()}
    return state | {"head.weight": torch.zeros(3, 96, 1, 1), "head.bias": torch.zeros(3)}


def released_stage2(shared, rank):
    """Of the mini variant, with 2 classes."""
    listed = released_shapes(parameters(shared)[2], 96, 4, rank, classes=2)
    return {name: torch.zeros(shape) for name, shape in listed}


def test_stage1_of_the_released_code(tmp_path, capsys):
    """The authors' file is recognised, checked, and the user is led to the command that converts it."""
    path = tmp_path / "stage1_best.pth"
    torch.save({"model_state_dict": released_stage1(), "epoch": 3}, path)
    lines = lines_of(path, capsys, 0)
    assert (
        "a checkpoint of the released DINO-Med3D code: stage 1, 3 classes, K = 3, a ViT of width 96 and depth 4"
        in lines
    )
    assert "mini: fits" in lines
    assert lines[-1].endswith(f"dinomed3d convert {path} -o OUT")


def test_stage2_of_the_released_code(shared, tmp_path, capsys):
    """Stage 2's is told apart, and one with LoRA of another rank is not for our trainers."""
    path = tmp_path / "stage2_best.pth"
    torch.save({"model_state_dict": released_stage2(shared, rank=16)}, path)
    lines = lines_of(path, capsys, 0)
    assert any("stage 2, 2 classes, K = 3, a ViT of width 96 and depth 4, LoRA of rank 16" in line for line in lines)
    assert "mini: fits" in lines
    torch.save({"model_state_dict": released_stage2(shared, rank=4)}, path)
    assert any("LoRA has rank 4, the network's 16" in line for line in lines_of(path, capsys, 1))


def test_incomplete_checkpoint_of_the_released_code(tmp_path, capsys):
    """Found before it is converted."""
    state = released_stage1()
    del state["backbone.model.norm.bias"]
    torch.save({"model_state_dict": state}, tmp_path / "stage1_best.pth")
    lines = lines_of(tmp_path / "stage1_best.pth", capsys, 1)
    assert any(line.startswith("mini: does not fit. 1 tensors of the checkpoint") for line in lines)
    assert lines[-1] == "It fits none of the variants."


def test_damaged_file(tmp_path):
    """An error page, a damaged download from Meta, a path with a typo."""
    (tmp_path / "vit.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="neither a safetensors nor a PyTorch file"):
        check_weights_file(tmp_path / "vit.pth")
    timm_file(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    with pytest.raises(ValueError, match="starts with 08c60483"):
        check_weights_file(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    with pytest.raises(ValueError, match=r"vti.pth does not exist"):
        check_weights_file(tmp_path / "vti.pth")
