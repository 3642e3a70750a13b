"""Checkpoints of nnU-Net are read whatever numpy wrote them; damaged and hostile ones are refused with the reason."""

import zipfile

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d.weights.files import read_checkpoint
from tests.made_up_weights import Malicious, checkpoint, dump_pickle, save_legacy

pytestmark = pytest.mark.own


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
    """A failed download leaves such files."""
    (tmp_path / "checkpoint.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"neither a safetensors nor a PyTorch file.*name another checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pth")
