"""The command ``dinomed3d``."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.nnunet_files import dataset_name
from nnunetv2_dinomed3d.planning.target import DEFAULT_GB, require_memory
from nnunetv2_dinomed3d.processes import Stopped
from nnunetv2_dinomed3d.text import printable

Handler = Callable[[argparse.Namespace], int]

HANDLER = "<handler>"
"""Where a command's function stands among the parsed arguments: a name that no argument can have."""

EXPECTED = (ValueError, OSError, RuntimeError, MemoryError, ImportError, subprocess.SubprocessError)
"""What a user, a file or a machine can cause; SimpleITK, PyTorch and nnU-Net say it with RuntimeError too."""


def _trainer_path(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        print(trainer_folder())
        return 0

    return run


def _doctor(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        from nnunetv2_dinomed3d.commands.doctor import run_doctor

        return run_doctor()

    return run


def _demo(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        from nnunetv2_dinomed3d.commands.demo import run_demo

        return run_demo(args.out)

    command.add_argument(
        "--out", type=Path, default=Path("dinomed3d_demo"), metavar="DIR", help="folder to fill (default: %(default)s)"
    )
    return run


def _weights(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        from nnunetv2_dinomed3d.commands.weights import check_weights_file, fetch_weights

        return fetch_weights(args.variant) if args.check is None else check_weights_file(args.check)

    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("variant", nargs="?", metavar="VARIANT", help="size of the network, such as base")
    what.add_argument("--check", type=Path, metavar="FILE", help="file or folder to look at instead")
    return run


def _convert(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        from nnunetv2_dinomed3d.commands.convert import Model, convert

        if (args.plans is None) != (args.dataset_json is None):
            raise ValueError("A model folder needs both --plans and --dataset-json; a file neither.")
        model = Model(args.plans, args.dataset_json, args.configuration) if args.plans else None
        return convert(args.checkpoint, args.out, model)

    command.add_argument("checkpoint", type=Path, metavar="IN", help="stage1_best.pth or stage2_best.pth")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file, or model folder, to write")
    command.add_argument("--plans", type=Path, metavar="FILE", help="nnU-Net's plans: makes a model folder")
    command.add_argument("--dataset-json", type=Path, metavar="FILE", help="dataset.json: makes a model folder")
    command.add_argument(
        "-c", "--configuration", default="3d_fullres", metavar="NAME", help="of the plans (default: %(default)s)"
    )
    return run


def _plan(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        require_memory(args.gpu_memory_target)
        dataset_name(args.d)  # what is mistyped is told before PyTorch is imported
        from nnunetv2_dinomed3d.commands.plan import run_plan

        return run_plan(args)

    command.add_argument("-d", required=True, metavar="DATASET", help="number or name of nnU-Net's data set")
    command.add_argument(
        "-gpu_memory_target",
        type=float,
        metavar="GB",
        help=f"memory of one GPU (default: that of the visible one; {DEFAULT_GB:.0f} without a GPU)",
    )
    command.add_argument(
        "-tr", default="nnUNetTrainerDINOMed3D", metavar="TRAINER", help="trainer to plan for (default: %(default)s)"
    )
    command.add_argument(
        "-p", default="nnUNetPlans", metavar="PLANS", help="plans the data was preprocessed with (default: %(default)s)"
    )
    return run


def _compare(command: argparse.ArgumentParser) -> Handler:
    from nnunetv2_dinomed3d.commands import compare

    compare.add_arguments(command)
    return compare.run_compare


def _crossval(command: argparse.ArgumentParser) -> Handler:
    from nnunetv2_dinomed3d.commands import crossval

    crossval.add_arguments(command)
    return crossval.run_crossval


def _look(command: argparse.ArgumentParser) -> Handler:
    def run(args: argparse.Namespace) -> int:
        dataset_name(args.d)  # what is mistyped is told before PyTorch is imported
        from nnunetv2_dinomed3d.commands.look import run_look

        return run_look(args)

    command.add_argument(
        "case", metavar="CASE", help="a preprocessed case's identifier, or a raw image's file (..._0000.nii.gz)"
    )
    command.add_argument("-d", required=True, metavar="DATASET", help="number or name of nnU-Net's data set")
    command.add_argument(
        "-tr", nargs="+", required=True, metavar="TRAINER", help="DINO-Med3D's trainers; a PNG for each"
    )
    command.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans (default: %(default)s)")
    command.add_argument("-c", default="3d_fullres", metavar="CONFIG", help="configuration (default: %(default)s)")
    command.add_argument("-f", default="0", metavar="FOLD", help="fold (default: %(default)s)")
    command.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint in the fold (default: %(default)s)"
    )
    command.add_argument(
        "--slices",
        nargs="+",
        type=int,
        metavar="N",
        help="of the preprocessed case, along its first axis (default: three of those with a label)",
    )
    command.add_argument("-o", type=Path, metavar="OUT", help="folder to write (default: look_CASE)")
    return run


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Handler]]] = {
    "trainer-path": ("print the folder to export as nnUNet_extTrainer (for an editable install)", _trainer_path),
    "doctor": ("check whether training could run here, and say what to do if not", _doctor),
    "demo": ("make a small data set, train the nano trainer on it, predict and measure", _demo),
    "weights": ("download a variant's pretrained weights and check them, or say what a file is", _weights),
    "convert": ("make this plugin's checkpoint of one of the released DINO-Med3D code", _convert),
    "plan": ("make plans with patch and batch for this network and a GPU's memory", _plan),
    "compare": ("compare trainings, or folders of predictions: numbers and pictures", _compare),
    "crossval": ("print or run nnU-Net's commands of all folds and trainers", _crossval),
    "look": ("pictures of what trained networks see of a case: features, gate", _look),
}
"""Of each command, its help and what adds its arguments and returns its function."""


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these words: of the command among them it has the arguments, some of which stand with its code."""
    parser = argparse.ArgumentParser(prog="dinomed3d", description="DINO-Med3D for nnU-Net v2")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (text, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in words:
            command.set_defaults(**{HANDLER: arguments(command)})
    return parser


def one_line(text: str) -> str:
    """Lines become one; what does not print, and could change a terminal, is escaped."""
    return printable(re.sub(r"\s*[\r\n]\s*", " ", text.strip()))


def reason(error: BaseException) -> str:
    """What an error says to a person."""
    if isinstance(error, subprocess.CalledProcessError):
        command = error.cmd if isinstance(error.cmd, str) else shlex.join(map(str, error.cmd))
        how = f"exit code {error.returncode}" if error.returncode >= 0 else f"signal {-error.returncode}"
        return f"{command} ended with {how}; what it printed says why"
    if isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([" and ".join(names), error.strerror] if names else [error.strerror])
    if isinstance(error, MemoryError):
        return f"The memory does not suffice ({error})" if str(error) else "The memory does not suffice"
    if isinstance(error, ImportError):
        return f"{error}: a dependency is missing or broken; pip install --force-reinstall it, or see dinomed3d doctor"
    if isinstance(error, EXPECTED) and str(error):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}). This was not foreseen: "
        "if all files named are sound, please report it with what PYTHONDEVMODE=1 dinomed3d ... prints"
    )


def _tell(text: str) -> None:
    with suppress(OSError):  # nobody can be told
        print(f"dinomed3d: {one_line(text)}", file=sys.stderr)


def _flush() -> None:
    """Write out what was printed; where that fails, Python shall not try again when it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            sys.stdout.close()
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"What was to be printed could not be written: {error.strerror}") from error


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as an exception does, so that it cleans up: children, files half written."""
    if threading.current_thread() is not threading.main_thread():  # where Python has no signals
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
        if received:  # whatever else came of it
            raise Stopped(received[0])


def _run(words: Sequence[str]) -> int:
    parser = parser_for(words)
    if not words:
        parser.print_help(sys.stderr)
        return 2
    try:
        args = parser.parse_args(words)
        code = getattr(args, HANDLER)(args)
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

    Returns:
        The exit code: 0, or 1 for an error (one line says which); 2 without a command; 130 after Ctrl-C; 141 where
        nobody reads on.

    Raises:
        SystemExit: 2 for an error in the arguments, 128 + n after the signal n, 0 after ``--help``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no name can stop a command that has done its work
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)  # between libraries; no user can do anything
    try:
        with _ending_on_signals():
            return _run(sys.argv[1:] if argv is None else argv)
    except Stopped as stopped:
        _tell(f"ended by {stopped.signal.name}")
        raise
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _tell("ended by SIGINT")
        return 128 + signal.SIGINT
    except Exception as error:
        if sys.flags.dev_mode:
            traceback.print_exc()
        _tell(reason(error))
        return 1
