"""Files with checkpoints of the released code: what they hold is told, other files are refused with the reason."""

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d.weights import (
    ReferenceCheckpoint,
    describe_reference,
    load_reference_checkpoint,
    read_reference,
)
from tests.released_checkpoints import CLASSES, DEPTH, FILES, PATCH, RANK, E, drop, edit, network, states_of

pytestmark = pytest.mark.own


@pytest.fixture
def states(shared):
    return states_of(shared)


def test_description(states):
    """The converter chooses variant, classes and K by it."""
    assert describe_reference(states[1]) == ReferenceCheckpoint(1, CLASSES, 3, E, DEPTH, None)
    assert describe_reference(states[2]) == ReferenceCheckpoint(2, CLASSES, 3, E, DEPTH, RANK)


@pytest.mark.parametrize(
    ("stage", "fault", "reason"),
    [
        (1, drop("head.weight"), "head.weight: expected 4 dimensions, found no such tensor"),
        (
            2,
            drop(f"{PATCH}lora_A.default.weight"),
            "lora_A.default.weight: expected 4 dimensions, found no such tensor",
        ),
        (
            2,
            edit("decoder_final.cls_seg.weight", torch.flatten),
            r"cls_seg.weight: expected 5 dimensions, found \(96,\)",
        ),
        (2, lambda state: state.clear(), "no checkpoint of the released DINO-Med3D code"),
    ],
)
def test_no_description(stage, fault, reason, states):
    """Nothing is guessed of a checkpoint that does not tell."""
    fault(states[stage])
    with pytest.raises(ValueError, match=reason):
        describe_reference(states[stage])


@pytest.mark.parametrize("stage", [1, 2])
def test_reading_a_file(stage, states, tmp_path):
    """The released code saves epoch, optimiser state and numpy's numbers beside the weights."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    content = {
        "epoch": np.int64(7),
        "best_dice": np.float64(0.8),
        "history": [np.float32(0.5)],
        "optimizer_state_dict": optimizer,
        "model_state_dict": states[stage],
    }
    path = tmp_path / FILES[stage]
    torch.save(content, path)
    state = read_reference(path)
    assert state.keys() == states[stage].keys()
    assert load_reference_checkpoint(network(), state) == stage
    torch.save(states[stage], path)
    assert read_reference(path).keys() == states[stage].keys()


class Code:
    def __reduce__(self):
        return print, ("code in a checkpoint was run",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"model_state_dict": {"a.weight": torch.zeros(1)}},
            r"no tensor's name starts with .*the first of 1 are a.we",
        ),
        ({"network_weights": {}, "init_args": {}}, "top-level keys are network_weights, init_args"),
        ({"model_state_dict": [1]}, "a dict of tensors under the key model_state_dict"),
        ({"model_state_dict": Code()}, "more than plain tensors.*never run"),
        ([1], "holds a list"),
    ],
)
def test_file_of_another_kind(content, reason, tmp_path, capfd):
    """The user named the wrong file, or one that is not to be trusted."""
    path = tmp_path / "stage2_best.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"stage2_best.pth.*{reason}.*Name a checkpoint of the released"):
        read_reference(path)
    assert "was run" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>"])
def test_no_file_at_all(content, tmp_path):
    """A failed download leaves such files."""
    path = tmp_path / "stage2_best.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"stage2_best.pth is .*or download it again"):
        read_reference(path)


def test_truncated_file(states, tmp_path):
    """A copy that broke off."""
    path = tmp_path / "stage2_best.pth"
    torch.save({"model_state_dict": states[2]}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"stage2_best.pth is damaged.*or download it again"):
        read_reference(path)
