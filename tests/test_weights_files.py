"""Files that are not what they should be are refused with the reason, and nothing in them is run."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.weights.files import check_against_name, read_tensors, sha256


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
        ({"teacher": {"a": torch.zeros(1)}, "epoch": 3}, "2 top-level keys are teacher, epoch.* save that part alone"),
        ({1: torch.zeros(1)}, "top-level keys are 1"),
    ],
)
def test_not_a_dict_of_tensors(content, reason, tmp_path):
    """A training checkpoint: the user sees what is in it, instead of 300 missing tensors."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=reason):
        read_tensors(tmp_path / "weights.pth")


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
