"""Arguments that no command can use: data sets, numbers, files and folders. Each command says so in one line."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_dinomed3d.commands.main import main
from tests.command_line import NANO, assert_one_line, dinomed3d
from tests.evaluation_results import NAME, reference_of, write_map, write_results

pytestmark = pytest.mark.own


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., None]]:
    """Run a command in this process, which must refuse and not hang. Many of them cost little."""

    class Hangs(BaseException):
        """Not to be taken for an error of the command."""

    def hangs(number: int, frame: object) -> None:
        raise Hangs

    def run(pattern: str, *words: object) -> None:
        signal.alarm(120)
        try:
            code: object = main([str(word) for word in words])
        finally:
            signal.alarm(0)
        assert_one_line(code, capfd.readouterr().err, pattern)

    before = signal.signal(signal.SIGALRM, hangs)
    yield run
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders with two validated trainings, and the references of a comparison; the current folder."""
    write_results(tmp_path, monkeypatch, {"A": 1, "B": 0})
    for name in ("DINOMED3D_WEIGHTS", "DINOMED3D_STAGE1", "DINOMED3D_SEED", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    write_map(tmp_path / "gt" / "c.nii.gz", (reference_of(0) == 1).astype(np.uint8))
    write_map(tmp_path / "pr" / "c.nii.gz", (reference_of(1) == 1).astype(np.uint8))
    (tmp_path / "gt" / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}')
    return tmp_path


# ---- data sets, numbers, settings ----

WITH_DATASET: dict[str, Callable[[str], list[str]]] = {
    "compare": lambda name: ["compare", name, "-tr", "A"],
    "crossval": lambda name: ["crossval", name, "-tr", "A"],
    "plan": lambda name: ["plan", f"-d{name}"] if name else ["plan", "-d", ""],
    "look": lambda name: ["look", "case_0", f"-d{name}", "-tr", NANO] if name else ["look", "c", "-d", "", "-tr", NANO],
}
NO_DATASETS = (
    *("", " ", ".", "..", "./x", "../etc", "/etc", f"{NAME}/", f"./{NAME}", f"nnUNet_raw/{NAME}"),
    *("*", "Dataset*", "Dataset777_?ade", "[", "[!a]*", "**"),
    *("0", "-1", "999999", "7.77", "0x309", "1e3", "²", "\u0667" * 3, "\uff17" * 3, "7" * 5000),
    *("x", "Dataset", "Dataset778_Other", "a\nb", "\x1b[2J", "\0", "\ud800", "a" * 5000),
)


@pytest.mark.parametrize("command", WITH_DATASET)
def test_names_of_no_data_set(command: str, root: Path, refused: Callable[..., None]) -> None:
    for name in NO_DATASETS:
        refused("No data set|-tr needs the data set", *WITH_DATASET[command](name))


@pytest.mark.parametrize("command", WITH_DATASET)
def test_nnunets_folders(
    command: str, root: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = WITH_DATASET[command]("777")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(root / "gt" / "dataset.json"))
            refused(f"{name} is .*dataset.json, which is no folder: export {name}=", *words)
    if command in ("compare", "crossval", "plan"):
        with monkeypatch.context() as patch:
            patch.delenv("nnUNet_preprocessed")
            refused("nnUNet_preprocessed", *words)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name)
    refused("None of nnUNet_raw, .* is set: export nnU-Net's folders", *words)


def test_wrong_numbers(root: Path, refused: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    for number in ("nan", "inf", "-inf", "-1", "0", "1e400"):
        refused("-gpu_memory_target", "plan", "-d", "777", "-tr", NANO, f"-gpu_memory_target={number}")
    for number in ("nan", "inf", "-1", "x", "", "organ=", "=1", "organ=nan"):
        refused("--tolerance", "compare", "777", "-tr", "A", "--tolerance", number)
    for fold in ("x", "²", "", "9", "0 1"):
        refused("fold", "compare", "777", "-tr", "A", "-f", fold)
    for words in (["plan", "-d", "777", "-gpu_memory_target", "x"], ["look", "c", "-d", "7", "-tr", "A", "--slices=²"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "invalid" in capfd.readouterr().err


BROKEN = {
    "empty": b"",
    "cut": b'{"labels": {"background"',
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "no object in it": b'{"configurations": [], "labels": [], "channel_names": [], "file_ending": []}',
    "not UTF-8": b"\xff\xfe{\x00}\x00",
    "deep": b"[" * 200_000,
    "long number": b"9" * 10_000,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_json(content: bytes, root: Path, refused: Callable[..., None]) -> None:
    folder = root / "nnUNet_preprocessed" / NAME
    for name, *words in (
        ("dataset.json", "compare", "777", "-tr", "A"),
        ("splits_final.json", "compare", "777", "-tr", "A"),
        ("splits_final.json", "crossval", "777", "-tr", "A"),
        ("nnUNetPlans.json", "crossval", "777", "-tr", "A"),
        ("nnUNetPlans.json", "plan", "-d", "777", "-tr", NANO),
    ):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        refused(name, *words)
        (folder / name).write_bytes(good)
    (root / "gt" / "dataset.json").write_bytes(content)
    refused("dataset.json", "compare", "--pred", "m=pr", "--gt", "gt")
    (root / "in.pth").write_bytes(b"PK")
    (root / "plans.json").write_bytes(content)
    refused("", "convert", "in.pth", "-o", "out", "--plans", "plans.json", "--dataset-json", "plans.json")


# ---- paths ----

TO_READ: dict[str, Callable[[Path], list[object]]] = {
    "weights --check": lambda path: ["weights", "--check", path],
    "convert": lambda path: ["convert", path, "-o", "out"],
    "compare --gt": lambda path: ["compare", "--pred", "m=pr", "--gt", path],
    "compare --pred": lambda path: ["compare", "--pred", f"m={path}", "--gt", "gt"],
}
TO_WRITE: dict[str, Callable[[Path], list[object]]] = {
    "compare": lambda path: ["compare", "--pred", "m=pr", "--gt", "gt", "-o", path],
    "demo": lambda path: ["demo", "--out", path],
}


@pytest.mark.parametrize("option", TO_READ)
def test_nothing_to_read(option: str, root: Path, refused: Callable[..., None]) -> None:
    """Missing, below a file, empty, a pipe that nobody writes to, a device, a name too long, a loop of links."""
    words = TO_READ[option]
    (root / "empty").touch()
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    missing, files, devices = (
        ("no", "empty/below", "a" * 300, "\x1b[2J"),
        ("empty", "folder", "pipe", "loop"),
        (
            "/dev/zero",
            "/dev/null",
        ),
    )
    for path in (*missing, *files, *devices):
        refused("", *words(Path(path)))
    if os.geteuid():
        (root / "pr" / "c.nii.gz").chmod(0)
        refused("c.nii.gz", "compare", "--pred", "m=pr", "--gt", "gt")


@pytest.mark.parametrize("option", TO_WRITE)
def test_nothing_to_write_to(option: str, root: Path, refused: Callable[..., None]) -> None:
    words = TO_WRITE[option]
    (root / "file").touch()
    (root / "loop").symlink_to("loop")
    for path in ("file", "file/below", "/proc/nothing", "/dev/full", "/dev/null/below", "a" * 300, "loop"):
        refused(re.escape(path[:99]), *words(Path(path)))
    assert (root / "file").read_bytes() == b""
    if os.geteuid():
        (root / "shut").mkdir(mode=0o500)
        refused("shut", *words(Path("shut/below")))


def test_demo_does_not_write_over_a_folder(tmp_path: Path, refused: Callable[..., None]) -> None:
    (tmp_path / "precious").touch()
    refused("not an empty folder. Name another with --out", "demo", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_in_a_process_too(root: Path) -> None:
    """Output that a test in this process cannot see: of libraries at their import or end, and of other processes."""
    (root / "file").touch()
    for pattern, *words in (
        ("No data set '../etc'", "look", "case_0", "-d", "../etc", "-tr", NANO),
        ("No data set '-1'", "plan", "-d", "-1"),
        ("--folds '²' is no fold", "crossval", "777", "-tr", "A", "--folds", "²"),
        ("Other.json", "crossval", "777", "-tr", "A", "-p", "Other"),
        ("file", "compare", "--pred", "m=pr", "--gt", "gt", "-o", "file"),
        ("file", "demo", "--out", "file/below"),
        ("no.pth", "weights", "--check", "no.pth"),
        ("no.pth", "convert", "no.pth", "-o", "out"),
    ):
        done = dinomed3d(*words)
        assert_one_line(done.returncode, done.stderr, re.escape(pattern))
        assert "Traceback" not in done.stdout
