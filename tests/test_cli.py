"""The command ``dinomed3d`` as users type it: exit codes, what it prints, and one line for whatever goes wrong."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.commands import main as cli
from nnunetv2_dinomed3d.commands.main import COMMANDS, HANDLER, main, parser_for
from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from tests.evaluation_results import NAME, reference_of, write_map, write_results

PROGRAM = str(Path(sysconfig.get_path("scripts"), "dinomed3d"))
NANO = "nnUNetTrainerDINOMed3D_nano"


def dinomed3d(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    environment = {**os.environ, **settings}
    command = [PROGRAM, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=300)


def assert_one_line(code: object, error: str, pattern: str) -> None:
    """The exit code is 1, and what was said is one line that begins with the program's name."""
    assert code == 1, error
    assert error.endswith("\n")
    (line,) = error.splitlines()
    assert re.search(f"^dinomed3d: .*{pattern}", line), line
    assert line.isprintable()


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
    """nnU-Net's folders with two trainings that were validated, current folder and truth of a comparison; its root."""
    write_results(tmp_path, monkeypatch, {"A": 1, "B": 0})
    for name in ("DINOMED3D_WEIGHTS", "DINOMED3D_STAGE1", "DINOMED3D_SEED", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("gt", "pr"):
        write_map(tmp_path / folder / "c.nii.gz", reference_of(0))
    (tmp_path / "gt" / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}')
    write_map(tmp_path / "gt" / "c.nii.gz", (reference_of(0) == 1).astype(np.uint8))
    write_map(tmp_path / "pr" / "c.nii.gz", (reference_of(1) == 1).astype(np.uint8))
    return tmp_path


# ---- every command ----


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser with its arguments."""
    (commands,) = parser_for(list(COMMANDS))._subparsers._group_actions
    assert commands.choices.keys() == COMMANDS.keys()
    return commands.choices


@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_takes_the_place_of_the_function(command: str) -> None:
    """`crossval` once trained without --run, and died with it, as the option's value was the function's place."""
    parser = parsers()[command]
    assert callable(parser.get_default(HANDLER))
    assert HANDLER not in {action.dest for action in parser._actions}
    assert not HANDLER.isidentifier()  # nor will it be: argparse makes names of options
    every = {action.dest: action.const if action.nargs == 0 else ["x"] for action in parser._actions}
    filled = argparse.Namespace(**{HANDLER: parser.get_default(HANDLER), **every})
    assert getattr(filled, HANDLER) is parser.get_default(HANDLER)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option(command: str) -> None:
    done = dinomed3d(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for action in parsers()[command]._actions:
        for word in action.option_strings or [action.metavar]:
            assert re.search(rf"(^|[\s,\[]){re.escape(word)}\b", done.stdout, re.MULTILINE), word


def test_help_and_version() -> None:
    for words in (["-h"], ["--help"], ["-h", "plan"]):
        done = dinomed3d(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(re.search(rf"^    {name}\b", done.stdout, re.MULTILINE) for name in COMMANDS)
    done = dinomed3d("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_help_does_not_wait_for_pytorch() -> None:
    """It takes seconds to import."""
    code = "import sys; from nnunetv2_dinomed3d.commands.main import main"
    for words in ([], ["--version"], *([command, "-h"] for command in COMMANDS)):
        code += f"\ntry: main({words})\nexcept SystemExit: pass"
    code += "\nassert not {'torch', 'nnunetv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_without_a_command_help_is_given() -> None:
    done = dinomed3d()
    assert (done.returncode, done.stdout) == (2, "")
    assert all(name in done.stderr for name in COMMANDS)


def test_an_unknown_command() -> None:
    done = dinomed3d("compere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'compere'" in done.stderr


def test_as_a_module_of_this_python() -> None:
    done = subprocess.run([sys.executable, "-m", "nnunetv2_dinomed3d", "trainer-path"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{trainer_folder()}\n", "")


# ---- what goes right, in a process ----


def test_trainer_path_is_the_folder_to_export() -> None:
    done = dinomed3d("trainer-path")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.strip())
    assert folder == trainer_folder()
    assert (folder / "dinomed3d_trainers.py").is_file()


def test_compare(root: Path) -> None:
    done = dinomed3d("compare", "777", "-tr", "A", "B", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Path('out', 'report.html')}: 6 cases, 2 models\n"
    assert (root / "out" / "summary.json").is_file()
    done = dinomed3d("compare", "--pred", "m=pr", "--gt", "gt", "-o", "out2")
    assert done.returncode == 0, done.stderr
    assert (root / "out2" / "report.html").is_file()


def test_crossval(root: Path) -> None:
    done = dinomed3d("crossval", NAME, "-tr", "A", "C")
    assert (done.returncode, done.stderr) == (0, "")
    train = f"nnUNetv2_train {NAME} 3d_fullres"
    rest = [f"{train} {fold} -tr C -p nnUNetPlans" for fold in range(2)]
    assert done.stdout.splitlines() == ["# finished: A fold 0", "# finished: A fold 1", *rest]


def test_weights_of_a_file(root: Path) -> None:
    from nnunetv2_dinomed3d.commands.weights import _expected

    file = root / "small.pth"
    torch.save({name: torch.zeros(shape) for name, shape in _expected("small").items()}, file)
    done = dinomed3d("weights", "--check", file)
    assert done.returncode == 0, done.stderr
    assert "\nsmall: fits\n" in done.stdout


@pytest.mark.usefixtures("planned")
def test_plan() -> None:
    done = dinomed3d("plan", "-d", "901", "-tr", NANO, "-gpu_memory_target", "3")
    assert done.returncode == 0, done.stderr
    assert "nnUNetv2_train 901 3d_fullres 0 -tr nnUNetTrainerDINOMed3D_nano -p " in done.stdout
    assert "3d_fullres" in done.stdout


# ---- what goes wrong: data sets, numbers, settings ----

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
def test_what_is_no_data_set(command: str, root: Path, refused: Callable[..., None]) -> None:
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
    for path in (
        "no",
        "empty/below",
        "empty",
        "folder",
        "pipe",
        "/dev/zero",
        "/dev/null",
        "a" * 300,
        "loop",
        "\x1b[2J",
    ):
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
    refused("not an empty folder; name another with --out", "demo", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_in_a_process_too(root: Path) -> None:
    """What no test in this process can see: what libraries print at import, at the end, and from other processes."""
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


# ---- how a command ends ----


def test_nobody_reads_on() -> None:
    """``dinomed3d ... | head`` is no error, and nothing is said of it."""
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["trainer-path"], ["--help"], ["crossval", "--help"]):
        done = subprocess.run([PROGRAM, *words], stdout=writing, stderr=subprocess.PIPE, text=True)
        assert done.stderr == ""
        assert done.returncode == 141 or (done.returncode == 0 and "help" in words[-1])  # argparse lets that pass
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_what_cannot_be_printed() -> None:
    for unbuffered in ("", "1"):
        for words in (["trainer-path"], ["compare", "--help"]):
            with open("/dev/full", "w") as full:
                environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
                done = subprocess.run(
                    [PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
                )
            if words[-1] == "--help" and unbuffered:  # argparse itself lets that pass
                continue
            assert_one_line(done.returncode, done.stderr, "No space left on device")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_no_process(number: signal.Signals, code: int, root: Path) -> None:
    """While `compare` measures in processes of its own."""
    truth = np.zeros((64, 160, 160), np.uint8)
    truth[8:56, 20:140, 20:140] = 1
    for folder in ("gt", "pr"):
        write_map(root / folder / "large_0.nii.gz", np.roll(truth, folder == "pr", axis=2))
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
        session = process.pid
        end = time.monotonic() + 60
        while len(processes_of(session)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(processes_of(session)) >= 3, (root / "said").read_text()
        process.send_signal(number)
        assert process.wait(60) == code
    end = time.monotonic() + 60  # one that is being started looks at its parent later
    while processes_of(session) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes_of(session)
    if number != signal.SIGKILL:
        assert (root / "said").read_text() == f"dinomed3d: ended by {number.name}\n"


def processes_of(session: int) -> set[int]:
    """Of a session, the processes that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """``nohup`` and a closed terminal; and what was set before is set again."""
    seen = {}

    def look(args: argparse.Namespace) -> int:
        seen.update({number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)})
        return 0

    monkeypatch.setitem(cli.COMMANDS, "doctor", ("fails", lambda command: look))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        assert main(["doctor"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before[0])
    assert seen[signal.SIGHUP] is signal.SIG_IGN
    assert seen[signal.SIGTERM] is not before[1]
    assert signal.getsignal(signal.SIGTERM) is before[1]


# ---- how an error is told ----


def recursion(args: argparse.Namespace) -> int:
    return recursion(args)


def missing_library(args: argparse.Namespace) -> int:
    import no_such_library  # noqa: F401

    return 0


def raises(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (raises(ValueError("two\nlines,\n  and\r\nmore\x1b[31m\u202e")), r"two lines, and more\x1b[31m\u202e"),
        (raises(OSError(28, "No space left on device", "out/cases.csv")), "out/cases.csv: No space left on device"),
        (raises(OSError(5, "Input/output error")), "Input/output error"),
        (raises(PermissionError(13, "Permission denied", "a", None, "b")), "a and b: Permission denied"),
        (raises(TimeoutError("The Hub did not answer")), "The Hub did not answer"),
        (raises(MemoryError()), "The memory does not suffice"),
        (raises(RuntimeError("SimpleITK: cannot read")), "SimpleITK: cannot read"),
        (raises(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), "'utf-8' codec can't decode byte 0xff in position"),
        (lambda args: json.loads("{"), "Expecting property name"),
        (lambda args: json.loads("[" * 200_000), "maximum recursion depth exceeded"),
        (recursion, "maximum recursion depth exceeded"),
        (missing_library, "No module named 'no_such_library': a dependency is missing or broken"),
        (
            lambda args: subprocess.run(["sh", "-c", "exit 3"], check=True).returncode,
            "sh -c 'exit 3' ended with exit code 3",
        ),
        (raises(subprocess.CalledProcessError(-9, ["nnUNetv2_train", "a b"])), "nnUNetv2_train 'a b' ended with sig"),
        (lambda args: subprocess.run(["no-such-program"]).returncode, "no-such-program: No such file or directory"),
        (lambda args: [][0], "IndexError: list index out of range (test_cli.py, line "),
        (raises(AssertionError()), "AssertionError:  (test_cli.py, line "),
    ],
)
def test_an_error_is_one_line(
    run: Callable[[argparse.Namespace], int],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("fails", lambda command: run))
    assert_one_line(main(["doctor"]), capsys.readouterr().err, re.escape(said))


def test_what_was_not_foreseen_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("fails", lambda command: raises(KeyError("a"))))
    assert main(["doctor"]) == 1
    assert "please report it with what PYTHONDEVMODE=1 dinomed3d ... prints" in capsys.readouterr().err
    done = dinomed3d("crossval", "777", "-tr", "A", PYTHONDEVMODE="1", nnUNet_raw="/no", nnUNet_results="")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("dinomed3d: ")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("fails", lambda command: raises(KeyboardInterrupt())))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "dinomed3d: ended by SIGINT\n"


def test_a_terminal_that_cannot_show_a_name(root: Path) -> None:
    """Its characters are escaped; what was written stays written, and the exit code is 0."""
    done = dinomed3d("compare", "--pred", "m=pr", "--gt", "gt", "-o", "größe", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"gr\xf6\xdfe/report.html")
