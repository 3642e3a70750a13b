"""``dinomed3d plan`` in a process; what it plans is tested in test_planning_planner.py."""

import json
from pathlib import Path

import pytest

from tests.command_line import NANO, dinomed3d


@pytest.mark.end_to_end
@pytest.mark.usefixtures("planned")
def test_plans_and_the_command_to_train_with_them() -> None:
    done = dinomed3d("plan", "-d", "901", "-tr", NANO, "-gpu_memory_target", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Planning for {NANO} on a GPU of 3.0 GB.\n")  # and no library speaks before
    assert f"nnUNetv2_train 901 3d_fullres 0 -tr {NANO} -p " in done.stdout


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("network", "configuration", "divisor", "not_planned"),
    [("SwinUNETR", "3d_fullres", 32, "2D: 2d"), ("DinoUNet_S", "2d", 32, "3D: 3d_fullres")],
)
def test_a_baseline_gets_plans_of_its_own(
    planned: Path, network: str, configuration: str, divisor: int, not_planned: str
) -> None:
    trainer = f"nnUNetTrainerBaseline_{network}"
    done = dinomed3d("plan", "-d", "901", "-tr", trainer, "-gpu_memory_target", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"nnUNetv2_train 901 {configuration} 0 -tr {trainer} -p nnUNetPlans_{network}" in done.stdout
    assert f"Not planned, as they are {not_planned}." in done.stdout
    plans = json.loads((planned / f"nnUNetPlans_{network}.json").read_text())
    assert plans["plans_name"] == f"nnUNetPlans_{network}"
    (only,) = plans["configurations"].items()
    assert only[0] == configuration
    assert all(side % divisor == 0 for side in only[1]["patch_size"])
