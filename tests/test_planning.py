"""dinomed3d plan: the estimate of memory against measured bytes, the choice, and the plans that are written."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from packaging.version import Version
from torch import nn
from torch._subclasses import FakeTensorMode

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.network_architecture.token_grid import TOKEN_SIZE, in_plane_scale
from nnunetv2_dinomed3d.planning.patch_choice import CLIP_DEPTH, candidates, choose_patch_and_batch
from nnunetv2_dinomed3d.planning.step_memory import (
    CUDA_RESERVE,
    MemoryUse,
    Step,
    _CudaAutocast,
    _Storages,
    training_step_memory,
)
from nnunetv2_dinomed3d.planning.training_memory import PLANS_NAME, TrainingMemory, memory_warning, training_steps
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness import trainer as trainer_module
from nnunetv2_dinomed3d.trainers.registry import find_trainer, trainer_class
from tests.conftest import DATASET, preprocess
from tests.test_features_helpers import brief_trainers
from tests.trainers.quick_trainers import nnUNetTrainerQuick

SLABS = 4


class nnUNetTrainerSmall(nnUNetTrainerDINOMed3D):
    variant = "small"
    slab_batch_size = SLABS


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measured(trainer: nnUNetTrainer, shape: tuple[int, ...], targets: list[tuple[int, ...]]) -> int:
    """Most bytes that PyTorch's CPU allocator hands out during nnU-Net's own train_step, by its profiler."""
    labels = [torch.randint(0, 2, target, dtype=torch.int16) for target in targets]
    batch: dict[str, Any] = {
        "data": torch.randn(shape),
        "target": labels if trainer.enable_deep_supervision else labels[0],
    }
    trainer.train_step(batch)  # the first makes the optimiser's state
    module = trainer.network
    moments = (value for state in trainer.optimizer.state.values() for value in state.values())
    before = nbytes((*module.parameters(), *module.buffers(), *moments, batch["data"], *labels))
    peaks = []
    # without gradients, as a step begins: of tensors that were there before, the profiler does not see the end
    for _ in range(2):  # on a busy machine the profiler can lose events
        trainer.optimizer.zero_grad(set_to_none=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            trainer.train_step(batch)
        events = profile.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        peaks.append(max(accumulate(change for _, change in changes)))
    return before + max(peaks)


def check_estimate(
    make_trainer: Callable,
    trainer: type[nnUNetTrainerDINOMed3D],
    stage: Stage,
    patch: tuple[int, int, int],
    batch: int,
    checkpoint: bool,
) -> None:
    def with_patch(plans: dict, configuration: str, *rest: Any) -> nnUNetTrainerDINOMed3D:
        plans["configurations"][configuration].update(patch_size=list(patch), batch_size=batch)
        return trainer(plans, configuration, *rest)

    instance = make_trainer(with_patch)
    instance.initialize()
    instance.begin_stage(stage)
    instance.module.checkpoint_activations(checkpoint)
    instance.network.train()
    shape = (SLABS, 1, 3, *patch[1:]) if stage == 1 else (batch, 1, *patch)

    def build() -> DINOMed3D:
        network = build_dinomed3d(trainer.variant, 1, 2, patch)
        network.checkpoint_activations(checkpoint)
        network.set_stage(stage, single_slab_input=stage == 1)
        return nn.Module.to(network, memory_format=torch.channels_last_3d)  # as `DINOMed3D.to` lays it on the CPU

    estimate = training_step_memory(Step("", build, shape), "cpu").total
    truth = measured(instance, shape, [(shape[0], 1, 1 if stage == 1 else shape[2], *shape[3:])])
    what = f"{trainer.variant} stage {stage} {shape} checkpoint {checkpoint}"
    print(f"{what}: estimate / measured {estimate / truth:.3f} of {truth / 1e6:.0f} MB")  # shown with pytest -rP
    assert estimate == pytest.approx(truth, rel=0.15)


def test_estimate_of_a_stock_trainer(make_trainer: Callable) -> None:
    """nnU-Net's own network has one step, with deep supervision."""
    instance = make_trainer(nnUNetTrainer)
    instance.initialize()
    instance.network.train()
    shape = (2, 1, *instance.configuration_manager.patch_size)
    managers = instance.plans_manager, instance.configuration_manager
    (step,) = training_steps(nnUNetTrainer, *managers, in_channels=1, num_classes=2)
    assert step.batch_shape == shape
    outputs = instance.network(torch.zeros(shape))
    truth = measured(instance, shape, [(2, 1, *output.shape[2:]) for output in outputs])
    estimate = training_step_memory(step, "cpu").total
    print(f"estimate / measured {estimate / truth:.3f} of {truth / 1e6:.0f} MB")  # shown with pytest -rP
    assert estimate == pytest.approx(truth, rel=0.15)


def test_a_stock_trainers_memory_is_told_and_nothing_written(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(planned.iterdir())
    assert main(["plan", "-d", "901", "-gpu_memory_target", "8", "-tr", "nnUNetTrainer"]) == 0
    output = capsys.readouterr().out
    assert "Memory of nnUNetTrainer with nnUNetPlans on a GPU of 8.0 GB:" in output
    rows = [line.split() for line in output.splitlines() if line.startswith(("3d_fullres", "2d"))]
    assert {row[0] for row in rows} == {"3d_fullres", "2d"}
    assert all(row[-1] == "yes" for row in rows)
    assert set(planned.iterdir()) == before


@pytest.mark.end_to_end
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("patch", "batch"), [((8, 48, 64), 2), ((5, 40, 56), 3)])
def test_estimate_is_what_training_takes(
    make_trainer: Callable, stage: Stage, patch: tuple[int, int, int], batch: int, checkpoint: bool
) -> None:
    check_estimate(make_trainer, nnUNetTrainerQuick, stage, patch, batch, checkpoint)


@pytest.mark.long
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(("stage", "batch"), [(1, 2), (2, 2), (2, 3)])  # stage 1 has slabs, whatever the batch
@pytest.mark.parametrize("patch", [(8, 64, 64), (16, 64, 64), (16, 96, 96), (8, 160, 144)])
@pytest.mark.parametrize("trainer", [nnUNetTrainerQuick, nnUNetTrainerSmall])
def test_estimate_over_a_grid(
    make_trainer: Callable,
    trainer: type,
    patch: tuple[int, int, int],
    batch: int,
    stage: Stage,
    checkpoint: bool,
) -> None:
    check_estimate(make_trainer, trainer, stage, patch, batch, checkpoint)


def kept_by_forward(device: str, stage: Stage, autocast: Callable[[], AbstractContextManager]) -> int:
    """Bytes that a forward pass on fake tensors leaves behind; PyTorch believes that there is a GPU."""
    gpu = mock.patch.multiple(torch.cuda, is_available=lambda: True, is_bf16_supported=lambda **_: True)
    with torch.device("meta"):
        network = build_dinomed3d("nano", 1, 3, (8, 96, 80))
    network.checkpoint_activations(True)
    storages = _Storages()
    with FakeTensorMode(allow_non_fake_inputs=True), gpu:  # in this order: the mode makes do without a GPU
        network.to_empty(device=device).train()
        network.set_stage(stage, single_slab_input=stage == 1)
        volume = torch.empty(2, 1, 3 if stage == 1 else 8, 96, 80, device=device)
        with storages, autocast():
            logits = network(volume)
            kept = sum(storage.nbytes for storage in storages.all if storage.is_alive(storages.events))
    assert logits.dtype == torch.float32
    return kept


@pytest.mark.skipif(Version(torch.__version__) < Version("2.10"), reason="of older PyTorch fake GPUs need a real one")
@pytest.mark.parametrize("stage", [1, 2])
def test_types_are_those_of_cuda_autocast(stage: Stage) -> None:
    """PyTorch's own, which on fake tensors runs a forward pass without a GPU."""
    truth = kept_by_forward("cuda", stage, lambda: torch.autocast("cuda", torch.bfloat16))
    assert kept_by_forward("cpu", stage, lambda: _CudaAutocast(True)) == pytest.approx(truth, rel=1e-3)
    assert kept_by_forward("cpu", stage, lambda: _CudaAutocast(False)) > 1.1 * truth


def test_estimate_names_every_part() -> None:
    def build() -> DINOMed3D:
        network = build_dinomed3d("nano", 1, 2, (4, 16, 16))
        network.set_stage(1, single_slab_input=True)
        return network

    network = build()
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    memory = training_step_memory(Step("", build, (2, 1, 3, 16, 16)))  # so small that AdamW's step takes most
    assert memory.gradients == trained
    assert 2 * trained <= memory.optimiser < 2.01 * trained
    assert memory.weights == sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert memory.workspace > CUDA_RESERVE


@pytest.mark.parametrize("median", [(36, 50, 35), (24.0, 256.0, 254.0), (120, 512, 512), (300, 900, 640), (1, 70, 333)])
def test_candidates(median: tuple[float, ...]) -> None:
    lists = candidates(median)
    assert all(lists)
    for patches in lists:
        scale = in_plane_scale(patches[0])
        step = TOKEN_SIZE // scale
        assert {in_plane_scale(patch) for patch in patches} == {scale}
        assert patches == sorted(set(patches), reverse=True)
        for depth, height, width in patches:
            assert depth == min(CLIP_DEPTH, median[0])
            assert height % step == width % step == 0
            assert max(height, width) <= 512
            assert height < median[1] + step
            assert width < median[2] + step
            assert max(height, width) >= min(64, *median[1:])
            assert abs(height - width * median[1] / median[2]) < 2 * step or max(median[1:]) > 512
    largest = lists[0][0]
    assert all(side >= min(512, wanted) for side, wanted in zip(largest[1:], median[1:], strict=True))


def voxels(patch: tuple[int, int, int], batch: int) -> int:
    return batch * patch[0] * patch[1] * patch[2]


@pytest.mark.parametrize(
    ("budget", "patch", "batch"),
    [
        (voxels((16, 512, 512), 2), (16, 512, 512), 2),
        (voxels((16, 512, 512), 2) - 1, (16, 496, 496), 2),
        (voxels((16, 512, 512), 5) - 1, (16, 512, 512), 4),
        (voxels((16, 512, 512), 500), (16, 512, 512), 6),
        (voxels((16, 100, 100), 2), (16, 100, 100), 2),
    ],
)
def test_choice(budget: int, patch: tuple[int, int, int], batch: int) -> None:
    assert choose_patch_and_batch(candidates((90, 512, 512)), lambda patch: 6, budget, voxels) == (patch, batch)


def test_few_estimates_are_made() -> None:
    asked = set()

    def cost(patch: tuple[int, int, int], batch: int) -> int:
        asked.add((patch, batch))
        return voxels(patch, batch)

    choose_patch_and_batch(candidates((90, 512, 512)), lambda patch: 9, voxels((16, 400, 400), 2), cost)
    assert len(asked) < 15


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match=r"smallest patch, \[16, 64, 64\] with batch 2, fits 0.0 GB: it needs 0.0 GB"):
        choose_patch_and_batch(candidates((90, 512, 512)), lambda patch: 9, 1000, voxels)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


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


@pytest.mark.parametrize("target", ["nan", "inf", "0", "-1", "1e30", "much"])
def test_memory_that_no_gpu_has(target: str) -> None:
    """Told at once, in the last line."""
    command = [sys.executable, "-m", "nnunetv2_dinomed3d", "plan", "-d", "1", "-gpu_memory_target", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (2 if target == "much" else 1)
    assert "-gpu_memory_target" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def by_voxels(step: Step) -> MemoryUse:
    """A quick estimate."""
    return MemoryUse(0, 0, 0, 100 * math.prod(step.batch_shape), 0)


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "'nnUNetTrainerMine' cannot be imported: ModuleNotFoundError: .*no_such_module"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("class nnUNetTrainerMine: pass", "is no trainer of nnU-Net"),
    ],
)
def test_a_users_own_trainer_that_is_none(text: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        find_trainer("nnUNetTrainerMine")


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


def test_a_patch_that_does_not_fit_is_warned_of(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.training_step_memory", by_voxels)
    plans = read(preprocessed, "nnUNetPlans")
    plans["configurations"]["3d_fullres"].update(
        patch_size=[64, 256, 256], batch_size=2, median_image_size_in_voxels=[90, 512, 512]
    )
    trainer = trainer_class("nnUNetTrainerDINOMed3D_nano")
    memory = TrainingMemory(trainer, plans, "3d_fullres", read(preprocessed, "dataset"))
    needed = (
        2 * 64 * 256 * 256 * 100
    )  # of half of it, stage 1's 24 slabs of 3 slices have room for 240 x 240, not 248 x 248
    assert memory_warning(memory, needed) is None
    assert memory_warning(memory, needed // 2) == (
        "Patch [64, 256, 256] with batch 2 takes about 0.8 GB in stage 2, and this GPU has 0.4 GB. Plans with patch "
        "[16, 240, 240] and batch 4 would fit, on the same preprocessed data: dinomed3d plan -d Dataset901_Test "
        "-gpu_memory_target 0.4 -tr nnUNetTrainerDINOMed3D_nano; then train with -p nnUNetDINOMed3DPlans."
    )
    assert "Not even the smallest patch" in str(memory_warning(memory, 1000))


@pytest.mark.end_to_end
def test_the_log_has_the_warning(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer_module, "visible_gpu_memory", lambda: CUDA_RESERVE)
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.check_memory()
    assert "WARNING" not in capsys.readouterr().out  # there is no such limit on a CPU
    trainer.device = torch.device("cuda")
    trainer.check_memory()
    assert "WARNING: Patch" in capsys.readouterr().out


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
