"""progress.png: the switch is marked, and stage 1's Dice, of slabs, is not drawn as if it were stage 2's."""

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.trainers.dinomed3d.progress_plot import STAGE1_COLOUR, StagedLogger
from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Recipe, Schedule
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.ablations import nnUNetTrainerDINOMed3D_stage1
from nnunetv2_dinomed3d.training_log import read_logs
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

DICE = [0.8, 0.9, 0.1, 0.2, 0.3]
TWO_STAGES = Schedule(Recipe(2, 1e-3), Recipe(3, 1e-3))


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are when nnU-Net saves them."""
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def fail(message: str) -> None:
    pytest.fail(message)


def logger(schedule: Schedule, epochs: int, warn: Callable[[str], None] = fail) -> StagedLogger:
    log = StagedLogger(False, lambda: schedule, warn)
    for key in log.my_fantastic_logging:
        for epoch in range(epochs):
            log.log(key, DICE[epoch] if "dice" in key else float(epoch), epoch)
    return log


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of each line of the Dice axis, without NaN."""
    axis = next(axis for axis in figure.axes if axis.get_ylabel() == "pseudo dice")
    found = {}
    for line in axis.get_lines():
        x, y = (np.asarray(values, float) for values in line.get_data())
        found[str(line.get_label())] = (list(x[~np.isnan(y)]), list(y[~np.isnan(y)]))
    return found


def marks(axis: Axes) -> list[float]:
    places = [float(np.asarray(line.get_xdata(), float)[0]) for line in axis.get_lines()]
    return [place for place in places if place % 1 == 0.5]


def test_the_stages_are_drawn_apart(saved: list[Figure], tmp_path: Path) -> None:
    log = logger(TWO_STAGES, 5)
    before = deepcopy(log.get_checkpoint())
    log.plot_progress_png(str(tmp_path))
    assert (tmp_path / "progress.png").stat().st_size > 10_000
    (figure,) = saved
    stage1, stage2 = ([0, 1], DICE[:2]), ([2, 3, 4], DICE[2:])
    assert curves(figure) == {
        "pseudo dice": stage2,
        "pseudo dice (mov. avg.)": stage2,
        "pseudo dice (stage 1, slabs)": stage1,
        "mov. avg. (stage 1, slabs)": stage1,
    }
    dice_axis = next(axis for axis in figure.axes if axis.get_ylabel() == "pseudo dice")
    pale = [line.get_label() for line in dice_axis.get_lines() if line.get_color() == STAGE1_COLOUR]
    assert pale == ["pseudo dice (stage 1, slabs)", "mov. avg. (stage 1, slabs)"]
    assert {text.get_text() for text in dice_axis.get_legend().get_texts()} == set(curves(figure))
    others = [axis for axis in figure.axes if axis is not dice_axis]
    assert [axis.get_ylabel() for axis in others] == ["loss", "time [s]", "learning rate"]
    for axis in others:
        assert marks(axis) == [1.5]
        assert [text.get_text() for text in axis.texts] == ["stage 2"]
    assert log.get_checkpoint() == before, "the log is nnU-Net's"


def test_before_the_switch_all_is_stage_1(saved: list[Figure], tmp_path: Path) -> None:
    logger(TWO_STAGES, 2).plot_progress_png(str(tmp_path))
    assert curves(saved[0])["pseudo dice"] == ([], [])
    assert curves(saved[0])["pseudo dice (stage 1, slabs)"] == ([0, 1], DICE[:2])
    assert not any(marks(axis) for axis in saved[0].axes)


@pytest.mark.parametrize("stage", [1, 2])
def test_without_a_switch_it_is_nnunets_own(stage: int, saved: list[Figure], tmp_path: Path) -> None:
    logger(TWO_STAGES.without(stage), 3).plot_progress_png(str(tmp_path))
    assert curves(saved[0]) == {
        "pseudo dice": ([0, 1, 2], DICE[:3]),
        "pseudo dice (mov. avg.)": ([0, 1, 2], DICE[:3]),
    }
    assert not any(marks(axis) or axis.texts for axis in saved[0].axes)


def test_a_stage_1_that_ended_early(saved: list[Figure], tmp_path: Path) -> None:
    """The released recipe's; the trainer's schedule is another one from then on."""
    log = logger(TWO_STAGES, 5)
    schedules = [TWO_STAGES.with_stage1_ended(1)]
    log._schedule = lambda: schedules[0]
    log.plot_progress_png(str(tmp_path))
    assert curves(saved[0])["pseudo dice"] == ([1, 2, 3, 4], DICE[1:])
    assert marks(saved[0].axes[0]) == [0.5]


@pytest.mark.end_to_end
@pytest.mark.parametrize("schedule", [TWO_STAGES, TWO_STAGES.without(1)])
def test_figures_do_not_pile_up(schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of nnU-Net's takes 65 MB, and Python alone collects it many epochs later."""
    drawn, save = [], Figure.savefig

    def remember(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(weakref.ref(figure))
        if len(drawn) == 3:
            raise OSError("the disk is full")
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    mine = pyplot.figure().number
    log = logger(schedule, 3, lambda message: None)
    gc.disable()  # the picture's own doing, not Python's
    try:
        for _ in range(4):
            log.plot_progress_png(str(tmp_path))
        assert [figure() for figure in drawn] == [None] * 4
    finally:
        gc.enable()
    assert pyplot.get_fignums() == [mine]
    pyplot.close(mine)
    assert Figure.savefig is remember
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_a_picture_that_fails_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is warned of once; the last good picture stays."""
    warnings: list[str] = []
    log = logger(TWO_STAGES, 3, warnings.append)
    log.plot_progress_png(str(tmp_path))
    before = (tmp_path / "progress.png").read_bytes()

    def half(figure: Figure, path: str, **kwargs: Any) -> None:
        Path(path).write_bytes(before[:100])
        raise OSError(28, "No space left\non device")

    monkeypatch.setattr(Figure, "savefig", half)
    for _ in range(3):
        log.plot_progress_png(str(tmp_path))
    assert warnings == [
        "progress.png could not be drawn (OSError: [Errno 28] No space left on device). The training goes on without "
        "it."
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
    assert (tmp_path / "progress.png").read_bytes() == before


def test_the_learning_rates_are_the_trainings(saved: list[Figure], tmp_path: Path) -> None:
    log = logger(TWO_STAGES, 5)
    log.my_fantastic_logging["lrs"] = rates = [1e-5, 2e-6, 1e-4, 5e-5, 1e-7]
    log.plot_progress_png(str(tmp_path))
    axis = next(axis for axis in saved[0].axes if axis.get_ylabel() == "learning rate")
    assert np.asarray(axis.get_lines()[0].get_ydata()).tolist() == rates
    low, high = axis.get_ylim()
    assert low <= min(rates) < max(rates) <= high


@pytest.mark.end_to_end
def test_a_resumed_training_draws_the_same_picture(
    make_trainer: Callable[..., nnUNetTrainerDINOMed3D], saved: list[Figure]
) -> None:
    trained = make_trainer(nnUNetTrainerSeeded)
    trained.run_training()
    dice = trained.logger.get_value("mean_fg_dice", step=None)
    assert curves(saved[-1])["pseudo dice (stage 1, slabs)"] == ([0, 1], dice[:2])
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(str(Path(trained.output_folder) / "checkpoint_final.pth"))
    resumed.logger.plot_progress_png(resumed.output_folder)
    assert curves(saved[-1]) == curves(saved[-2])
    assert [marks(axis) for axis in saved[-1].axes] == [marks(axis) for axis in saved[-2].axes]
    log = read_logs(Path(trained.output_folder))
    written = [epoch.pseudo_dice for epoch in log.finished.values()]
    assert written == pytest.approx(dice, abs=1e-4), "the text log is nnU-Net's"
    parameters = list(trained.module.parameters())
    assert log.parameters == dict.fromkeys((1, 2), sum(p.numel() for p in parameters))
    assert log.trained[2] == sum(p.numel() for p in parameters if p.requires_grad)
    assert 0 < log.trained[1] < log.parameters[1]


def test_trainers_of_one_stage(make_trainer: Callable[..., nnUNetTrainerDINOMed3D], saved: list[Figure]) -> None:
    class OneStage(nnUNetTrainerDINOMed3D_stage1, nnUNetTrainerQuick):
        pass

    trainer = make_trainer(OneStage)
    trainer.logger.local_logger.load_checkpoint(logger(TWO_STAGES, 2).get_checkpoint())
    trainer.logger.plot_progress_png(trainer.output_folder)
    assert set(curves(saved[0])) == {"pseudo dice", "pseudo dice (mov. avg.)"}
