"""``dinomed3d compare`` as it is typed: what it prints, its exit code, hostile names, lost pictures, signals."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.evaluation import report_pictures
from nnunetv2_dinomed3d.text import printable
from tests.evaluation_results import (
    NAME,
    draw_nothing,
    fold_folder,
    measure_here,
    reference_of,
    write_map,
    write_results,
)
from tests.processes import await_end_of_session, session

pytestmark = pytest.mark.own

COMMAND = str(Path(sysconfig.get_path("scripts"), "dinomed3d"))
FORMULA = '=HYPERLINK("x")'
CASE = "-a$b$_<b>|c"
MODEL = "@_<script>alert(1)</script>$\\x$ [l](http://e)\x1b[31m\n2026-01-01"


def compare(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "compare", *map(str, words)], capture_output=True, text=True, errors="replace", timeout=300
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of reference and predictions, one case, below a user's home."""
    root = tmp_path / "home" / "alice" / "work"
    root.mkdir(parents=True)
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # fonts are not looked for again
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)
    for kind, shift in (("gt", 0), ("pr", 1)):
        write_map(root / kind / "c.nii.gz", np.roll(reference_of(0), shift, 2))
    describe({"background": 0, "organ": 1, "lesion": 2})
    return root


def describe(labels: Mapping[str, object], **more: object) -> None:
    Path("gt/dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", **more}))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that an error is."""
    capsys.readouterr()
    assert main(["compare", *map(str, words)]) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    (line,) = error.splitlines()
    assert line.startswith("dinomed3d: ")
    assert line.isprintable()
    return line


def test_hostile_names_are_shown_and_do_nothing(root: Path) -> None:
    """HTML, formulas, Markdown, TeX and control characters in names of cases, labels, models."""
    Path("x").mkdir()
    for kind in ("gt", "pr"):
        Path(kind, "c.nii.gz").rename(Path(kind, f"{CASE}.nii.gz"))
    labels = {"background": 0, FORMULA: 1, "_l$\\frac$\u202e\n| x |": 2}
    describe(labels)
    done = compare("--pred", f"{MODEL}=pr", f"$=pr={root / 'pr'}"[2:], "--gt", root / "gt", "-o", "x/out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second, where = done.stdout.splitlines()
    assert first.startswith(f"{printable(MODEL)}: Dice 0.")
    assert second == f"pr and {printable(MODEL)} have the same Dice on 1 case; so few cases allow no conclusion."
    assert where == "x/out/report.html: 1 case, 2 models"

    page, text = (Path("x/out", name).read_text() for name in ("report.html", "report.md"))
    assert not re.search(r"<(script|b)>", page)
    assert html.escape(printable(MODEL)) in page
    assert not re.search(r"(?<!\\)<(script|b)>", text)
    assert "[l\\](http\\://e)" in text
    for content in (page, text):
        assert all(c.isprintable() for line in content.splitlines() for c in line)
        assert "could not be drawn" not in content
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
    assert len(tables) == 5 + 4 + 1, "of five metrics, of four differences, of what is empty"
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, "no name adds a cell"

    with Path("x/out/cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == {f"'{CASE}"}
    assert {row["label"] for row in rows} == {f"'{FORMULA}", "_l$\\frac$\\u202e\\n| x |"}
    assert all(value[:1] not in "=+@\t\r" or not value for row in rows for value in row.values())
    assert all(float(row["volume_difference_ml"]) <= 0 for row in rows), "numbers stay numbers"
    summary = json.loads(Path("x/out/summary.json").read_text())
    assert set(summary["provenance"]["models"]) == {MODEL, "pr"}, "JSON holds names as they are"

    for name in ("report.html", "report.md", "summary.json", "cases.csv"):
        assert "alice" not in Path("x/out", name).read_text(), "no user's name"
        assert str(root) not in Path("x/out", name).read_text()


def test_a_picture_that_fails_is_noted_and_loses_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **more: object) -> None:
        raise RuntimeError("no\nfont")

    Path("compare/figures").mkdir(parents=True)
    Path("compare/figures/dice.png").write_bytes(b"of an earlier comparison")
    measure_here(monkeypatch)
    monkeypatch.setattr(report_pictures, "draw_boxes", fail)
    monkeypatch.setattr(report_pictures, "draw_case", fail)
    assert main(["compare", "--pred", "m=pr", "--gt", "gt"]) == 0
    printed, error = capsys.readouterr()
    assert printed.endswith("on 1 case.\ncompare/report.html: 1 case, 1 model\n")
    assert error.splitlines()[0] == "warning: figures/dice.png could not be drawn: no\\nfont"
    assert sorted(path.name for path in Path("compare/figures").iterdir()) == ["volume.png"]
    page = Path("compare/report.html").read_text()
    assert page.count("This picture could not be drawn (RuntimeError)") == 3
    assert page.count("<img") == 1


def test_an_image_that_cannot_be_read_loses_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, monkeypatch, {"A": 1})
    measure_here(monkeypatch)
    paths = [tmp_path / "nnUNet_raw" / NAME / "imagesTr" / f"case_{i}_0000.nii.gz" for i in range(6)]
    content = paths[0].read_bytes()
    for path in paths[:5]:
        path.unlink()
    write_map(paths[0], np.zeros((2, 3, 4), np.float32))
    paths[1].write_bytes(content[: len(content) // 2])
    paths[2].write_bytes(b"text")
    os.mkfifo(paths[3])  # as if it were not there
    paths[4].mkdir()
    assert main(["compare", "777", "-tr", "A", "-o", "out"]) == 0
    lines = sorted(capsys.readouterr().err.splitlines())
    assert [line.split(":")[1] for line in lines] == [f" case_{i} is shown without its image" for i in range(3)]
    assert "has shape (2, 3, 4), the reference (8, 24, 20)" in lines[0]
    assert len(list(Path("out/figures").glob("*_?.png"))) == 6


def test_each_error_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--pred", "m=pr", "--gt", "gt")
    for number, reason in (("nan", "0 mm or more"), ("inf", "0 mm or more"), ("-1", "0 mm"), ("x", "neither MM")):
        assert reason in refused(capsys, *given, f"--tolerance={number}")
    assert "no label 'liver'" in refused(capsys, *given, "--tolerance", "liver=2")
    assert "is not NAME=FOLDER" in refused(capsys, "--pred", "pr", "--gt", "gt")
    assert "is not NAME=FOLDER" in refused(capsys, "--pred", " =pr", "--gt", "gt")
    assert "nowhere is no folder" in refused(capsys, "--pred", "m=nowhere", "--gt", "gt")
    assert "No dataset.json" in refused(capsys, "--pred", "m=pr", "--gt", "nowhere")
    for dataset in ("4", "/etc", "*", "..", "Dataset004\n", "²", "9" * 5000, ""):
        if dataset:
            assert "nnUNet_raw" in refused(capsys, dataset, *given)
    assert "nnUNet_def_n_proc is '0'" in with_setting(capsys, "nnUNet_def_n_proc", "0", *given)
    assert "nnUNet_def_n_proc is '²'" in with_setting(capsys, "nnUNet_def_n_proc", "²", *given)
    assert not Path("compare").exists(), "what was refused leaves nothing"
    describe({"background": 0, "mean of labels": 1, "b": 2})
    assert "the report has a row 'mean of labels' of its own" in refused(capsys, *given)
    describe({"background": 0, "a": 1, "b": 2}, file_ending=".png")
    assert "do not hold their spacing" in refused(capsys, *given)


def with_setting(capsys: pytest.CaptureFixture[str], name: str, value: str, *words: object) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        return refused(capsys, *words)


def test_what_is_refused_in_a_process_is_one_line_too(root: Path) -> None:
    """A damaged file is found in another process; nothing but the line is printed, and nothing is left."""
    path = root / "pr" / "c.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    done = compare("--pred", "m=pr", "--gt", "gt", "-o", "new/out")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("dinomed3d: pr/c.nii.gz is cut off or damaged")
    assert not Path("new").exists()
    done = compare("--pred")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_output_is_tried_before_anything_is_measured(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2_dinomed3d.evaluation.measure.measure", lambda *_: pytest.fail("measured"))
    Path("file").touch()
    Path("out/report.html").mkdir(parents=True)
    Path("fifo").mkdir()
    os.mkfifo("fifo/cases.csv")
    given = ("--pred", "m=pr", "--gt", "gt", "-o")
    for out in ("file", "file/below", "/proc/nothing", "/dev/full", "out", "fifo", "x" * 300):
        assert out[:100] in refused(capsys, *given, out)
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # as a full disk
    try:
        assert "-o full: the report cannot be written there" in refused(capsys, *given, "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not Path("full").exists()


def test_the_data_set_may_stand_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, monkeypatch, {"A": 1, "B": 2})
    measure_here(monkeypatch)
    draw_nothing(monkeypatch)
    assert main(["compare", "-tr", "A", "B", "777"]) == 0
    first, second, where = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"A: Dice 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] on 6 cases\.", first)
    assert re.fullmatch(r"B is worse than A by 0\.\d{3} Dice \[0\.\d{3}, 0\.\d{3}\] on 6 cases, worse on 6\.", second)
    assert where == f"compare_{NAME}/report.html: 6 cases, 2 models"
    (fold_folder(tmp_path, "B", 0) / "validation" / "summary.json").unlink()
    assert "B lacks 3" in refused(capsys, "-tr", "A", "B", "-p", "nnUNetPlans", NAME)
    assert "before the options, such as: dinomed3d compare 4" in refused(capsys, "-tr", "A", "B", "-f", "0", "777")


def test_one_model_has_no_empty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, monkeypatch, {"A": 1})
    measure_here(monkeypatch)
    draw_nothing(monkeypatch)
    assert main(["compare", "777", "-tr", "A", "-o", "out"]) == 0
    text = Path("out/report.md").read_text()
    assert "6 cases, 1 model: A." in text
    assert "| label | model | cases | mean | 95% interval | median |\n" in text
    assert "wins" not in text.split("## Rules")[0]
    assert f"nnUNet_results/{NAME}/A__nnUNetPlans__3d_fullres" in Path("out/report.html").read_text()
    assert str(tmp_path) not in "".join(path.read_text() for path in Path("out").glob("*.*"))


def test_fold_all_beside_others_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, monkeypatch, {"A": 1})
    measure_here(monkeypatch)
    draw_nothing(monkeypatch)
    fold = fold_folder(tmp_path, "A", 0)
    (fold.with_name("fold_all") / "validation").mkdir(parents=True)
    (fold.with_name("fold_all") / "validation" / "summary.json").write_text("{}")
    fold.with_name("fold_3").mkdir()  # a start that failed
    assert main(["compare", "777", "-tr", "A", "-o", "out"]) == 0
    assert "warning: A: fold all is left out" in capsys.readouterr().err
    assert "A: fold all is left out" in Path("out/report.md").read_text()
    (tmp_path / "nnUNet_results" / NAME / "B__nnUNetPlans__3d_fullres" / "fold_0").mkdir(parents=True)
    assert "there are: A__nnUNetPlans__3d_fullres. Train" in refused(capsys, "777", "-tr", "C")
    for folds, reason in ((["0", "00"], "fold 0 more than once"), (["x"], "'x' is no fold"), (["-1"], "no fold")):
        assert reason in refused(capsys, "777", "-tr", "A", *(["-f", *folds] if folds != ["-1"] else ["-f=-1"]))


def test_a_signal_to_the_whole_group_ends_it_in_one_line(root: Path) -> None:
    """As Slurm and a closed terminal send it: children first does not make another error of it."""
    noise = np.random.default_rng(0).integers(0, 3, (60, 120, 120)).astype(np.uint8)
    for kind in ("gt", "pr"):
        write_map(root / kind / "c.nii.gz", np.roll(noise, kind == "pr", 2))
    with Path("said").open("w") as said:
        process = subprocess.Popen(
            [COMMAND, "compare", "--pred", "m=pr", "--gt", "gt"], stdout=said, stderr=said, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while len(session(process.pid)) < 3 and time.monotonic() < deadline:  # it, its worker, its resource tracker
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    await_end_of_session(process.pid)
    assert Path("said").read_text() == "dinomed3d: ended by SIGTERM\n"
    assert not Path("compare").exists()


def test_compare_imports_nothing_heavy_for_its_help() -> None:
    code = (
        "import sys\nfrom nnunetv2_dinomed3d.commands.main import command_parser\ncommand_parser('compare')\n"
        "print(sorted({'torch', 'nnunetv2', 'scipy', 'matplotlib', 'SimpleITK'} & set(sys.modules)))\n"
        "import nnunetv2_dinomed3d.commands.crossval, nnunetv2_dinomed3d.evaluation.measure\n"
        "import nnunetv2_dinomed3d.evaluation.report\n"
        "print(sorted({'torch', 'nnunetv2', 'nnunetv2_dinomed3d.trainers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_pictures_show_what_was_measured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No label map is read again: it could be another one by then."""
    shown = []
    measure_here(monkeypatch)

    def look(title: str, plane: object, labels: object, **more: object) -> None:
        shown.append(plane.maps())  # type: ignore[attr-defined]
        (root / "pr" / "c.nii.gz").unlink(missing_ok=True)
        raise RuntimeError

    monkeypatch.setattr(report_pictures, "draw_case", look)
    assert main(["compare", "--pred", "m=pr", "--gt", "gt"]) == 0
    ((reference, first), (model, second)) = shown[0]
    assert (reference, model) == ("reference", "m")
    np.testing.assert_array_equal(np.unique(first), [0, 1, 2])
    assert (first != second).any()
