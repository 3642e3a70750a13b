"""The files of a report: every case and metric, the answer first, the origin, and nothing that is not known."""

import base64
import csv
import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation_results import (
    CASES,
    LABELS,
    LOG,
    NAME,
    compare,
    draw_nothing,
    fold_folder,
    measure_here,
    reference_of,
    write_map,
    write_results,
)

pytestmark = pytest.mark.own

PNG = b"\x89PNG\r\n"


def write_two(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainers in two folds; `Ours` is nearer to the reference, has a log and lacks the lesion of case 2."""
    measure_here(monkeypatch)
    write_results(root, monkeypatch, {"Stock": 2, "Ours": 1})
    for fold in (0, 1):
        (fold_folder(root, "Ours", fold) / "training_log_2026_1_1_10_00_00.txt").write_text(LOG)
    without = reference_of(2)
    without[without == 2] = 1
    write_map(fold_folder(root, "Ours", 0) / "validation" / "case_2.nii.gz", without)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of two trainers; reports are written without pictures."""
    draw_nothing(monkeypatch)
    write_two(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A report with pictures of the same results, and the lines that the console shows."""
    root, console = tmp_path_factory.mktemp("drawn"), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(console):
        write_two(root, patch)
        compare("777", "-tr", "Stock", "Ours", "-o", "out")
    return root / "out", console.getvalue().splitlines()


def test_the_files_hold_every_case_and_every_metric(root: Path) -> None:
    assert compare("777", "-tr", "Stock", "Ours", "--tolerance", "1", "lesion=2") == 0
    out = root / f"compare_{NAME}"
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CASES) * 2 * 2
    scores = ["state", "dice", "hd95_mm", "surface_dice", "reference_ml", "prediction_ml", "volume_difference_ml"]
    assert list(rows[0]) == ["case", "model", "label", *scores, "tolerance_mm", "fold"]
    assert {(row["label"], row["tolerance_mm"]) for row in rows} == {("organ", "1.0"), ("lesion", "2.0")}
    assert {(row["case"], row["fold"]) for row in rows} == {(case, str(i // 3)) for i, case in enumerate(CASES)}
    states = {(r["case"], r["model"], r["label"]): (r["state"], r["dice"], r["hd95_mm"]) for r in rows}
    assert states["case_2", "Ours", "lesion"][:2] == ("false negative", "0.0")
    assert states["case_1", "Ours", "lesion"] == ("both empty", "", "")

    summary = json.loads((out / "summary.json").read_text())
    counts = {"measured": 2, "both empty": 3, "false negative": 1, "false positive": 0}
    assert {"label": "lesion", "model": "Ours", **counts} in summary["failures"]
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
    assert set(provenance["references"]) == set(CASES)
    assert provenance["versions"]["scipy"]
    assert "Ours__nnUNetPlans__3d_fullres, fold 0, 1" in (root / "out" / "report.html").read_text()


def test_the_report_answers_first(drawn: tuple[Path, list[str]]) -> None:
    """The sentences that the console says, then the picture, then the tables."""
    out, (*answers, where) = drawn
    assert len(answers) == 2
    assert where == "out/report.html: 6 cases, 2 models"
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    places = [text.index(part) for part in (*answers, "6 cases, 2 models", "(figures/dice.png)", "## Dice", "## Rules")]
    assert places == sorted(places)
    assert "not how much another training would differ" in text[: places[2]]
    assert page.count('<p class="lead">') == 2
    assert page.index(answers[1].partition(" [")[0]) < page.index("<img") < page.index("<table")


def test_the_html_file_stands_alone(drawn: tuple[Path, list[str]]) -> None:
    out, _ = drawn
    page = (out / "report.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    figures = sorted(path.name for path in (out / "figures").glob("*.png"))
    assert len(sources) == len(figures) == 5 + 6
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(PNG)
    assert {f"figures/{name}" for name in figures} == set(
        re.findall(r"\]\((figures/[^)]+)\)", (out / "report.md").read_text())
    )


def test_the_report_says_what_was_trained_and_what_is_not_known(root: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    report = (root / "out" / "report.md").read_text()
    assert "| Ours | 0 | 1 | 2,100,000 | 521,571 | 1 | 7.5 |" in report
    assert "| Ours | 1 | 2 | 2,100,000 | 1,724,955 | 1 | 46.0 |" in report
    assert "| Stock | 0 |  |  |  |  |  |" in report
    assert "lesion 1 mm" not in report
    assert "| lesion | Ours | 1 | 0 | 3 | 2 |" in report


def test_a_column_that_nothing_is_known_for_is_left_out(root: Path) -> None:
    """A stock trainer alone logs no stage and no parameters."""
    stock = "".join(line for line in LOG.splitlines(keepends=True) if "Stage" not in line)
    (fold_folder(root, "Stock", 0) / "training_log_2026_1_1_10_00_00.txt").write_text(stock)
    compare("777", "-tr", "Stock", "-f", "0", "-o", "out")
    report = (root / "out" / "report.md").read_text()
    assert "| model | fold | epochs | seconds per epoch (median) |" in report
    assert "wins" not in report.split("## Rules")[0]


def test_excluded_distances_are_said(root: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "out", "--exclude-empty")
    summary = json.loads((root / "out" / "summary.json").read_text())
    missed = next(c for c in summary["cases"] if c["state"] == "false negative")
    assert (missed["dice"], missed["hd95_mm"]) == (0, None)
    assert any("--exclude-empty" in rule for rule in summary["rules"])


def test_three_trainers_are_all_compared_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_here(monkeypatch)
    draw_nothing(monkeypatch)
    write_results(tmp_path, monkeypatch, {"A": 1, "B": 2, "C": 3})
    compare("777", "-tr", "B", "A", "C", "-o", "out")
    comparison = json.loads((tmp_path / "out" / "summary.json").read_text())["comparison"]
    signs = {c["model"]: np.sign(c["difference"]) for c in comparison if (c["metric"], c["label"]) == ("dice", "organ")}
    assert signs == {"A": 1, "C": -1}


def test_one_model_is_described_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare("777", "-tr", "Ours", "-o", "out")
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert json.loads((root / "out" / "summary.json").read_text())["comparison"] == []


def test_regions_and_an_ignore_label(root: Path) -> None:
    path = root / "nnUNet_preprocessed" / NAME / "dataset.json"
    labels = {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}
    path.write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}))
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    report = (root / "out" / "report.md").read_text()
    assert "| whole | Ours | 0 | 0 | 0 | 6 |" in report
    assert "Voxels whose reference is the ignore label (3) count for nothing." in report


def test_a_label_that_no_case_has_is_blank_in_the_report(root: Path) -> None:
    path = root / "nnUNet_preprocessed" / NAME / "dataset.json"
    path.write_text(json.dumps({"labels": {**LABELS, "nowhere": 3}, "file_ending": ".nii.gz"}))
    compare("777", "-tr", "Stock", "Ours", "-o", "out")
    report = (root / "out" / "report.md").read_text()
    assert "| nowhere | Ours | 0 |  |  |  |" in report
    assert "| nowhere | Ours | 0 |  |  |  |  | 0 / 0 / 0 |" in report


def test_folders_of_predictions_need_no_nnunet_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set: other names, a dataset.json beside the predictions, no image."""
    references = root / "references"
    shutil.copytree(root / "nnUNet_preprocessed" / NAME / "gt_segmentations", references)
    for name, trainer in (("stock", "Stock"), ("ours", "Ours")):
        for fold in (0, 1):
            shutil.copytree(fold_folder(root, trainer, fold) / "validation", root / name, dirs_exist_ok=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable)
    words = ("--pred", f"stock={root / 'stock'}", f"ours={root / 'ours'}", "--gt", str(references))
    with pytest.raises(ValueError, match=r"No dataset.json, which names the labels"):
        compare(*words)
    (root / "stock" / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    assert compare(*words) == 0
    report = (root / "compare" / "report.md").read_text()
    assert "6 cases, 2 models. Differences are to the first model, stock." in report
    assert "it is not known here whether a model was trained on these cases" in report
