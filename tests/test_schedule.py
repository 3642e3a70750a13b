"""Which stage trains when, and with what learning rate."""

import pytest
import torch

from nnunetv2_dinomed3d.trainers.dinomed3d.lr_schedulers import StagePolyLRScheduler
from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Recipe, Schedule

SCHEDULE = Schedule(stage1=Recipe(epochs=3, lr=1e-5), stage2=Recipe(epochs=5, lr=1e-4))


def test_stages_follow_each_other() -> None:
    assert [SCHEDULE.stage(epoch) for epoch in range(SCHEDULE.epochs)] == [1] * 3 + [2] * 5
    assert [SCHEDULE.first_epoch(stage) for stage in (1, 2)] == [0, 3]
    assert SCHEDULE.recipe(1).lr == 1e-5
    assert SCHEDULE.recipe(2).lr == 1e-4


@pytest.mark.parametrize("stage", [1, 2])
def test_poly_schedule_is_restarted_in_each_stage(stage: int) -> None:
    recipe, first = SCHEDULE.recipe(stage), SCHEDULE.first_epoch(stage)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = StagePolyLRScheduler(optimizer, recipe, first)
    for epoch in range(recipe.epochs):
        scheduler.step(first + epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(recipe.lr * (1 - epoch / recipe.epochs) ** 0.9)
