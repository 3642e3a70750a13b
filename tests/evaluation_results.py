"""Results folders as nnU-Net leaves them, small and made up, for the tests of the evaluation."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.commands.compare import add_arguments, run
from nnunetv2_dinomed3d.training_log import stage_line

NAME = "Dataset777_Made"
CASES = [f"case_{i}" for i in range(6)]
LABELS = {"background": 0, "organ": 1, "lesion": 2}
STAMP = "2026-01-01 10:00:00.000001:"
LOG = f"""
{STAMP} {stage_line(1, 521_571, 2_100_000, "24 slabs a batch")}
{STAMP} Epoch 0
{STAMP} train_loss 0.5
{STAMP} val_loss 0.4
{STAMP} Pseudo dice [np.float32(0.2), np.float32(nan)]
{STAMP} Epoch time: 7.52 s
{STAMP} {stage_line(2, 1_724_955, 2_100_000, "2 patches a batch")}
{STAMP} Epoch 1
{STAMP} train_loss -0.1
{STAMP} val_loss -0.2
{STAMP} Pseudo dice [0.6, 0.8]
{STAMP} Epoch time: 46.0 s
{STAMP} Epoch 2
{STAMP} train_loss -0.3
"""
"""Two stages; the last epoch was cut off."""


def write_map(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (0.8, 0.8, 3.0)) -> None:
    """Write a (d, h, w) label map with a spacing in mm, (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def reference_of(i: int) -> np.ndarray:
    """An organ, and in even cases a lesion in it."""
    labels = np.zeros((8, 24, 20), np.uint8)
    labels[1:7, 4 : 14 + i, 3:13] = 1
    if i % 2 == 0:
        labels[3:5, 6:9, 5 : 8 + i // 2] = 2
    return labels


def write_results(root: Path, monkeypatch: pytest.MonkeyPatch, shifts: dict[str, int]) -> Path:
    """nnU-Net's folders with two folds of each trainer, whose predictions are so many voxels off.

    Returns:
        The data set's folder of results.
    """
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable / NAME).mkdir(parents=True)
        monkeypatch.setenv(variable, str(root / variable))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.chdir(root)
    preprocessed, raw = root / "nnUNet_preprocessed" / NAME, root / "nnUNet_raw" / NAME
    description = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (preprocessed / "dataset.json").write_text(json.dumps(description))
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {}, "3d_fullres": {}}}))
    splits = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    rng = np.random.default_rng(0)
    for i, case in enumerate(CASES):
        write_map(preprocessed / "gt_segmentations" / f"{case}.nii.gz", reference_of(i))
        write_map(raw / "imagesTr" / f"{case}_0000.nii.gz", rng.normal(size=(8, 24, 20)).astype(np.float32))
        for trainer, shift in shifts.items():
            fold = fold_folder(root, trainer, i // 3)
            write_map(fold / "validation" / f"{case}.nii.gz", np.roll(reference_of(i), shift, axis=2))
            (fold / "validation" / "summary.json").write_text("{}")
            (fold / "checkpoint_final.pth").write_bytes(b"weights")
    return root / "nnUNet_results" / NAME


def fold_folder(root: Path, trainer: str, fold: int) -> Path:
    """A fold of a trainer in the results that `write_results` made."""
    return root / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}"


def change_date(path: Path, seconds: float) -> None:
    """Change a file's date by so many seconds."""
    written = path.stat().st_mtime + seconds
    os.utime(path, (written, written))


def compare(*words: str) -> int:
    """``dinomed3d compare`` without its error line: a ValueError is raised."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


def measure_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `compare` measure in this process, which saves the seconds in which others start.

    Some tests in test_evaluation_command.py measure as users do.
    """
    from nnunetv2_dinomed3d.evaluation import measure
    from nnunetv2_dinomed3d.evaluation.cases import PairedCases

    def one_by_one(cases: PairedCases, rules: measure.Rules) -> dict[str, measure.Measured]:
        return {
            case: measure.measure_case(
                measure.MeasureJob(case, reference, {m.name: m.predictions[case] for m in cases.models}, rules)
            )
            for case, reference in cases.references.items()
        }

    monkeypatch.setattr(measure, "measure", one_by_one)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `compare` write its report without pictures, which saves seconds."""
    from nnunetv2_dinomed3d.evaluation import report
    from nnunetv2_dinomed3d.evaluation.report_pictures import Pictures

    for name in ("draw_answer", "draw_details"):
        monkeypatch.setattr(report, name, lambda *_: Pictures(Path("figures")))
