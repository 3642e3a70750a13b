"""The weights that a training starts from, and the message if there are none."""

import hashlib
import os
import re
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.weights import (
    PretrainedWeights,
    WeightsUnavailableError,
    read_pretrained,
    weights_setting,
)
from nnunetv2_dinomed3d.weights.stage1 import read_stage1_checkpoint

VIT = "vit_base_patch16_dinov3"
REPOSITORY = "timm/vit_base_patch16_dinov3.lvd1689m"


def shapes(width=8, depth=2):
    """A ViT with the names that matter here."""
    blocks = {f"blocks.{i}.norm1.weight": (width,) for i in range(depth)}
    return {"cls_token": (1, 1, width), "reg_token": (1, 4, width), **blocks, "norm.weight": (width,)}


def tensors(width=8, depth=2):
    return {name: torch.randn(shape) for name, shape in shapes(width, depth).items()}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The variable is not set, the cache is empty, and whoever asks the Hub without a test's leave fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.delenv("DINOMED3D_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Saves tensors to a file and makes it the user's choice; gives its path."""

    def choose(state, name="weights.safetensors", save=save_file):
        save(state, tmp_path / name)
        monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / name))
        return tmp_path / name

    return choose


def test_random_weights_only_on_request(monkeypatch):
    """The word asks for a training from scratch; it is the only way to get one."""
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "random")
    assert read_pretrained(VIT, shapes()) is None
    assert weights_setting(VIT).source == "random"
    assert weights_setting(VIT).available


def test_file(use):
    """The log says which file it was, without the user's folders, and the weights are ready for the network."""
    state = {name: tensor.half() for name, tensor in tensors().items()}
    path = use(state)
    loaded = read_pretrained(VIT, shapes())
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.file, loaded.sha256, loaded.format) == ("weights.safetensors", checksum, "timm")
    assert loaded.tensors.keys() == state.keys()
    for name, tensor in loaded.tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, state[name].float())
    assert all(part in loaded.report() for part in ("5 tensors", "weights.safetensors", "timm", checksum))
    assert str(path.parent) not in loaded.report()
    assert "\n" not in loaded.report()


def test_tilde_is_the_home_folder(use, monkeypatch):
    """~ arrives unexpanded from a .env file or a job script with quotes."""
    path = use(tensors())
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "~/weights.safetensors")
    assert read_pretrained(VIT, shapes()).file == "weights.safetensors"


def assert_refused(reason):
    """By the training and, before it, by `dinomed3d doctor`."""
    with pytest.raises(ValueError, match=reason):
        read_pretrained(VIT, shapes())
    setting = weights_setting(VIT)
    assert setting.source == "file"
    assert not setting.available
    assert re.search(reason, setting.description)


def test_no_such_file(tmp_path, monkeypatch):
    """A typo in the path must not lead to a download, nor to random weights."""
    path = tmp_path / "wieghts"
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(path))
    assert_refused(rf"{re.escape(repr(str(path)))}, which does not exist.*\.pth.*random.*unset")


def test_pipe(tmp_path, monkeypatch):
    """Training would wait for ever, on every GPU."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "pipe"))
    assert_refused(rf"DINOMED3D_WEIGHTS: {re.escape(str(tmp_path))}/pipe is a pipe, not a file")


def test_damaged_file_names_the_variable(tmp_path, monkeypatch):
    """The setting may be in a script written months ago."""
    (tmp_path / "weights.pth").write_bytes(b"<!DOCTYPE html>")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"DINOMED3D_WEIGHTS: .*weights.pth is neither a safetensors nor"):
        read_pretrained(VIT, shapes())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"network_weights": {"a": torch.tensor([torch.nan])}}, "a holds values that are not finite"),
        ({"network_weights": {"a": torch.ones(3, dtype=torch.int8)}}, "a holds torch.int8"),
        ({"network_weights": {"a": torch.ones(3, dtype=torch.complex64)}}, "a holds torch.complex64"),
        ({"init_args": [1]}, "is not a checkpoint of nnU-Net"),
        ({"trainer_name": 3}, "is not a checkpoint of nnU-Net"),
    ],
)
def test_stage1_that_is_none(content, reason, tmp_path):
    """Stage 2 would train for days on a frozen encoder of NaN; the variable that named the file is said."""
    sound = {"network_weights": {"a": torch.ones(3)}, "init_args": {}, "trainer_name": "nnUNetTrainerDINOMed3D"}
    torch.save(sound, tmp_path / "checkpoint.pth")
    assert read_stage1_checkpoint(tmp_path / "checkpoint.pth").dataset is None
    torch.save(sound | content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=rf"DINOMED3D_STAGE1: .*{reason}"):
        read_stage1_checkpoint(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("plans", [None, [], "plans", {"dataset_name": [1]}])
def test_stage1_with_odd_plans(plans, tmp_path):
    """They tell of leaked cases, no more: what they lack is not told."""
    content = {"network_weights": {"a": torch.ones(3)}, "init_args": {"plans": plans, "fold": []}, "trainer_name": "x"}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert (
        read_stage1_checkpoint(tmp_path / "checkpoint.pth").dataset,
        read_stage1_checkpoint(tmp_path / "checkpoint.pth").fold,
    ) == (None,) * 2


def test_hub_without_a_network_is_asked_once(tmp_path):
    """huggingface_hub's download asks six times, over 65 s, before a job without internet is told what to do."""
    code = (
        "import sys, time; from nnunetv2_dinomed3d.weights import fetch_from_hub, WeightsUnavailableError as E\n"
        "import timm.models; start = time.monotonic()\n"
        f"try: fetch_from_hub({VIT!r})\n"
        "except E as error: print(error); sys.exit(time.monotonic() - start > 30)"
    )
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "set DINOMED3D_WEIGHTS=/path/to/file" in done.stdout


def test_folder_without_weights(tmp_path, monkeypatch):
    """The folder above the right one."""
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path))
    assert_refused(rf"DINOMED3D_WEIGHTS: {re.escape(str(tmp_path))} is a folder without model.safetensors")


def test_folder(tmp_path, monkeypatch):
    """The log names the folder, since all files in such folders have the same name."""
    folder = tmp_path / "dinov3-vitb16"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(folder))
    assert weights_setting(VIT).available
    assert "the folder" in weights_setting(VIT).description
    loaded = read_pretrained(VIT, shapes())
    checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (loaded.file, loaded.sha256, loaded.format) == ("dinov3-vitb16", checksum, "timm")


@pytest.mark.parametrize("value", [None, "", " "])
def test_default_is_timms_file_of_the_hub(value, tmp_path, monkeypatch):
    """Without a setting the released weights are used, and the log says which repository they are from."""
    if value is not None:
        monkeypatch.setenv("DINOMED3D_WEIGHTS", value)
    save_file(tensors(), tmp_path / "blob")
    asked = []

    def download(repository, file, etag_timeout):
        asked.append((repository, file))
        return str(tmp_path / "blob")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = read_pretrained(VIT, shapes())
    assert asked == [(REPOSITORY, "model.safetensors")]
    assert loaded.file == f"{REPOSITORY}/model.safetensors"
    assert loaded.format == "timm"


def test_cached_file_needs_no_network(tmp_path, monkeypatch):
    """On a node without internet, a file that was fetched before is used at once."""
    save_file(tensors(), tmp_path / "blob")
    assert not weights_setting(VIT).available
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(tmp_path / "blob"))
    assert isinstance(read_pretrained(VIT, shapes()), PretrainedWeights)
    setting = weights_setting(VIT)
    assert setting.source == "hub"
    assert setting.available
    assert REPOSITORY in setting.description


def test_hub_does_not_answer(monkeypatch):
    """The compute node has no internet: the user learns what was tried, and every way out."""

    def fail(*args, **kwargs):
        raise OSError("Cannot locate the file\nsecond line") from ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    with pytest.raises(WeightsUnavailableError) as caught:
        read_pretrained(VIT, shapes())
    message = str(caught.value)
    for part in (
        f"model.safetensors of {REPOSITORY}",
        "OSError: Cannot locate the file",
        "ConnectionError: Name or service not known",
        f"https://huggingface.co/{REPOSITORY}",
        "Meta",
        "DINOMED3D_WEIGHTS=/path/to/file",
        "DINOMED3D_WEIGHTS=random",
    ):
        assert part in message
    assert "second line" not in message


@pytest.mark.parametrize("vit_name", ["no_such_vit", f"{VIT}.no_such_tag"])
def test_vit_without_pretrained_weights(vit_name):
    """A class attribute with a typo is named, instead of an AttributeError from timm."""
    with pytest.raises(ValueError, match=rf"no pretrained weights of '{vit_name}'.*random"):
        read_pretrained(vit_name, shapes())


def test_weights_of_the_tiny_vit_are_lightlytrains(monkeypatch):
    """Neither Meta nor timm has this size: without a file the user learns where to get one."""
    tiny = "vit_tiny_patch16_dinov3"
    for ask in (lambda: read_pretrained(tiny, shapes()), lambda: weights_setting(tiny)):
        with pytest.raises(ValueError, match=r"LightlyTrain publishes .*dinov3/vitt16.*\.pth.* set DINOMED3D_WEIGHTS"):
            ask()


def test_checkpoint_of_the_released_code(use):
    """The authors' stage 1 is no DINOv3 file: the message leads to the command that converts it."""
    path = use({"model_state_dict": {"backbone.model.cls_token": torch.zeros(1)}}, "stage1_best.pth", torch.save)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: .*dinomed3d convert"):
        read_pretrained(VIT, shapes())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("cls_token"), r"1 tensor .* cls_token: expected \(1, 1, 8\), found no such tensor"),
        (lambda state: state.update(head=torch.zeros(3)), r"1 tensor .* head: expected no such tensor, found \(3,\)"),
        (lambda state: state.update(cls_token=torch.zeros(1, 8)), r"cls_token: expected \(1, 1, 8\), found \(1, 8\)"),
        (lambda state: state["cls_token"][..., 3].fill_(torch.inf), "cls_token holds values that are not finite"),
        (lambda state: state["cls_token"][..., 3].fill_(torch.nan), "cls_token holds values that are not finite"),
        (lambda state: state.update(cls_token=torch.zeros(1, 1, 8).char()), "cls_token holds torch.int8"),
        (lambda state: state.pop("reg_token"), "no DINOv3 ViT in a known format"),
    ],
)
def test_file_that_does_not_fit(change, reason, use):
    """One missing, extra, misshapen or broken tensor, and the file is refused by name: never a partial load."""
    state = tensors()
    change(state)
    path = use(state)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: .*{reason}"):
        read_pretrained(VIT, shapes())


@pytest.mark.parametrize(("width", "depth"), [(4, 2), (8, 3), (4, 5)])
def test_weights_of_another_size(width, depth, use):
    """The commonest mistake, ViT-S weights for the ViT-B trainer: the message says both sizes and what to change."""
    use(tensors(width, depth))
    sizes = rf"ViT of width {width} and depth {depth}, the trainer needs width 8 and depth 2"
    with pytest.raises(ValueError, match=rf"{sizes}: use the weights of {VIT}, or .*-tr"):
        read_pretrained(VIT, shapes())


def test_damaged_download_from_meta(use):
    """The file loads, but is not the one that Meta published under this name."""
    use(tensors(), "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth", torch.save)
    with pytest.raises(ValueError, match="starts with 73cec8be"):
        read_pretrained(VIT, shapes())
