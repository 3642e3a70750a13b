"""The command ``dinomed3d``: its help, its exit codes, how it ends, and one line for whatever goes wrong."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.commands import doctor
from nnunetv2_dinomed3d.commands.main import COMMANDS, command_parser, find_command, main
from tests.command_line import PROGRAM, assert_one_line, dinomed3d

pytestmark = pytest.mark.own

HEAVY = {"torch", "nnunetv2", "numpy", "scipy", "SimpleITK", "matplotlib", "timm", "transformers", "huggingface_hub"}

Run = Callable[[argparse.Namespace], int]


def in_this_process(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """Exit code, standard output and standard error."""
    try:
        code: object = main(list(words))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


# ---- help ----


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_and_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, error = in_this_process(capsys, command, "--help")
    assert (code, error) == (0, "")
    assert find_command(command).HELP in " ".join(output.split())
    for action in command_parser(command)._actions:
        for word in action.option_strings or [str(action.metavar)]:
            assert re.search(rf"(^|[\s,\[]){re.escape(word)}\b", output, re.MULTILINE), word
    examples = output.partition("examples:\n")[2].splitlines()
    assert any(f"dinomed3d {command}" in line for line in examples)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "trainer-path"])
def test_examples_are_understood(command: str) -> None:
    for line in find_command(command).EXAMPLES.strip().splitlines():
        program, name, *words = line.split()
        assert (program, name) == ("dinomed3d", command)
        command_parser(command).parse_args(words)


@pytest.mark.parametrize("words", [[], ["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Such libraries take seconds to import. A real process for each command, as help has to come at once."""
    code = (
        "import sys\nfrom nnunetv2_dinomed3d.commands.main import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout or not words


def test_a_command_imports_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\nfrom nnunetv2_dinomed3d.commands.main import main\nmain(['trainer-path'])\n"
        "print(*sorted(name.rpartition('.')[2] for name in sys.modules if '_dinomed3d.commands.' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "main trainer_path"


def test_help_and_version_of_the_program() -> None:
    for words in (["-h"], ["--help", "plan"]):
        done = dinomed3d(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(re.search(rf"^    {name}\b", done.stdout, re.MULTILINE) for name in COMMANDS)
        assert all(find_command(name).HELP in " ".join(done.stdout.split()) for name in COMMANDS)
    done = dinomed3d("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_without_a_command_help_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, error = in_this_process(capsys)
    assert (code, output) == (2, "")
    assert all(name in error for name in COMMANDS)


@pytest.mark.parametrize("words", [["compere"], ["--", "plan"], ["main"], ["trainer_path"], [""]])
def test_an_unknown_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, output, error = in_this_process(capsys, *words)
    assert (code, output) == (2, "")
    assert "invalid choice: " in error or "name the command first" in error


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


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """``nohup`` and a closed terminal; and the handlers of before are set again."""
    seen = {}

    def look(args: argparse.Namespace) -> int:
        seen.update({number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)})
        return 0

    monkeypatch.setattr(doctor, "run", look)
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


def raises(error: BaseException) -> Run:
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
        (raises(MemoryError()), "There is not enough memory"),
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
        (lambda args: [][0], "IndexError: list index out of range (test_commands_main.py, line "),
        (raises(AssertionError()), "AssertionError:  (test_commands_main.py, line "),
    ],
)
def test_an_error_is_one_line(
    run: Run, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run", run)
    assert_one_line(main(["doctor"]), capsys.readouterr().err, re.escape(said))


def test_an_unexpected_error_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run", raises(KeyError("a")))
    assert main(["doctor"]) == 1
    assert "please report this with the output of PYTHONDEVMODE=1 dinomed3d ..." in capsys.readouterr().err
    done = dinomed3d("crossval", "777", "-tr", "A", PYTHONDEVMODE="1", nnUNet_raw="/no", nnUNet_results="")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("dinomed3d: ")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "run", raises(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "dinomed3d: ended by SIGINT\n"
