"""Converting a download again: after it was done, after an interruption, beside another process, on a full disk."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.datasets.download import Case
from nnunetv2_dinomed3d.datasets.split import eight_one_one, one_fold
from tests.command_line import assert_one_line
from tests.made_up_downloads import acdc, dataset, nnunet_folders
from tests.processes import wait_until

pytestmark = pytest.mark.own

DATASET = [sys.executable, "-m", "nnunetv2_dinomed3d", "dataset"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """See `nnunet_folders`."""
    return nnunet_folders(tmp_path, monkeypatch)


def test_splits_by_patient() -> None:
    cases = [Case(f"p{n:03d}_{phase}", f"p{n:03d}", (), ()) for n in range(100) for phase in (1, 2)]
    parts = eight_one_one(cases, 0)
    assert [sum(part == wanted for part in parts.values()) for wanted in ("train", "val", "test")] == [160, 20, 20]
    assert all(parts[f"p{n:03d}_1"] == parts[f"p{n:03d}_2"] for n in range(100))
    assert parts == eight_one_one(cases[::-1], 0) != eight_one_one(cases, 1)
    (fold,) = one_fold(parts)
    assert (len(fold["train"]), len(fold["val"])) == (160, 20)
    few = eight_one_one(cases[:6], 0)
    assert sorted(few.values()) == ["test", "test", "train", "train", "val", "val"]


@pytest.mark.parametrize(("patients", "tenth"), [(397, 40), (281, 28), (126, 13), (368, 37), (369, 37)])
def test_tenths_of_the_papers_data_sets(patients: int, tenth: int) -> None:
    parts = list(eight_one_one([Case(str(n), str(n), (), ()) for n in range(patients)], 0).values())
    assert (parts.count("test"), parts.count("val")) == (tenth, tenth)


def test_a_second_time_nothing_is_done(folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = acdc(folders / "download")
    words = ("acdc", source, "--plain", "--incomplete")
    assert dataset(*words) == 0
    before = {path: path.stat().st_mtime_ns for path in (folders / "nnUNet_raw").rglob("*")}
    assert dataset(*words) == 0
    assert "There already: " in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (folders / "nnUNet_raw").rglob("*")} == before
    assert dataset(*words, "--leave-out", "patient001") == 1
    assert_one_line(1, capfd.readouterr().err, "is there already and was made in another way")


def test_after_an_interruption_the_rest_is_done(folders: Path) -> None:
    """Killed at once, with all its processes; what was half written is not taken for whole."""
    source = acdc(folders / "download", (1, 2, 3, 4))
    partial = folders / "nnUNet_raw" / ".Dataset505_ACDCPaper.partial"
    records = partial / ".records"
    words = ("acdc", str(source), "--incomplete", "--slices", "2")
    command = [*DATASET, *words]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(records.glob("*.json"))) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("images*/*")}
    assert not (folders / "nnUNet_raw" / "Dataset505_ACDCPaper").exists()
    finished = json.loads(min(records.glob("*.json")).read_text())["written"]
    broken = next(name for name in finished if name.startswith("labels"))
    (partial / broken).write_bytes(b"")  # somebody or something damaged it
    assert dataset(*words) == 0
    raw = folders / "nnUNet_raw" / "Dataset505_ACDCPaper"
    assert not partial.exists()
    assert len(list(raw.glob("images*/*"))) == 8
    again = {path.name: path.stat().st_mtime_ns for path in raw.glob("images*/*")}
    case = Path(broken).name.removesuffix(".nii.gz")
    kept = [name for name, time in done.items() if again[name] == time]
    assert kept
    assert f"{case}_0000.nii.gz" not in kept


def test_a_second_process_keeps_away(folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from nnunetv2_dinomed3d.folder_lock import LOCK, Owner

    partial = folders / "nnUNet_raw" / ".Dataset515_ACDC.partial"
    partial.mkdir()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = Owner.this_process()
    try:
        started = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
        content = {**owner.__dict__, "pid": other.pid, "started": started, "token": "other"}
        (partial / LOCK).write_text(json.dumps(content))
        assert dataset("acdc", acdc(folders / "download"), "--plain", "--incomplete") == 1
    finally:
        other.kill()
        other.wait()
    assert_one_line(1, capfd.readouterr().err, "is being written by another process")


@pytest.mark.parametrize("how", ["--plain", "--as-paper"])
def test_a_disk_that_fills_up(folders: Path, how: str) -> None:
    """No file may become larger than a few kilobytes, which stands for a full disk."""
    source = acdc(folders / "download")
    most = 700 if how == "--plain" else 60_000

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    words = ("acdc", str(source), "--incomplete", how, *(["--slices", "1"] if how == "--as-paper" else []))
    command = [*DATASET, *words]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert re.search(r"is the disk full|File too large", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list((folders / "nnUNet_raw").glob("Dataset*"))
    assert not list((folders / "nnUNet_raw").glob(".Dataset*/images*/*"))
    assert dataset(*words) == 0
