"""The time and memory of many cases, and of a large one. ``pytest -m long`` runs what the documentation states.

The small forms, which always run, count processor time, because others may be using the machine.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.evaluation.cases import EvaluatedModel, PairedCases
from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.measure import Rules, measure
from nnunetv2_dinomed3d.evaluation.output import output_folder
from nnunetv2_dinomed3d.evaluation.report import write_report
from nnunetv2_dinomed3d.evaluation.result import Result

pytestmark = pytest.mark.own

NAMES = ("a", "b", "c", "d")
LABELS = DatasetLabels({n: (i,) for i, n in enumerate(NAMES, 1)}, frozenset(range(5)), None, ".nii.gz")
RULES = Rules(LABELS, dict.fromkeys(NAMES, 1.0), False)

LARGE = r"""
import re, sys, time
from pathlib import Path
from nnunetv2_dinomed3d.evaluation.measure import MeasureJob, measure_case
from tests.test_evaluation_speed import RULES
folder = Path(sys.argv[1])
start = time.process_time()
job = MeasureJob("c", folder / "reference.nii.gz", {"m": folder / "prediction.nii.gz"}, RULES)
measurements = measure_case(job).measurements
assert [m.scores.state for m in measurements] == ["measured"] * 4
print(time.process_time() - start, re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def ellipsoids(shape: tuple[int, int, int], shift: float) -> np.ndarray:
    """Four labels, the first nearly as large as the image."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    labels = np.zeros(shape, np.uint8)
    balls = ((0.0, 0.0, 0.9), (0.3, 0.3, 0.4), (-0.4, -0.3, 0.25), (-0.5, 0.5, 0.1))
    for value, (a, b, r) in enumerate(balls, 1):
        distance = (z[:, None, None] - a) ** 2 + (y[:, None] - b - shift) ** 2 + x**2
        labels[distance <= r * r] = value
    return labels


def write(path: Path, labels: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.8, 0.8, 2.0))
    sitk.WriteImage(image, str(path))
    return path


def many_cases(folder: Path, count: int, shape: tuple[int, int, int]) -> PairedCases:
    """Cases with different references, and three models that are off by different shifts. Cases share files."""
    shifts = (0.0, 0.02, 0.05, 0.09)
    files = [write(folder / f"{i}.nii.gz", ellipsoids(shape, shift)) for i, shift in enumerate(shifts)]
    names = [f"case_{i:03d}" for i in range(count)]
    models = [
        EvaluatedModel(f"model_{m}", folder, {n: files[(i + m) % 4] for i, n in enumerate(names)}, {})
        for m in range(1, 4)
    ]
    return PairedCases(models, {n: files[i % 4] for i, n in enumerate(names)}, [])


def seconds_of_everything(folder: Path, count: int, shape: tuple[int, int, int]) -> float:
    """Measuring and the whole report."""
    cases = many_cases(folder, count, shape)
    start = time.perf_counter()
    with output_folder(folder / "out"):
        result = Result("Speed", None, cases, RULES, measure(cases, RULES), {}, {"command": "test", "versions": {}})
    assert len(result.measurements) == count * 3 * 4
    assert write_report(result, folder / "out").warnings == []
    return time.perf_counter() - start


def test_a_few_small_cases_take_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "2")
    before = sum(os.times()[:4])
    seconds_of_everything(tmp_path, 4, (32, 64, 64))
    assert sum(os.times()[:4]) - before < 30


@pytest.mark.long
def test_two_hundred_cases_take_less_than_three_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "2")
    seconds = seconds_of_everything(tmp_path, 200, (64, 128, 128))
    print(f"\n200 cases, three models, four labels: {seconds:.0f} s")
    assert seconds < 180


@pytest.mark.parametrize(
    ("shape", "seconds", "gigabytes"),
    [((100, 160, 160), 15, 0.7), pytest.param((500, 512, 512), 60, 2, marks=pytest.mark.long)],
)
def test_time_and_memory_of_a_large_volume(
    tmp_path: Path, shape: tuple[int, int, int], seconds: float, gigabytes: float
) -> None:
    write(tmp_path / "reference.nii.gz", ellipsoids(shape, 0))
    write(tmp_path / "prediction.nii.gz", ellipsoids(shape, 0.02))
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    taken, kilobytes = map(float, done.stdout.split())
    print(f"\n{shape}: {taken:.1f} s, {kilobytes / 1e6:.2f} GB")
    assert taken < seconds
    assert kilobytes < gigabytes * 1e6
