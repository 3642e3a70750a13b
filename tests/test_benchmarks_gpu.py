"""The GPU benchmark: safe to stop, honest about rows that are missing, and runnable without nnU-Net."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import agreement, runner
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.agreement import compare
from benchmarks.gpu.jobs import MINIATURE, Extent, Jobs, differences, settings
from benchmarks.gpu.prediction import windows
from benchmarks.gpu.results import JSON_NAME, MARKDOWN_NAME, Results, Values
from benchmarks.gpu.runner import CannotRunError, Job, run_jobs
from benchmarks.gpu.steps import STOCK, Setting, loss, measure_step

NANO = Setting("nano", 2, (2, 32, 32), 1)


def job(measure, name: str = "row", expected: float = 0.0, kind: str = "kind") -> Job:
    return Job("section", {"name": name}, measure, kind, expected)


def run(jobs: list[Job], results: Results) -> list[str]:
    run_jobs(jobs, results, "cpu", 600, time.monotonic())
    return [row.status for row in results.rows]


def test_a_stop_leaves_all_rows_before_it(tmp_path: Path) -> None:
    def stop() -> dict:
        raise KeyboardInterrupt

    results = Results(tmp_path, {"device": "some | card"})
    with pytest.raises(KeyboardInterrupt):
        run([job(lambda: {"step ms": 12.345}), job(stop)], results)
    (row,) = json.loads((tmp_path / JSON_NAME).read_text())["rows"]
    assert row["values"] == {"step ms": 12.345}
    markdown = (tmp_path / MARKDOWN_NAME).read_text()
    assert "| row | 12.3 | done |" in markdown
    assert "some | card" in markdown
    assert {file.name for file in tmp_path.iterdir()} == {JSON_NAME, MARKDOWN_NAME}


def test_a_row_that_fails_is_a_result_and_not_an_end(tmp_path: Path) -> None:
    def fail(error: Exception) -> dict:
        raise error

    errors = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        CannotRunError("its step was not measured"),
        ModuleNotFoundError("No module named 'nnunetv2'", name="nnunetv2.utilities"),
        ModuleNotFoundError("No module named 'einops'", name="einops"),
        ValueError("odd\nsize"),
    ]
    results = Results(tmp_path, {})
    statuses = run([*(job(partial(fail, error)) for error in errors), job(lambda: {})], results)
    assert statuses == ["out of memory", "out of memory", "skipped", "skipped", "failed", "failed", "done"]
    assert results.rows[3].reason == "nnunetv2 is not installed"
    assert results.rows[5].reason == "ValueError: odd"


def test_no_row_is_started_that_would_end_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow() -> dict:
        clock[0] += 50
        return {}

    results = Results(tmp_path, {})
    jobs = [
        job(lambda: {}, "long", expected=100, kind="long"),
        job(slow, "as expected", kind="slow"),
        job(slow, "now known to be slow", kind="slow"),
        job(lambda: {}, "short", kind="short"),
    ]
    run_jobs(jobs, results, "cpu", 80, started=0.0)
    assert [row.status for row in results.rows] == ["skipped", "done", "skipped", "done"]
    assert results.rows[0].reason == "no time left for about 100 s"
    assert results.rows[2].reason == "no time left for about 50 s"


def test_results_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(tmp_path, {})
    assert main(["--device", "cpu", "-o", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is there already. Name another folder with -o" in error
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(tmp_path / "new")]) == 2
    assert "--device cpu" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "ten"])
def test_minutes_that_are_none(minutes: str) -> None:
    with pytest.raises(SystemExit):
        main(["--minutes", minutes])


def test_every_step_once_and_the_most_important_first() -> None:
    found = settings(Extent())
    ours = [setting for setting in found if setting.network != STOCK]
    # three variants, two stages, two patches; compiled, recomputed and channels last, or not
    assert len(ours) == len(set(ours)) == 3 * 2 * 2 * 2**3
    assert len(found) - len(ours) == 2 * 2**2
    assert [(setting.network, setting.stage) for setting in found[:3]] == [("base", 2), ("base", 1), (STOCK, 2)]
    assert {setting.patch for setting in found[:3]} == {(16, 512, 512)}
    numbers = [differences(setting, Extent()) for setting in found]
    assert numbers == sorted(numbers)
    assert max(numbers) <= Extent().differences


def test_every_kind_of_row_is_in_both_extents(tmp_path: Path) -> None:
    sections = [
        {job.section for job in Jobs(extent, "cpu", Results(tmp_path / name, {}))}
        for name, extent in {"full": Extent(), "miniature": MINIATURE}.items()
    ]
    assert sections[0] == sections[1]
    assert len(sections[0]) == 6


@pytest.mark.parametrize(("slices", "depth"), [(300, 16), (10, 4), (4, 4), (3, 4), (5, 1)])
def test_windows_cover_every_slice(slices: int, depth: int) -> None:
    found = list(windows(slices, depth))
    assert {number for window in found for number in range(slices)[window]} == set(range(slices))
    assert slices < depth or all(window.stop <= slices for window in found)


def test_loss_is_small_where_the_logits_are_right() -> None:
    labels = torch.randint(2, (2, 3, 8, 8))
    right = F.one_hot(labels, 2).movedim(-1, 1) * 40.0
    assert loss(right, labels) < 1e-5 < 0.9 < loss(-right, labels)
    assert loss([right, right], labels) < 1e-5


def test_a_step_has_fewer_operations_without_recomputing() -> None:
    kept = Setting("nano", 2, (2, 32, 32), 1, recomputed=False)
    recomputed, faster = (measure_step(setting, "cpu", {"TFLOP/s": 1.0}, least=1) for setting in (NANO, kept))
    assert faster["TFLOP"] < recomputed["TFLOP"]
    assert recomputed["images/s"] == pytest.approx(1000 / recomputed["step ms"])
    assert recomputed["of matrix peak"] == recomputed["TFLOP/s"]
    assert recomputed["device GB"] is None


def test_a_device_that_computes_otherwise_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def nano() -> Values:
        return compare("nano", 1, (3, 32, 32), "cpu", "float32")

    assert nano()["agrees"]
    true = agreement.run_pass
    passes = iter([1.0, 1.01, 1.0])  # the reference, the device, the CPU

    def off(*words) -> agreement.Pass:
        outputs, gradients = true(*words)
        return agreement.Pass(outputs, gradients * next(passes))

    monkeypatch.setattr(agreement, "run_pass", off)
    assert not nano()["agrees"]


@pytest.mark.end_to_end
def test_the_miniature_runs_without_nnunet(tmp_path: Path) -> None:
    """On a bare machine: rows that need nnU-Net are skipped by name, all others are there."""
    blocked = ("nnunetv2", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2", "SimpleITK")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\nfrom benchmarks.gpu.__main__ import main\n"
    words = ["--device", "cpu", "--minutes", "4", "-o", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main({words!r}))"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("device: CPU")
    rows = json.loads((tmp_path / JSON_NAME).read_text())["rows"]
    without = [row for row in rows if row["status"] != "done"]
    assert {row["reason"] for row in without} == {
        "nnunetv2 is not installed",
        "its step was not measured",
        "the miniature compiles nothing",
    }
    assert {row["section"] for row in rows if row["status"] == "done"} == {
        "Matrix products",
        "Agreement with the CPU",
        "Training steps",
        "Prediction of a volume",
        "Memory against plan's estimate",
    }


@pytest.mark.end_to_end
def test_rows_that_need_nnunet(tmp_path: Path) -> None:
    results = Results(tmp_path, {})
    jobs = [
        job
        for job in Jobs(MINIATURE, "cpu", results)
        if job.section == "Slab loader" or job.what.get("network") == STOCK or "nnU-Net" in job.what.get("by", "")
    ]
    statuses = run([job for job in jobs if not job.what.get("compiled")], results)
    assert statuses == ["done"] * 5


@pytest.mark.long
def test_compiled_by_the_default_backend() -> None:
    compiled = Setting("nano", 2, (2, 32, 32), 1, compiled=True)
    assert measure_step(compiled, "cpu", None, least=1)["step ms"] > 0
