"""The plans that ``dinomed3d plan`` writes, and what it refuses to plan from."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.planning.training_memory import PLANS_NAME
from tests.conftest import DATASET, preprocess
from tests.plans import by_voxels, read
from tests.test_features_helpers import brief_trainers


def test_plans_differ_in_patch_and_batch_alone(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-d", "901", "-gpu_memory_target", "3", "-tr", "nnUNetTrainerDINOMed3D_nano"]) == 0
    stock, ours = read(planned, "nnUNetPlans"), read(planned, PLANS_NAME)
    assert list(ours["configurations"]) == ["3d_fullres"]
    theirs, mine = stock["configurations"]["3d_fullres"], ours["configurations"]["3d_fullres"]
    assert mine["patch_size"] == [9, 32, 28]
    assert mine["batch_size"] == 2
    assert {k: v for k, v in mine.items() if k not in ("patch_size", "batch_size")} == {
        k: v for k, v in theirs.items() if k not in ("patch_size", "batch_size")
    }
    assert ours.pop("dinomed3d") == {
        "based_on": "nnUNetPlans",
        "trainer": "nnUNetTrainerDINOMed3D_nano",
        "gpu_memory_target_in_gb": 3.0,
    }
    assert ours["plans_name"] == PLANS_NAME
    changed = {"configurations", "plans_name", "experiment_planner_used"}
    assert {k: v for k, v in ours.items() if k not in changed} == {k: v for k, v in stock.items() if k not in changed}
    output = capsys.readouterr().out
    header, stage1, stage2 = output[output.index("configuration ") :].splitlines()[:3]
    assert [word for word in header.split() if word in ("weights", "gradients", "optimiser", "activations")]
    assert stage1.split()[:6] == ["3d_fullres", "9x32x28", "4", "slabs", "stage", "1"]
    assert stage2.split()[:6] == ["3d_fullres", "9x32x28", "4", "2", "stage", "2"]
    assert stage1.split()[-1] == stage2.split()[-1] == "yes"


@pytest.mark.end_to_end
def test_every_3d_configuration_is_planned(planned: Path) -> None:
    plans = read(planned, "nnUNetPlans")
    plans["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "low",
        "median_image_size_in_voxels": [5, 20, 18],
        "next_stage": "3d_cascade_fullres",
    }
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["plans_name"] = "cascadePlans"
    (planned / "cascadePlans.json").write_text(json.dumps(plans))
    arguments = ["plan", "-d", DATASET, "-p", "cascadePlans", "-gpu_memory_target", "3"]
    assert main([*arguments, "-tr", "nnUNetTrainerDINOMed3D_nano"]) == 0
    configurations = read(planned, PLANS_NAME)["configurations"]
    assert configurations["3d_lowres"]["patch_size"] == [5, 20, 20]
    assert configurations["3d_lowres"]["data_identifier"] == "low"
    assert configurations["3d_cascade_fullres"] == {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
        "patch_size": configurations["3d_fullres"]["patch_size"],
        "batch_size": configurations["3d_fullres"]["batch_size"],
    }


def spoiled(plans: dict, **changes: object) -> dict:
    """Plans whose 3D configuration has other values; None takes one away."""
    configuration = plans["configurations"]["3d_fullres"] | changes
    return plans | {"configurations": {"3d_fullres": {k: v for k, v in configuration.items() if v is not None}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "902"], "No data set '902'"),
        (["-d", "901", "-p", "otherPlans"], "otherPlans.json does not exist.*nnUNetv2_plan_and_preprocess"),
        (["-d", "901", "-gpu_memory_target", "1"], "Not even the smallest patch, .* fits 1.0 GB"),
        (["-d", "901", "-tr", "no_such"], "There is no trainer 'no_such'. .*nnUNet_extTrainer"),
        (["-d", "901", "-tr", "nnUNetTrainerDINOMed3D_s"], "Is nnUNetTrainerDINOMed3D_S meant"),
        (["-d", "901", "-p", "flatPlans"], "flatPlans of Dataset901_Test has only 2D configurations \\(2d\\)"),
        (["-d", "901", "-p", "listPlans"], "listPlans.json holds no plans"),
        (["-d", "901", "-p", "emptyPlans"], "emptyPlans.json holds no plans"),
        (["-d", "901", "-p", "noPatchPlans"], "configuration '3d_fullres' is malformed \\(no 'patch_size'\\)"),
        (["-d", "901", "-p", "textPatchPlans"], "malformed .*patch_size is"),
        (["-d", "901", "-p", "nanPlans"], "malformed .*median image size is"),
        (["-d", "901", "-p", "loopPlans"], "malformed .*"),
        (["-d", "901", "-p", "brokenPlans"], "brokenPlans.json is no valid JSON"),
    ],
)
def test_mistakes(planned: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    plans = read(planned, "nnUNetPlans")
    kinds = {
        "flat": plans | {"configurations": {"2d": plans["configurations"]["2d"]}},
        "list": [plans],
        "empty": {},
        "noPatch": spoiled(plans, patch_size=None),
        "textPatch": spoiled(plans, patch_size=["8", 8, 8]),
        "nan": spoiled(plans, median_image_size_in_voxels=[math.nan, 8, 8]),
        "loop": spoiled(plans, inherits_from="3d_fullres"),
    }
    for name, content in kinds.items():
        (planned / f"{name}Plans.json").write_text(json.dumps(content))
    (planned / "brokenPlans.json").write_text("{")
    trainer = [] if "-tr" in arguments else ["-tr", "nnUNetTrainerDINOMed3D_nano"]
    assert main(["plan", *arguments, *trainer]) == 1
    error = capsys.readouterr().err
    assert re.search(f"^dinomed3d: .*{message}", error)
    assert len(error.splitlines()) == 1
    assert not (planned / f"{PLANS_NAME}.json").exists()


OWN = """
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano

class nnUNetTrainerMine(nnUNetTrainerDINOMed3D_nano):
    slab_batch_size = 7
"""


@pytest.mark.end_to_end
def test_a_users_own_trainer_and_preprocessed_data_alone(
    planned: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """nnU-Net finds it, and the training log tells to plan for it; raw images are often gone by then."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text(OWN)
    (tmp_path / "preprocessed").mkdir()
    shutil.copytree(planned, tmp_path / "preprocessed" / DATASET, ignore=shutil.ignore_patterns("*_3d_fullres", "*_2d"))
    settings = {"nnUNet_extTrainer": str(own), "nnUNet_preprocessed": str(tmp_path / "preprocessed")}
    settings |= {"nnUNet_raw": "", "nnUNet_results": ""}
    output = run("dinomed3d", "plan", "-d", "901", "-gpu_memory_target", "8", "-tr", "nnUNetTrainerMine", **settings)
    assert output.startswith("Planning for nnUNetTrainerMine on a GPU of 8.0 GB.")
    assert "Searching" not in output
    assert "nnUNetv2_train 901 3d_fullres 0 -tr nnUNetTrainerMine -p nnUNetDINOMed3DPlans" in output
    assert "Not planned, as they are 2D: 2d." in output
    assert re.search(r"3d_fullres leaves \d\.\d of 8\.0 GB free. A patch is at most as large as a case", output)
    assert read(tmp_path / "preprocessed" / DATASET, PLANS_NAME)["dinomed3d"]["trainer"] == "nnUNetTrainerMine"


def test_plans_that_were_there(planned: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are replaced, as nnU-Net's planner does, but for configurations of a user; at once, or not at all."""
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.training_step_memory", by_voxels)
    command = ["plan", "-d", "901", "-gpu_memory_target", "8", "-tr", "nnUNetTrainerDINOMed3D_nano"]
    file = planned / f"{PLANS_NAME}.json"
    assert main(command) == 0
    assert f"Written: {file}" in capsys.readouterr().out
    plans = read(planned, PLANS_NAME)
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    plans["configurations"]["3d_fullres"]["batch_size"] = 99
    file.write_text(json.dumps(plans))

    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert main(command) == 1
    assert "No space left" in capsys.readouterr().err
    assert read(planned, PLANS_NAME) == plans
    assert not list(planned.glob(".*"))
    assert main(command) == 0
    assert f"Replaced: {file}" in capsys.readouterr().out
    assert read(planned, PLANS_NAME)["configurations"]["mine"]["batch_size"] == 3
    assert read(planned, PLANS_NAME)["configurations"]["3d_fullres"]["batch_size"] == 2


@pytest.mark.parametrize("what", ["folder", "broken", "read-only"])
def test_plans_that_cannot_be_written(what: str, planned: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before minutes of counting."""

    def count(*rest: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.training_step_memory", count)
    file = planned / f"{PLANS_NAME}.json"
    if what == "folder":
        file.mkdir()
    elif what == "broken":
        file.write_text("{")
    else:

        def read_only(*rest: object, **more: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    try:
        assert main(["plan", "-d", "901", "-gpu_memory_target", "8", "-tr", "nnUNetTrainerDINOMed3D_nano"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line
    finally:
        if what == "folder":
            file.rmdir()


def files(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.long
@pytest.mark.parametrize(("dataset", "fold"), [("Dataset004_Hippocampus", "0"), ("Dataset005_BrainTumour2", "all")])
def test_both_networks_train_on_the_same_files(
    run: Callable[..., str],
    nnunet_environment: dict[str, str],
    shared: Path,
    tmp_path: Path,
    dataset: str,
    fold: str,
) -> None:
    """Ours on the plans that ``dinomed3d plan`` writes, and stock nnU-Net on its own, from the same files."""
    raw = Path(nnunet_environment["nnUNet_raw"]) / dataset
    shutil.copytree(shared / "data" / dataset, raw)
    preprocess(run, dataset[7:10], "3d_fullres")
    preprocessed = Path(nnunet_environment["nnUNet_preprocessed"]) / dataset
    data = files(preprocessed / "nnUNetPlans_3d_fullres")
    print(run("dinomed3d", "plan", "-d", dataset, "-tr", "nnUNetTrainerDINOMed3D_nano"))
    arguments = ("nnUNetv2_train", dataset, "3d_fullres", fold, "-device", "cpu")
    with brief_trainers(tmp_path):
        run(*arguments, "-tr", "nnUNetTrainerBrief", "-p", PLANS_NAME)
        run(*arguments, "-tr", "nnUNetTrainerBriefStock")
    assert data
    assert files(preprocessed / "nnUNetPlans_3d_fullres") == data
    assert [folder.name for folder in preprocessed.glob("*_3d_fullres")] == ["nnUNetPlans_3d_fullres"]
    for trainer, plans in (("nnUNetTrainerBrief", PLANS_NAME), ("nnUNetTrainerBriefStock", "nnUNetPlans")):
        folder = (
            Path(nnunet_environment["nnUNet_results"]) / dataset / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}"
        )
        assert (folder / "checkpoint_final.pth").is_file()
        assert (folder / "validation" / "summary.json").is_file()
