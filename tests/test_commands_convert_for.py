"""``dinomed3d convert --for``: a checkpoint starts a training on a data set that its network does not fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from benchmarks import random_models
from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.planning.planned_network import PlannedInput, PlannedNetwork
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer
from nnunetv2_dinomed3d.trainers.registry import find_trainer
from nnunetv2_dinomed3d.weights.files import read_checkpoint
from tests.command_line import NANO, assert_one_line
from tests.test_features_helpers import brief_trainers, load, make_dataset, nested_boxes, train
from tests.tiny_baselines import options_of

OLD, NEW = "Dataset951_Old", "Dataset952_New"
TRAINING = ("--for", "952", "-tr", NANO)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plans of an old data set of 1 channel and 2 classes, and of a new one of 2 and 4."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for dataset, channels, classes, patch in ((OLD, 1, 2, [4, 200, 32]), (NEW, 2, 4, [64, 64, 64])):
        full = random_models.configuration((1, 1, 1), patch, (4, 8, 8), channels)
        configurations = {
            "3d_fullres": full,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            "2d": {**full, "patch_size": patch[1:], "spacing": [1, 1]},
        }
        plans = random_models.plans(configurations) | {"dataset_name": dataset}
        description = {
            "channel_names": {str(i): "MRI" for i in range(channels)},
            "labels": {"background": 0, **{f"organ {i}": i for i in range(1, classes)}},
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        folder = tmp_path / "nnUNet_preprocessed" / dataset
        folder.mkdir()
        (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def planned(folders: Path, dataset: str, trainer: str, configuration: str = "3d_fullres") -> PlannedNetwork:
    folder = folders / "nnUNet_preprocessed" / dataset
    found = PlannedInput.read(folder / "nnUNetPlans.json", configuration, folder / "dataset.json")
    return PlannedNetwork(find_trainer(trainer), found)


def write_checkpoint(folders: Path, trainer: str, network: nn.Module, **init_args: Any) -> Path:
    """What a training on the old data set leaves."""
    folder = folders / "nnUNet_preprocessed" / OLD
    arguments = {
        "plans": json.loads((folder / "nnUNetPlans.json").read_text()),
        "configuration": "3d_fullres",
        "fold": 0,
        "dataset_json": json.loads((folder / "dataset.json").read_text()),
        "device": torch.device("cpu"),
        **init_args,
    }
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "logging": {"ema_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": arguments,
        "trainer_name": trainer,
    }
    torch.save(content, folders / "checkpoint_final.pth")
    return folders / "checkpoint_final.pth"


@pytest.fixture
def checkpoint(folders: Path) -> Path:
    """Of the nano network."""
    return write_checkpoint(folders, NANO, planned(folders, OLD, NANO).build())


def weights_of(file: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = read_checkpoint(file)["network_weights"]
    return weights


def assert_starts(network: nn.Module, file: Path) -> None:
    """nnU-Net's ``-pretrained_weights`` takes all of the file, and leaves its own in the heads alone."""
    load_pretrained_weights(network, str(file))
    state, written = network.state_dict(), weights_of(file)
    assert all(torch.equal(state[name], tensor) for name, tensor in written.items())
    assert all(".seg_layers." in name for name in state.keys() - written.keys())


def test_other_channels_classes_slices_and_scale(
    folders: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trainer = folders / "made" / "my start.pth", f"{NANO}_K5"
    assert main(["convert", str(checkpoint), "--for", "952", "-tr", trainer, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"checkpoint_final.pth of {NANO}, for {trainer} on 3d_fullres of {NEW} (nnUNetPlans):\n")
    assert re.search(r"^module +taken +spread +left random +not used$", printed, re.MULTILINE)
    assert re.search(r"^encoder +\d+ \([\d,]+\) +1 \(245,760\) +- +-$", printed, re.MULTILINE)
    assert re.search(r"^\d\d\.\d% of the network's numbers come from the checkpoint\.$", printed, re.MULTILINE)
    assert "Spread, 1 to 2 image channels, K = 3 to 5 slices: encoder.ice.conv.weight.\n" in printed
    assert "Left random, segmentation layer, which each training draws anew: proxy_head.seg_layers.weight," in printed
    assert "Taken, named adapter.levels.3.3.1.weight in the checkpoint" not in printed, "S = 2 has the name, too"
    assert "Taken, named adapter.levels.2.3.weight in the checkpoint: adapter.levels.2.3.1.weight." in printed
    assert "Left random, resampling of another in-plane scale S" in printed
    command = f"nnUNetv2_train 952 3d_fullres 0 -tr {trainer} -p nnUNetPlans -pretrained_weights '{out}'"
    assert printed.endswith(f"To train from it: {command}\n")

    network = planned(folders, NEW, trainer).build()
    assert_starts(network, out)
    content = read_checkpoint(out)
    assert content["trainer_name"] == trainer
    record = content["init_args"]["converted_for"]
    assert (record["dataset"], record["configuration"], record["plans"]) == (NEW, "3d_fullres", "nnUNetPlans")
    fitted = [*record["taken"], *record["spread"], *record["left random"]]
    assert sorted(fitted) == sorted(network.state_dict())
    assert content["init_args"]["converted_from"]["trainer"] == NANO


def test_an_equal_network(folders: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folders / "out.pth"
    assert main(["convert", str(checkpoint), "--for", OLD, "-tr", NANO, "-o", str(out)]) == 0
    assert "The network is the same" in capsys.readouterr().out
    assert_starts(planned(folders, OLD, NANO).build(), out)


def test_a_cascade(folders: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folders / "out.pth"
    assert main(["convert", str(checkpoint), *TRAINING, "-c", "3d_cascade_fullres", "-o", str(out)]) == 0
    assert "1 to 2 image channels, 0 to 3 channels of a coarser segmentation (zero)" in capsys.readouterr().out
    assert not weights_of(out)["encoder.ice.conv.weight"][:, 2:].any()


@pytest.mark.parametrize(
    ("trainer", "inputs", "left"),
    [
        ("nnUNetTrainer", 1, set()),
        ("nnUNetTrainerBaseline_nnFormer", 1, {"position_bias"}),
        ("nnUNetTrainerBaseline_SwinUNETR", 3, {"network.out"}),
        ("nnUNetTrainerBaseline_UMambaEnc", 2, set()),
    ],
)
def test_networks_of_others(
    trainer: str, inputs: int, left: set[str], folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's own holds its encoder twice; nnFormer's position biases follow from the patch."""
    if trainer != "nnUNetTrainer":
        pytest.importorskip("monai")
        monkeypatch.setattr(BaselineTrainer, "network_options", classmethod(options_of))
    source = write_checkpoint(folders, trainer, planned(folders, OLD, trainer).build())
    out = folders / "out.pth"
    assert main(["convert", str(source), "--for", "952", "-tr", trainer, "-o", str(out)]) == 0
    assert_starts(planned(folders, NEW, trainer).build(), out)
    record = read_checkpoint(out)["init_args"]["converted_for"]
    assert list(record["spread"].values()) == ["1 to 2 image channels"] * inputs
    others = {name for name in record["left random"] if ".seg_layers." not in name}
    assert all(any(part in name for part in left) for name in others), others
    assert all(any(part in name for name in others) for part in left), others
    old, new = weights_of(source), weights_of(out)
    assert all(torch.equal(old[name], new[name]) for name in record["taken"])


def test_what_convert_made_of_the_authors(folders: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no plans, and of stage 1 only the parts that it trained. What is random is the same each time."""
    content = load(checkpoint)
    content["init_args"] = {"converted_from": {"file": "stage1_best.pth"}}
    kept = ("encoder.", "proxy_head.", "_extra_state")
    content["network_weights"] = {n: t for n, t in content["network_weights"].items() if n.startswith(kept)}
    content["network_weights"]["_extra_state"] = torch.tensor(1)
    torch.save(content, checkpoint)
    assert main(["convert", str(checkpoint), *TRAINING, "-o", str(folders / "out.pth")]) == 0
    printed = capsys.readouterr().out
    assert "Left random, not in the checkpoint: adapter.levels.0.0.weight" in printed
    assert_starts(planned(folders, NEW, NANO).build(), folders / "out.pth")
    assert main(["convert", str(checkpoint), *TRAINING, "-o", str(folders / "again.pth")]) == 0
    once, again = (weights_of(folders / name) for name in ("out.pth", "again.pth"))
    assert all(torch.equal(once[name], again[name]) for name in once)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "952"], "--for needs the trainer that will start from OUT: name it with -tr"),
        (["-tr", NANO], "-tr goes with --for DATASET alone"),
        (["-p", "nnUNetPlans"], "-p goes with --for DATASET alone"),
        ([*TRAINING, "--plans", "p.json", "--dataset-json", "d.json"], "--for goes with neither --plans nor"),
        ([*TRAINING, "-p", "../plans"], r"-p '\.\./plans' is no name of plans"),
        (["--for", "953", "-tr", NANO], "No data set '953'"),
        ([*TRAINING, "-p", "nnUNetOther"], r"nnUNetOther\.json does not exist.*Name others with -p, or make them"),
        ([*TRAINING, "-c", "3d_lowres"], "has no configuration '3d_lowres'; it has 3d_fullres, 3d_cascade_fullres, 2d"),
        ([*TRAINING, "-c", "2d"], r"'2d' has the patch size \[64, 64\]: it is 2D, and this network takes volumes"),
        (["--for", "952", "-tr", f"{NANO}_K9"], "There is no trainer 'nnUNetTrainerDINOMed3D_nano_K9'"),
        (
            ["--for", "952", "-tr", "nnUNetTrainer"],
            rf"\({NANO}\) cannot be fitted to nnUNetTrainer on {NEW}: it is of another network. Of the \d+ weights",
        ),
    ],
)
def test_what_cannot_be_fitted(
    words: list[str], message: str, folders: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folders / "made" / "out.pth"
    code = main(["convert", str(checkpoint), *words, "-o", str(out)])
    assert_one_line(code, capsys.readouterr().err, message)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: {"model_state_dict": content["network_weights"]}, "not a checkpoint of nnU-Net.*--for takes"),
        (lambda content: {**content, "init_args": {"plans": []}}, "its init_args are not nnU-Net's"),
        (
            lambda content: {**content, "network_weights": {n: t / 0 for n, t in content["network_weights"].items()}},
            "holds NaN or infinity",
        ),
    ],
)
def test_checkpoints_that_are_none(
    change: Callable[[dict], dict], message: str, folders: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(change(load(checkpoint)), checkpoint)
    code = main(["convert", str(checkpoint), *TRAINING, "-o", str(folders / "out.pth")])
    assert_one_line(code, capsys.readouterr().err, message)
    assert not (folders / "out.pth").exists()


# ---- nnU-Net's commands ----

STILL_K5 = """

class nnUNetTrainerBriefStillK5(nnUNetTrainerBriefStill):
    slab_depth = 5
"""


@pytest.mark.end_to_end
def test_a_training_starts_from_it(nnunet_environment: dict[str, str], tmp_path: Path) -> None:
    """Learning rate 0: after both stages, all is as it was in the file."""
    rng = np.random.default_rng(0)
    cases = [nested_boxes((7, 20, 18), rng) for _ in range(5)]
    old = make_dataset(953, [(image, labels > 0) for image, labels in cases], {"background": 0, "box": 1})
    cases = [nested_boxes((7, 20, 18), rng, channels=2) for _ in range(5)]
    new = make_dataset(954, cases, {"background": 0, "box": 1, "core": 2})
    with brief_trainers(tmp_path):
        trainer = "nnUNetTrainerBriefStillK5"
        with (tmp_path / "brief_trainers.py").open("a") as file:
            file.write(STILL_K5)
        train(old.number, "3d_fullres", 0, "-tr", "nnUNetTrainerBrief")
        source, out = old.model("nnUNetTrainerBrief") / "fold_0" / "checkpoint_final.pth", tmp_path / "start.pth"
        assert main(["convert", str(source), "--for", "954", "-tr", trainer, "-o", str(out)]) == 0
        train(new.number, "3d_fullres", 0, "-tr", trainer, "-pretrained_weights", out)
    start, end = load(out)["network_weights"], load(new.model(trainer) / "fold_0" / "checkpoint_final.pth")
    trained = end["network_weights"]
    assert trained["encoder.ice.conv.weight"].shape[1:3] == (2, 5)
    assert {name for name, weight in start.items() if not torch.equal(weight, trained[name])} == set()
    assert trained.keys() - start.keys() == {
        f"{head}.seg_layers.{kind}" for head in ("decoder", "proxy_head") for kind in ("weight", "bias")
    }
    assert np.isfinite(end["logging"].get("local_logger", end["logging"])["train_losses"]).all()
