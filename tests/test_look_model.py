"""Reading a trained model: nothing in its files is run, and a malformed file is named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.look.model import load_model
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.command_line import NANO
from tests.conftest import DATASET
from tests.look_models import CHECKPOINT, case_of, write_model
from tests.made_up_weights import Malicious

pytestmark = pytest.mark.own


def test_nothing_that_is_read_is_run(
    make_trainer: Callable[..., nnUNetTrainer], preprocessed: Path, tmp_path: Path
) -> None:
    """A colleague's results folder and data set: neither the checkpoint nor the pickle beside a case is unpickled."""
    folder = write_model(make_trainer, trainer_class(NANO))
    made = tmp_path / "made_by_the_code"
    torch.save({"network_weights": Malicious(made), "trainer_name": NANO}, folder / "fold_0" / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth holds posix.mkdir.*never run"):
        load_model(folder / "fold_0" / "evil.pth")
    model = load_model(folder / CHECKPOINT)
    pickled = preprocessed / model.predictor.configuration_manager.data_identifier / "case_0.pkl"
    content = pickled.read_bytes()
    try:
        pickled.write_bytes(pickle.dumps(Malicious(made)))
        case = case_of(model)
    finally:
        pickled.write_bytes(content)
    assert case.reference is not None
    assert not made.exists()


def test_title_names_trainer_fold_and_checkpoint(make_trainer: Callable[..., nnUNetTrainer]) -> None:
    model = load_model(write_model(make_trainer, trainer_class(NANO)) / CHECKPOINT)
    assert model.title == f"{NANO}, fold 0, checkpoint_final.pth"
    assert (model.trainer.__name__, model.network.stage) == (NANO, 2)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("plans.json", "[]", "plans.json is no plans file of nnU-Net"),
        ("plans.json", "[" * 100_000, "plans.json is no valid JSON"),
        ("plans.json", '{"configurations": {"3d_fullres": {"patch_size": [1e9]}}}', "plans.json is no plans file"),
        ("dataset.json", "{}", "dataset.json: there are no labels"),
        ("dataset.json", None, "dataset.json is no file"),
    ],
)
def test_odd_model_folder(
    file: str, content: str | None, message: str, nnunet_environment: dict[str, str], tmp_path: Path
) -> None:
    """Written by hand, or by a stranger: one line that names the file."""
    folder = tmp_path / DATASET / f"{NANO}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    description = {"labels": {"background": 0, "box": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    checkpoint = {"network_weights": {}, "trainer_name": NANO, "init_args": {"configuration": "3d_fullres"}}
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    if content is None:
        (folder / file).unlink()
        os.mkfifo(folder / file)
    else:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_model(folder / CHECKPOINT)
