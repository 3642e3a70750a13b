"""The command ``dinomed3d``: it finds a command's module by the first word, and turns every error into one line."""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.processes import Stopped
from nnunetv2_dinomed3d.text import printable

COMMANDS = (
    "trainer-path",
    "doctor",
    "demo",
    "weights",
    "convert",
    "dataset",
    "plan",
    "predict",
    "export",
    "compare",
    "crossval",
    "reproduce",
    "look",
)
"""The commands, in the order of ``dinomed3d --help``. A command's module has its name, with _ for -."""

EXPECTED = (ValueError, OSError, RuntimeError, MemoryError, ImportError, subprocess.SubprocessError)
"""Errors that a user, a file or a machine can cause. SimpleITK, PyTorch and nnU-Net raise RuntimeError for them too."""


class Command(Protocol):
    """A module of this package that is a command.

    Attributes:
        HELP: one sentence.
        EXAMPLES: command lines, one a line.
    """

    HELP: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Do what the arguments ask for and return the exit code."""


def find_command(name: str) -> Command:
    """Import the module of a command, one of `COMMANDS`."""
    return cast(Command, import_module(f"{__package__}.{name.replace('-', '_')}"))


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command, one of `COMMANDS`, for the words after its name."""
    command = find_command(name)
    examples = "".join(f"  {line}\n" for line in command.EXAMPLES.strip().splitlines())
    parser = argparse.ArgumentParser(
        prog=f"dinomed3d {name}",
        description=command.HELP,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def overview_parser() -> argparse.ArgumentParser:
    """The parser for words that begin with no command: it has ``--help`` and ``--version``, and names the commands."""
    parser = argparse.ArgumentParser(prog="dinomed3d", description="DINO-Med3D for nnU-Net v2")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        commands.add_parser(name, help=find_command(name).HELP)
    return parser


def reason(error: BaseException) -> str:
    """A sentence about an error for the person who typed the command."""
    if isinstance(error, subprocess.CalledProcessError):
        command = error.cmd if isinstance(error.cmd, str) else shlex.join(map(str, error.cmd))
        how = f"exit code {error.returncode}" if error.returncode >= 0 else f"signal {-error.returncode}"
        return f"{command} ended with {how}. Its output above says why."
    if isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([" and ".join(names), error.strerror] if names else [error.strerror])
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({error})." if str(error) else "There is not enough memory."
    if isinstance(error, ImportError):
        return (
            f"{error}: a dependency is missing or broken. Reinstall it (pip install --force-reinstall), or run "
            "dinomed3d doctor."
        )
    if isinstance(error, EXPECTED) and str(error):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"Unexpected {type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}). If the files "
        "named are sound, please report this with the output of PYTHONDEVMODE=1 dinomed3d ..."
    )


def _print_error(text: str) -> None:
    line = " ".join(filter(None, map(str.strip, text.splitlines())))
    with suppress(OSError):  # nobody can be told
        print(f"dinomed3d: {printable(line)}", file=sys.stderr)


def _flush() -> None:
    """Write out what was printed. After a failure, standard output is closed: Python shall not try again at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            sys.stdout.close()
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"The output could not be written: {error.strerror}") from error


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as an exception does, so that it ends its children and removes its files."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return
    owner, received = os.getpid(), []

    def end(number: int, frame: object) -> None:
        if os.getpid() == owner:
            received.append(number)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # not nohup's
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:  # even if the command caught the exception
            raise Stopped(received[0])


def _silence_libraries() -> None:
    """Silence what libraries say to one another's authors, or about themselves: no user can do anything about it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' about one another; ours are printed
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # its cache of fonts, which is built once


def _run(words: Sequence[str]) -> int:
    if not words:
        overview_parser().print_help(sys.stderr)
        return 2
    try:
        if words[0] in COMMANDS:
            args = command_parser(words[0]).parse_args(words[1:])
            code = find_command(words[0]).run(args)
        else:
            parser = overview_parser()
            parser.parse_args(words)
            parser.error("name the command first, such as: dinomed3d doctor")
    except SystemExit as end:
        if not end.code:  # --help, --version
            _flush()
        raise
    except Exception:
        with suppress(OSError):  # what was printed stands before the error
            _flush()
        raise
    _flush()
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after ``dinomed3d``; None for those of this process.

    Returns:
        The exit code: 0; 1 after an error, which one line on standard error explains; 2 without a command; 75 if work
        was interrupted and can go on (`crossval`); 130 after Ctrl-C; 141 if nobody reads the output.

    Raises:
        SystemExit: 2 for an error in the arguments, 128 + n after the signal n, 0 after ``--help``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no name can stop a command that has done its work
    _silence_libraries()
    try:
        with _ending_on_signals():
            return _run(sys.argv[1:] if argv is None else argv)
    except Stopped as stopped:
        _print_error(f"ended by {stopped.signal.name}")
        raise
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _print_error("ended by SIGINT")
        return 128 + signal.SIGINT
    except Exception as error:
        if sys.flags.dev_mode:
            traceback.print_exc()
        _print_error(reason(error))
        return 1
