"""``dinomed3d compare`` in a process: it reports, prints what any terminal can show, and leaves no process behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import PROGRAM, dinomed3d
from tests.evaluation_results import reference_of, write_map, write_results
from tests.processes import await_end_of_session, session

pytestmark = pytest.mark.own


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders with two validated trainings, and folders of a reference and a prediction; the current one."""
    write_results(tmp_path, monkeypatch, {"A": 1, "B": 0})
    write_map(tmp_path / "gt" / "c.nii.gz", (reference_of(0) == 1).astype(np.uint8))
    write_map(tmp_path / "pr" / "c.nii.gz", (reference_of(1) == 1).astype(np.uint8))
    (tmp_path / "gt" / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}')
    return tmp_path


def test_trainings(root: Path) -> None:
    done = dinomed3d("compare", "777", "-tr", "A", "B", "-o", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{Path('out', 'report.html')}: 6 cases, 2 models"
    assert (root / "out" / "summary.json").is_file()


def test_folders_on_a_terminal_that_cannot_show_a_name(root: Path) -> None:
    """Its characters are escaped. The files stay written, and the exit code is 0."""
    done = dinomed3d("compare", "--pred", "m=pr", "--gt", "gt", "-o", "größe", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(r"gr\xf6\xdfe/report.html")
    assert (root / "größe" / "report.html").is_file()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_no_process(number: signal.Signals, code: int, root: Path) -> None:
    """The signal comes while `compare` measures in processes of its own."""
    reference = np.zeros((64, 160, 160), np.uint8)
    reference[8:56, 20:140, 20:140] = 1
    for folder in ("gt", "pr"):
        write_map(root / folder / "large_0.nii.gz", np.roll(reference, folder == "pr", axis=2))
        for i in range(1, 60):
            (root / folder / f"large_{i}.nii.gz").symlink_to("large_0.nii.gz")
    with (root / "said").open("w") as said:
        process = subprocess.Popen(
            [PROGRAM, "compare", "--pred", "m=pr", "--gt", "gt"],
            env={**os.environ, "nnUNet_def_n_proc": "2"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        end = time.monotonic() + 60
        while len(session(process.pid)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(session(process.pid)) >= 3, (root / "said").read_text()
        process.send_signal(number)
        assert process.wait(60) == code
    await_end_of_session(process.pid)  # one that is being started looks at its parent later
    if number != signal.SIGKILL:
        assert (root / "said").read_text() == f"dinomed3d: ended by {number.name}\n"
