"""The whole of ``dinomed3d compare`` on small results folders."""

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_dinomed3d.evaluation.slices import choose
from nnunetv2_dinomed3d.evaluation.statistics import METRICS, tabulate
from tests.test_evaluation_cases import (
    CASES,
    LABELS,
    LOG,
    NAME,
    compare,
    fold_folder,
    truth_of,
    write_map,
    write_results,
)
from tests.test_evaluation_statistics import measurement

PNG = b"\x89PNG\r\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trainers in two folds; `Ours` is nearer to the truth, has a log and misses the lesion of case 2."""
    write_results(tmp_path, monkeypatch, {"Stock": 2, "Ours": 1})
    for fold in (0, 1):
        (fold_folder(tmp_path, "Ours", fold) / "training_log_2026_1_1_10_00_00.txt").write_text(LOG.format(day=1))
    missed = truth_of(2)
    missed[missed == 2] = 1
    write_map(fold_folder(tmp_path, "Ours", 0) / "validation" / "case_2.nii.gz", missed)
    return tmp_path


def test_the_files_hold_every_case_and_every_metric(root: Path) -> None:
    assert compare("777", "-tr", "Stock", "Ours", "--tolerance", "1", "lesion=2") == 0
    out = root / f"compare_{NAME}"
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CASES) * 2 * 2
    assert {(row["label"], row["tolerance_mm"]) for row in rows} == {("organ", "1.0"), ("lesion", "2.0")}
    assert {(row["case"], row["fold"]) for row in rows} == {(case, str(i // 3)) for i, case in enumerate(CASES)}
    states = {(r["case"], r["model"], r["label"]): (r["state"], r["dice"], r["hd95_mm"]) for r in rows}
    assert states["case_2", "Ours", "lesion"][:2] == ("missed", "0.0")
    assert states["case_1", "Ours", "lesion"] == ("both empty", "", "")

    summary = json.loads((out / "summary.json").read_text())
    assert {"label": "lesion", "model": "Ours", "measured": 2, "both empty": 3, "missed": 1, "invented": 0} in summary[
        "failures"
    ]
    organ = next(c for c in summary["comparison"] if (c["metric"], c["label"]) == ("dice", "organ"))
    assert (organ["n"], organ["wins"], organ["losses"], organ["p"]) == (6, 6, 0, pytest.approx(2 / 2**6))
    means = {s["model"]: s["mean"] for s in summary["summary"] if (s["metric"], s["label"]) == ("dice", "organ")}
    assert organ["difference"] == pytest.approx(means["Ours"] - means["Stock"])


def test_provenance_names_files_versions_plans_folds_and_checkpoints(root: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    provenance = json.loads((root / "out" / "summary.json").read_text())["provenance"]
    ours = provenance["models"]["Ours"]
    assert ours["folds"] == ["0", "1"]
    assert [Path(c["file"]).name for c in ours["checkpoints"]] == ["checkpoint_final.pth"] * 2
    place = (fold_folder(root, "Ours", 1) / "validation" / "case_4.nii.gz").relative_to(root)
    assert ours["predictions"]["case_4"] == place.as_posix(), "in nnUNet_results"
    assert set(provenance["truths"]) == set(CASES)
    assert provenance["versions"]["scipy"]


def test_the_report_says_what_was_trained_and_what_is_not_known(root: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    report = (root / "out" / "report.md").read_text()
    assert "| Ours | 0 | 1 |  | 521,571 | 1 | 7.5 |" in report
    assert "| Ours | 1 | 2 | 2,100,000 | 1,724,955 | 1 | 46.0 |" in report
    assert "| Stock | 0 |  |  |  |  |  |" in report
    assert "lesion 1 mm" not in report
    assert "| lesion | Ours | 1 | 0 | 3 | 2 |" in report


def test_the_html_file_stands_alone(root: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    page = (root / "out" / "report.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    figures = sorted(path.name for path in (root / "out" / "figures").glob("*.png"))
    assert len(sources) == len(figures) == 5 + 6
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(PNG)
    assert {f"figures/{name}" for name in figures} == set(
        re.findall(r"\]\((figures/[^)]+)\)", (root / "out" / "report.md").read_text())
    )


def test_excluded_distances_are_said(root: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "out", "--exclude-empty")
    summary = json.loads((root / "out" / "summary.json").read_text())
    missed = next(c for c in summary["cases"] if c["state"] == "missed")
    assert (missed["dice"], missed["hd95_mm"]) == (0, None)
    assert any("--exclude-empty" in rule for rule in summary["rules"])


def test_three_trainers_are_all_compared_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path, monkeypatch, {"A": 1, "B": 2, "C": 3})
    compare("777", "-tr", "B", "A", "C", "-o", "out")
    comparison = json.loads((tmp_path / "out" / "summary.json").read_text())["comparison"]
    signs = {c["model"]: np.sign(c["difference"]) for c in comparison if (c["metric"], c["label"]) == ("dice", "organ")}
    assert signs == {"A": 1, "C": -1}


def test_one_model_is_described_alone(root: Path) -> None:
    compare("777", "-tr", "Ours", "-o", "out")
    assert not (root / "out" / "figures" / "differences.png").exists()
    assert json.loads((root / "out" / "summary.json").read_text())["comparison"] == []


def test_regions_and_an_ignore_label(root: Path) -> None:
    path = root / "nnUNet_preprocessed" / NAME / "dataset.json"
    labels = {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}
    path.write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}))
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    report = (root / "out" / "report.md").read_text()
    assert "| whole | Ours | 0 | 0 | 0 | 6 |" in report
    assert "Voxels whose truth is the ignore label (3) count for nothing." in report


def test_a_label_that_no_case_has_is_blank_in_the_report(root: Path) -> None:
    path = root / "nnUNet_preprocessed" / NAME / "dataset.json"
    path.write_text(json.dumps({"labels": {**LABELS, "nowhere": 3}, "file_ending": ".nii.gz"}))
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    assert "| nowhere | Ours | 0 |  |  |  | 0 |  |  |  |  | 0 / 0 / 0 |" in (root / "out" / "report.md").read_text()


def test_folders_of_predictions_need_no_nnunet_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set: other names, a dataset.json beside the predictions, no image."""
    truths = root / "truths"
    shutil.copytree(root / "nnUNet_preprocessed" / NAME / "gt_segmentations", truths)
    for name, trainer in (("stock", "Stock"), ("ours", "Ours")):
        for fold in (0, 1):
            shutil.copytree(fold_folder(root, trainer, fold) / "validation", root / name, dirs_exist_ok=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable)
    words = ("--pred", f"stock={root / 'stock'}", f"ours={root / 'ours'}", "--gt", str(truths))
    with pytest.raises(ValueError, match=r"No dataset.json, which names the labels"):
        compare(*words)
    (root / "stock" / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    assert compare(*words) == 0
    report = (root / "compare" / "report.md").read_text()
    assert "6 cases, 2 models. Differences are to the first: stock." in report
    assert "whether a model was trained on these cases is not known here" in report


def test_worst_and_most_different_cases_are_chosen() -> None:
    """Cases 0 to 6: the worst are 6, 5, 4; of the others 1 differs most, then 3, 0."""
    first = [0.90, 0.90, 0.90, 0.80, 0.3, 0.2, 0.1]
    second = [0.85, 0.70, 0.90, 0.90, 0.3, 0.2, 0.1]
    values = {"first": first, "second": second}
    measurements = [measurement(i, m, "a", v) for m, column in values.items() for i, v in enumerate(column)]
    worst, different = choose(tabulate(measurements, METRICS[0]))
    assert worst == ["case_6", "case_5", "case_4"]
    assert different == ["case_1", "case_3", "case_0"]


def test_comparing_loads_no_torch() -> None:
    """Comparing must work, and start quickly, where the network's libraries are not wanted."""
    code = (
        "import sys, nnunetv2_dinomed3d.commands.compare, nnunetv2_dinomed3d.commands.crossval\n"
        "sys.exit(str({'torch', 'nnunetv2'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
