"""The paper's rules: known on paper, equal to MedPy's, beside ours in a report and never instead of them."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from medpy.metric.binary import dc as medpy_dice
from medpy.metric.binary import hd95 as medpy_hd95
from scipy import ndimage

from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.paper_rules import (
    PaperScores,
    grid_text,
    grid_warning,
    paper_row,
    paper_scores,
    paper_table_row,
)
from tests.command_line import dinomed3d
from tests.evaluation_results import (
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

LABELS = DatasetLabels({"organ": (1,), "lesion": (2,)}, frozenset(range(3)), None, ".nii.gz")


def box(value: int, x: int = 2, size: int = 3) -> np.ndarray:
    labels = np.zeros((6, 10, 12), np.uint8)
    labels[1:4, 2:6, x : x + size] = value
    return labels


def scores_of(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    found = paper_scores(prediction, reference, {"organ": (1,)})["organ"]
    return found.dice, found.hd95_voxels


def test_empty_structures() -> None:
    """Both empty is a full success; one empty has no distance."""
    assert scores_of(box(0), box(0)) == (1, 0)
    for prediction, reference in ((box(1), box(0)), (box(0), box(1))):
        dice, distance = scores_of(prediction, reference)
        assert dice == 0
        assert math.isnan(distance)


def test_a_step_is_a_voxel_along_every_axis() -> None:
    for axis in range(3):
        assert scores_of(np.roll(box(1), 1, axis), box(1))[1] == 1
    assert scores_of(box(1), box(1)) == (1, 0)


def test_a_region_is_one_structure() -> None:
    both = np.where(np.arange(12) < 4, box(1), box(2))
    assert paper_scores(both, box(1), {"whole": (1, 2)})["whole"] == PaperScores(1, 0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 10, 12\), its reference \(6, 10, 12\): resample it"):
        paper_scores(box(1)[1:], box(1), {"organ": (1,)})


@pytest.mark.parametrize("seed", range(4))
def test_equals_medpy(seed: int) -> None:
    """MedPy's ``dc`` and ``hd95`` with a spacing of 1, on structures that touch the border too."""
    rng = np.random.default_rng(seed)
    a, b = (ndimage.gaussian_filter(rng.normal(size=(17, 30, 23)), 2.5) > 0.02 for _ in range(2))
    expected = medpy_dice(a, b), medpy_hd95(a, b, voxelspacing=(1.0, 1.0, 1.0))
    assert scores_of(a.astype(np.uint8), b.astype(np.uint8)) == pytest.approx(expected, abs=1e-6)


def test_means_are_those_of_cases_then_of_their_means() -> None:
    """A case's label without an HD95 drops out of the case's mean."""
    nan = float("nan")
    row = paper_row(
        {
            "one": {"a": PaperScores(0.9, 2.0), "b": PaperScores(0.0, nan)},
            "two": {"a": PaperScores(0.7, 4.0), "b": PaperScores(0.5, 10.0)},
        }
    )
    assert row.dsc == pytest.approx(100 * (0.8 + 0.25) / 2)
    assert row.hd95 == pytest.approx((2 + (4 + 10) / 2) / 2)
    assert row.label_dsc == pytest.approx([80, 25])
    assert row.label_hd95 == pytest.approx([3, 10])
    assert row.hd95_cases.tolist() == [2, 1]


def test_a_label_without_any_distance_counts_for_nothing_in_hd95() -> None:
    nan = float("nan")
    row = paper_row({"one": {"a": PaperScores(0.9, 2.0), "b": PaperScores(0.0, nan)}})
    assert (row.dsc, row.hd95) == pytest.approx((45, 2))
    assert math.isnan(paper_row({"one": {"b": PaperScores(0.0, nan)}}).hd95)


def test_the_row_of_a_folder_of_predictions(tmp_path: Path) -> None:
    """Without a report, in processes. The spacing of the files (3 mm between slices) does not matter."""
    files = {kind: {f"c{i}": tmp_path / kind / f"c{i}.nii.gz" for i in range(3)} for kind in ("gt", "pr")}
    for i in range(3):
        write_map(files["gt"][f"c{i}"], reference_of(i))
        write_map(files["pr"][f"c{i}"], np.roll(reference_of(i), 1, axis=0))
    write_map(files["pr"]["c2"], (reference_of(2) > 0).astype(np.uint8))
    references = {**files["gt"], "not predicted": tmp_path / "nowhere.nii.gz"}
    row = paper_table_row(files["pr"], references, LABELS, 2)
    assert row.cases == ["c0", "c1", "c2"]
    assert row.labels == ["organ", "lesion"]
    assert row.dice.shape == row.hd95_voxels.shape == (3, 2)
    assert row.hd95_voxels[:2].tolist() == [[1, 1], [1, 0]], "case 1 has no lesion, in the reference or predicted"
    assert row.dice[:, 1].tolist() == [0.5, 1, 0]
    assert math.isnan(row.hd95_voxels[2, 1])
    assert row.hd95 == pytest.approx((1 + 0.5 + row.hd95_voxels[2, 0]) / 3)


def test_the_ignore_label_counts_for_nothing(tmp_path: Path) -> None:
    reference = box(1)
    reference[:, :, 9:] = 3
    prediction = box(1)
    prediction[:, :, 11] = 1
    write_map(tmp_path / "gt.nii.gz", reference)
    write_map(tmp_path / "pr.nii.gz", prediction)
    labels = DatasetLabels({"organ": (1,)}, frozenset(range(2)), 3, ".nii.gz")
    row = paper_table_row({"c": tmp_path / "pr.nii.gz"}, {"c": tmp_path / "gt.nii.gz"}, labels, 1)
    assert (row.dsc, row.hd95) == (100, 0)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prediction to measure"):
        paper_table_row({}, {}, LABELS, 1)
    with pytest.raises(ValueError, match="no reference segmentation of c0"):
        paper_table_row({"c0": tmp_path / "c0.nii.gz"}, {}, LABELS, 1)


def test_the_grid_is_said_and_warned_of() -> None:
    assert grid_warning({"a": (512, 512, 30), "b": (512, 512, 50)}) == ""
    assert grid_text({"a": (512, 512, 30), "b": (512, 512, 50)}) == "512 x 512 in plane in 2 of 2 cases"
    mixed = {"a": (512, 512, 30), "b": (512, 400, 30), "c": (512, 512, 9)}
    assert grid_warning(mixed).startswith("1 of 3 cases are not 512 x 512 in plane, such as b (512 x 400): ")
    assert grid_text(mixed) == "512 x 512 in plane in 2 of 3 cases, 512 x 400 in plane in 1 of 3 cases"


def read(out: Path) -> tuple[str, dict[str, object], list[dict[str, str]]]:
    """The report, summary.json and the rows of cases.csv."""
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    return (out / "report.md").read_text(), json.loads((out / "summary.json").read_text()), rows


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trainers; one misses the lesion of case 2. Odd cases have no lesion."""
    measure_here(monkeypatch)
    draw_nothing(monkeypatch)
    write_results(tmp_path, monkeypatch, {"Stock": 2, "Ours": 1})
    without = reference_of(2)
    without[without == 2] = 1
    write_map(fold_folder(tmp_path, "Ours", 0) / "validation" / "case_2.nii.gz", without)
    return tmp_path


def test_the_report_has_both_with_their_names(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "plain")
    plain = capsys.readouterr()
    compare("777", "-tr", "Stock", "Ours", "-o", "both", "--rules", "paper")
    both = capsys.readouterr()
    assert both.out.replace("both", "plain") == plain.out, "the answers are ours"
    assert plain.err == ""
    (warning,) = both.err.splitlines()
    assert warning.startswith(
        "warning: --rules paper: 6 of 6 cases are not 512 x 512 in plane, such as case_0 (20 x 24)"
    )

    text, summary, rows = read(results / "both")
    section = text.split("## The paper's rules beside ours")[1].split("\n## ")[0]
    head, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head.strip("|").split("|")][2:] == [
        name
        for title in ("ours: Dice", "ours: HD95 (mm)", "paper: DSC (%)", "paper: HD95 (voxels)")
        for name in (title, "cases")
    ]
    cells = {tuple(row[:2]): row[2:] for line in lines for row in [[c.strip() for c in line.strip("|").split("|")]]}
    assert set(cells) == {
        (label, model) for label in ("organ", "lesion", "mean of labels") for model in ("Stock", "Ours")
    }
    assert cells["lesion", "Ours"][1] == "3", "ours: Dice of the cases with a lesion"
    assert cells["lesion", "Ours"][5] == "6", "the paper's: Dice of all"
    assert cells["lesion", "Ours"][7] == "5", "the missed one has no distance"
    assert "20 x 24 in plane in 6 of 6 cases" in section

    of_ours = {r["case"]: r for r in rows if (r["model"], r["label"]) == ("Ours", "lesion")}
    assert (of_ours["case_1"]["dice"], of_ours["case_1"]["paper_dice"], of_ours["case_1"]["paper_hd95_voxels"]) == (
        "",
        "1.0",
        "0.0",
    )
    assert (of_ours["case_2"]["paper_dice"], of_ours["case_2"]["paper_hd95_voxels"]) == ("0.0", "")
    assert of_ours["case_0"]["hd95_mm"] == "0.800000011920929"
    assert of_ours["case_0"]["paper_hd95_voxels"] == "1.0"
    entries = {(e["label"], e["model"]): e for e in summary["paper_rules"]}  # type: ignore[attr-defined]
    lesion, mean = entries["lesion", "Ours"], entries["mean of labels", "Ours"]
    expected = 100 * np.mean([float(r["paper_dice"]) for r in of_ours.values()])
    assert lesion["dsc_percent"] == pytest.approx(expected)
    assert mean["dsc_percent"] == pytest.approx((expected + entries["organ", "Ours"]["dsc_percent"]) / 2)
    assert cells["mean of labels", "Ours"][4] == f"{mean['dsc_percent']:.2f}"


def test_without_the_option_nothing_is_added(results: Path) -> None:
    compare("777", "-tr", "Stock", "Ours", "-o", "plain")
    text, summary, rows = read(results / "plain")
    assert "paper" not in text.split("## Origin")[0], "the origin has the command line, here that of this file"
    assert "paper_rules" not in summary
    assert not any(name.startswith("paper") for name in rows[0])


def test_one_label_has_no_mean_and_no_warning_on_the_papers_grid(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("gt", "pr"):
        large = np.zeros((2, 512, 512), np.uint8)
        large[:, 100:110, 100:110] = kind == "gt"
        write_map(results / kind / "c.nii.gz", large)
    Path("gt/dataset.json").write_text('{"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}')
    compare("--pred", "m=pr", "--gt", "gt", "-o", "out", "--rules", "paper")
    assert capsys.readouterr().err == ""
    text, summary, _ = read(results / "out")
    assert "512 x 512 in plane in 1 of 1 cases" in text
    entry = {"model": "m", "label": "organ", "dsc_percent": 0, "cases": 1, "hd95_voxels": None, "hd95_cases": 0}
    assert summary["paper_rules"] == [entry]
    row = next(line for line in text.split("## The paper's rules")[1].splitlines() if line.startswith("| organ"))
    assert row.endswith("| 0.00 | 1 |  | 0 |")


def test_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path, monkeypatch, {"A": 1})
    done = dinomed3d("compare", "777", "-tr", "A", "--rules", "paper")
    assert done.returncode == 0, done.stderr
    assert "--rules paper: 6 of 6 cases" in done.stderr
    assert "ours: Dice" in (tmp_path / f"compare_{NAME}" / "report.html").read_text()
    refused = dinomed3d("compare", "777", "-tr", "A", "--rules", "other")
    assert refused.returncode == 2
