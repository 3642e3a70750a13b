"""Files that are not what they should be are refused with the reason, and nothing in them is run."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.weights.files import read_tensors, sha256, verify_meta_checksum, weight_files
from tests.made_up_weights import Malicious, dump_pickle, save_legacy

pytestmark = pytest.mark.own

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
    """A failed download often leaves this: nothing, an error page, a Git LFS pointer."""
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
    """Other things that a training saved (numpy's numbers, an optimiser) are no reason to refuse its network."""
    tensors = {"a": torch.randn(2, 3)}
    save({"iteration": 3, "best": np.float64(0.5), "optimizer": {"state": {}}, key: tensors}, tmp_path / "file.pth")
    read = read_tensors(tmp_path / "file.pth")
    assert read.keys() == {"a"}
    assert torch.equal(read["a"], tensors["a"])


def test_safetensors_header(tmp_path):
    """The header's length is the file's word."""
    for size in (2**63, 90 << 20):
        (tmp_path / "file").write_bytes(size.to_bytes(8, "little") + b'{"a":' + b" " * 100)
        with pytest.raises(ValueError, match="its header shall have"):
            read_tensors(tmp_path / "file")


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


@pytest.mark.parametrize(
    "content",
    ["", "<!DOCTYPE html>", "{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 100_000]
    + [json.dumps({"weight_map": {"a": name}}) for name in ("../a.safetensors", "/dev/zero", "", "..", "a\0", "b\nc")],
)
def test_folder_with_a_broken_index(content, tmp_path):
    """An error page in place of the index."""
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json is no index of weights.*Download it again"):
        read_tensors(tmp_path)


def test_folder_with_a_tensor_in_two_files(tmp_path):
    """One of them would be used, and nobody know which."""
    save_shards(tmp_path, a={"x": torch.ones(1)}, b={"x": torch.ones(1)})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"tensor x in two files, b.safetensors"):
        read_tensors(tmp_path)


def test_folder_with_a_pipe(tmp_path):
    """In place of the weights, the index or a shard."""
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ValueError, match=r"index.json is a pipe"):
        read_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_shards(tmp_path, a={"x": torch.ones(1)})
    (tmp_path / "a.safetensors").unlink()
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors is a pipe"):
        read_tensors(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is a pipe"):
        read_tensors(tmp_path)


# ---- checksums ----


def test_checksum_is_that_of_the_whole_file(tmp_path):
    """The log's SHA-256 is what sha256sum prints, also for files longer than one block."""
    content = os.urandom(3 * (1 << 20) + 17)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_checksum_in_metas_file_names():
    """A damaged download that still loads would train from wrong numbers; other names promise nothing."""
    meta, damaged = Path("dinov3_vitl16plus_pretrain_sat493m-0123abcd.pth"), "f" * 64
    verify_meta_checksum(meta, "0123abcd" + "f" * 56)
    verify_meta_checksum(Path("mine-20260101.pth"), damaged)
    with pytest.raises(ValueError, match=rf"starts with 0123abcd.*it is {damaged}.*repeat it.*another name"):
        verify_meta_checksum(meta, damaged)
