"""Files that are not what they should be are refused with the reason, and nothing in them is run."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.weights.files import check_against_name, read_checkpoint, read_tensors, sha256, weight_files


class Malicious:
    """Unpickled by the book, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def dump_pickle(content, path):
    Path(path).write_bytes(pickle.dumps(content, protocol=2))


SAVERS = {"safetensors": save_file, "zip": torch.save, "legacy": save_legacy}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_content_decides_not_the_name(save, name, tmp_path):
    """A file that was renamed, or has no ending, loads all the same."""
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16()}
    save(tensors, tmp_path / name)
    read = read_tensors(tmp_path / name)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("save", [torch.save, save_legacy, dump_pickle])
def test_code_in_a_file_is_not_run(save, tmp_path):
    """Weights are downloaded from anywhere: loading them must not execute what somebody put inside."""
    made = tmp_path / "made_by_the_code"
    save({"a": Malicious(made)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth .*more than plain tensors.*never run.* set DINOMED3D_WEIGHTS"):
        read_tensors(tmp_path / "weights.pth")
    assert not made.exists()


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize("part", [0.001, 0.5, 0.98])
def test_truncated_file(save, part, tmp_path):
    """A download that broke off is named as such, whatever PyTorch's own complaint."""
    path = tmp_path / "weights.pth"
    save({"a": torch.randn(100, 100)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"weights.pth is damaged.*Download it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "neither a safetensors nor a PyTorch file: it starts with b'<!DOCTYPE"),
        (b"version https://git-lfs.github.com/spec/v1", "it starts with b'version https"),
    ],
)
def test_not_weights_at_all(content, reason, tmp_path):
    """What a failed download often leaves: nothing, an error page, a Git LFS pointer."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{reason}.*Download it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list, not a dict"),
        ({"student": {"a": torch.zeros(1)}, "epoch": 3}, "2 top-level keys are student, epoch.* save that part alone"),
        ({"teacher": {"a": 3}, "epoch": 3}, "2 top-level keys are teacher, epoch"),
        ({1: torch.zeros(1)}, "top-level keys are 1"),
    ],
)
def test_not_a_dict_of_tensors(content, reason, tmp_path):
    """A training checkpoint: the user sees what is in it, instead of 300 missing tensors."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=reason):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("key", ["teacher", "network_weights", "model_state_dict"])
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_network_in_a_checkpoint(key, save, tmp_path):
    """What a training saved besides (numpy's numbers, an optimiser) is no reason to refuse its network."""
    tensors = {"a": torch.randn(2, 3)}
    save({"iteration": 3, "best": np.float64(0.5), "optimizer": {"state": {}}, key: tensors}, tmp_path / "file.pth")
    read = read_tensors(tmp_path / "file.pth")
    assert read.keys() == {"a"}
    assert torch.equal(read["a"], tensors["a"])


# ---- folders ----


def save_shards(folder, **shards):
    """A folder as transformers writes it when weights are large."""
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors")
    weight_map = {key: f"{name}.safetensors" for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_folder_with_one_file(tmp_path):
    """The folder that save_pretrained wrote, or a snapshot of timm's repository."""
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert read_tensors(tmp_path).keys() == {"a"}


def test_folder_with_shards(tmp_path):
    """Every shard is read; the checksum is that of the shards one after another, as `cat` and sha256sum give it."""
    save_shards(tmp_path, b={"x": torch.ones(1)}, a={"y": torch.ones(2), "z": torch.ones(3)})
    assert read_tensors(tmp_path).keys() == {"x", "y", "z"}
    files = weight_files(tmp_path)
    assert [file.name for file in files] == ["a.safetensors", "b.safetensors"]
    assert sha256(*files) == hashlib.sha256(files[0].read_bytes() + files[1].read_bytes()).hexdigest()


def test_folder_without_weights(tmp_path):
    """The folder above, or one whose download did not get to the weights: what is needed is listed."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"without model.safetensors \(or model.safetensors.index.json.*in it: config.json"
    ):
        read_tensors(tmp_path)


def test_folder_with_a_shard_missing(tmp_path):
    """Half a download is named as such, not as 300 missing tensors."""
    save_shards(tmp_path, a={"x": torch.ones(1)}, b={"y": torch.ones(1)})
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks b.safetensors: 1 of the 2 files .*Download the whole folder"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", ["", "<!DOCTYPE html>", "{}", "[]", '{"weight_map": {"a": 1}}'])
def test_folder_with_a_broken_index(content, tmp_path):
    """An error page in place of the index."""
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json is no index of weights.*Download it again"):
        read_tensors(tmp_path)


# ---- checkpoints of nnU-Net ----


def checkpoint():
    """As nnU-Net's save_checkpoint makes it, with the types that are in a real one."""
    return {
        "network_weights": {"encoder.ice.conv.bias": torch.randn(8), "_extra_state": torch.tensor(1)},
        "optimizer_state": {
            "state": {0: {"step": torch.tensor(2.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 1)}],
        },
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float32(0.5)],
            "dice_per_class_or_region": [[np.float64(0.25), np.float64("nan")]],
            "lrs": [1e-4],
        },
        "_best_ema": np.float32(0.5),
        "current_epoch": 3,
        "init_args": {"plans": {"dataset_name": "Dataset901"}, "fold": 0, "device": torch.device("cuda", 0)},
        "trainer_name": "nnUNetTrainerDINOMed3D",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def rename_in_pickle(path, old, new):
    """The same PyTorch file with another name in its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("written_by", ["numpy._core", "numpy.core"])
def test_checkpoint_of_nnunet(written_by, tmp_path):
    """It was trained on the cluster with numpy 1 and is used on a laptop with numpy 2, or the other way round."""
    path, content = tmp_path / "checkpoint_best_stage1.pth", checkpoint()
    torch.save(content, path)
    own = np.float32(0).__reduce__()[0].__module__.removesuffix(".multiarray")
    rename_in_pickle(path, f"{own}.multiarray".encode(), f"{written_by}.multiarray".encode())
    read = read_checkpoint(path)
    assert read.keys() == content.keys()
    assert torch.equal(
        read["network_weights"]["encoder.ice.conv.bias"], content["network_weights"]["encoder.ice.conv.bias"]
    )
    assert read["_best_ema"] == read["logging"]["mean_fg_dice"][0] == np.float32(0.5)
    assert read["logging"]["dice_per_class_or_region"][0][0] == 0.25
    assert read["init_args"] == content["init_args"]


@pytest.mark.parametrize("save", [torch.save, save_legacy, dump_pickle])
def test_code_in_a_checkpoint_is_not_run(save, tmp_path):
    """A checkpoint of somebody else is no safer than any download."""
    made = tmp_path / "made_by_the_code"
    save(checkpoint() | {"init_args": Malicious(made)}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"checkpoint.pth .*never run.*name another checkpoint_\*\.pth"):
        read_checkpoint(tmp_path / "checkpoint.pth")
    assert not made.exists()


@pytest.mark.parametrize("part", [0, 0.5, 0.98])
def test_truncated_checkpoint(part, tmp_path):
    """The job was killed while it saved."""
    path = tmp_path / "checkpoint_latest.pth"
    torch.save(checkpoint(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"checkpoint_latest.pth is (damaged|empty).*name another checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("missing", ["network_weights", "init_args", "trainer_name"])
def test_no_checkpoint_of_nnunet(missing, tmp_path):
    """The user named the DINOv3 weights, or another tool's file."""
    path, content = tmp_path / "vit.pth", checkpoint()
    del content[missing]
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"vit.pth is not a checkpoint of nnU-Net.*top-level keys are .*optimizer_state"
    ):
        read_checkpoint(path)


def test_error_page_in_place_of_a_checkpoint(tmp_path):
    """What a failed download leaves."""
    (tmp_path / "checkpoint.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"neither a safetensors nor a PyTorch file.*name another checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pth")


# ---- checksums ----


def test_checksum_is_that_of_the_whole_file(tmp_path):
    """The log's SHA-256 is what sha256sum prints, also for files longer than one block."""
    content = os.urandom(3 * (1 << 20) + 17)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_checksum_in_metas_file_names():
    """A damaged download that still loads would train from wrong numbers; other names promise nothing."""
    meta, damaged = Path("dinov3_vitl16plus_pretrain_sat493m-0123abcd.pth"), "f" * 64
    check_against_name(meta, "0123abcd" + "f" * 56)
    check_against_name(Path("mine-20260101.pth"), damaged)
    with pytest.raises(ValueError, match=rf"starts with 0123abcd.*it is {damaged}.*repeat it.*another name"):
        check_against_name(meta, damaged)
