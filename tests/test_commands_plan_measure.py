"""``dinomed3d plan --measure``: steps that are run, and plans that were seen to fit."""

import json
import math
from pathlib import Path

import pytest
import torch

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.planning import measured_step
from nnunetv2_dinomed3d.planning.measured_step import (
    Measured,
    choose_measured,
    measure_step,
    steps_of,
    training_hours,
)
from nnunetv2_dinomed3d.planning.step_memory import MemoryUse, Step
from nnunetv2_dinomed3d.planning.training_memory import PLANS_NAME, TrainingMemory
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano
from tests.command_line import NANO, assert_one_line
from tests.trainers.quick_trainers import nnUNetTrainerQuick

BUDGET = 10**9
COMMAND = ["plan", "-d", "901", "-tr", NANO]


def by_voxels(step: Step) -> MemoryUse:
    """A quick estimate."""
    return MemoryUse(0, 0, 0, 100 * math.prod(step.batch_shape), 0)


@pytest.fixture
def memory(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingMemory:
    """Of large cases."""
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.training_step_memory", by_voxels)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [90, 512, 512]
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    return TrainingMemory(nnUNetTrainerDINOMed3D_nano, plans, "3d_fullres", dataset)


def times_estimate(factor: float) -> measured_step.Measure:
    """A GPU on which steps take so many times the estimate."""
    return lambda step: Measured(round(factor * by_voxels(step).total), 0.5)


def test_what_fits_is_kept(memory: TrainingMemory) -> None:
    choice, measured = choose_measured(memory, BUDGET, times_estimate(1.0))
    assert choice == memory.choose(BUDGET)
    assert list(measured) == ["stage 1", "stage 2"]


def test_what_takes_more_than_estimated_is_planned_smaller(memory: TrainingMemory) -> None:
    choice, measured = choose_measured(memory, BUDGET, times_estimate(1.3))
    assert choice.patch_size < memory.choose(BUDGET).patch_size
    assert max(result.nbytes or 0 for result in measured.values()) <= BUDGET


def test_what_runs_out_of_memory_is_planned_smaller(memory: TrainingMemory) -> None:
    largest = 0.6 * BUDGET

    def measure(step: Step) -> Measured | None:
        return None if by_voxels(step).total > largest else Measured(by_voxels(step).total, 0.5)

    choice, _ = choose_measured(memory, BUDGET, measure)
    assert max(use.total for use in choice.memory.values()) <= largest


def test_a_gpu_on_which_nothing_fits(memory: TrainingMemory) -> None:
    with pytest.raises(ValueError, match="Not even the smallest patch"):
        choose_measured(memory, BUDGET, lambda step: None)


def test_hours_are_those_of_all_steps(memory: TrainingMemory) -> None:
    memory.trainer = nnUNetTrainerQuick  # 2 epochs of 2 steps in each stage
    choice = memory.choose(BUDGET)
    measured = {"stage 1": Measured(None, 900.0), "stage 2": Measured(None, 1800.0)}
    assert training_hours(steps_of(memory, choice), measured) == pytest.approx(3.0)


def test_a_step_that_is_run_trains() -> None:
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    before = network.weight.detach().clone()
    result = measure_step(Step("training", lambda: network, (2, 1, 4, 8, 8)), "cpu")
    assert result is not None
    assert result.nbytes is None
    assert result.seconds > 0
    assert not torch.equal(network.weight, before)


def test_out_of_memory_is_a_result() -> None:
    def build() -> torch.nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measure_step(Step("training", build, (1, 1, 4, 8, 8)), "cpu") is None


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("visible", "target", "message"),
    [(None, [], "PyTorch sees none"), (24e9, ["-gpu_memory_target", "80"], "-gpu_memory_target is 80, and .* 24.0 GB")],
)
def test_where_nothing_can_be_measured(
    visible: float | None, target: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.visible_gpu_memory", lambda: visible)
    code = main([*COMMAND, "--measure", *target])
    assert_one_line(code, capsys.readouterr().err, message)


@pytest.mark.end_to_end
def test_plans_and_what_was_measured(
    planned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; the steps themselves are run on the CPU."""
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.visible_gpu_memory", lambda: 3 * 10**9)
    monkeypatch.setattr(choose_measured, "__defaults__", (lambda step: measure_step(step, "cpu"),))
    assert main([*COMMAND, "--measure"]) == 0
    output = capsys.readouterr().out
    for stage in (1, 2):
        assert f"Measured, 3d_fullres, stage {stage}: " in output
    assert "3d_fullres: the steps of a training take " in output
    assert (planned / f"{PLANS_NAME}.json").exists()


def test_a_stock_trainer_is_measured_with_its_own_plans(
    planned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.visible_gpu_memory", lambda: 3 * 10**9)
    monkeypatch.setattr(measured_step.measure_planned, "__defaults__", (lambda step: None,))
    files = set(planned.iterdir())
    assert main(["plan", "-d", "901", "-tr", "nnUNetTrainer", "--measure"]) == 0
    assert "Measured, 3d_fullres, training: this GPU's memory is not enough." in capsys.readouterr().out
    assert set(planned.iterdir()) == files
