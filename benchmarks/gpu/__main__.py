"""``python -m benchmarks.gpu``: measure the network on a GPU; results are written as they come.

The most important rows come first, and it can be stopped at any time: the files hold every row that was done.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

STARTED = time.monotonic()  # before PyTorch is imported


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes, such as 8")
    return minutes


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--minutes", type=_minutes, default=8.0, help="start no row that would end later (default: %(default)g)"
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu runs the same code on tiny networks"
    )
    parser.add_argument(
        "-o",
        type=Path,
        default=Path("gpu_benchmark"),
        metavar="FOLDER",
        help="folder for results.json and results.md (default: %(default)s)",
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure what the time allows.

    Args:
        words: of the command line; None for this process's.

    Returns:
        0; 1 if a row failed or a result does not agree with the CPU's, 2 for a wrong argument, 130 if interrupted.
    """
    arguments = _arguments(words)
    warnings.simplefilter("ignore")
    import torch

    from benchmarks.gpu.card import about
    from benchmarks.gpu.jobs import MINIATURE, Extent, Jobs
    from benchmarks.gpu.results import Results
    from benchmarks.gpu.runner import run_jobs

    try:
        machine = about(arguments.device)
        for name, value in machine.items():
            print(f"{name}: {value}", flush=True)
        results = Results(arguments.o, machine)
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as nnU-Net trains
    extent = Extent() if arguments.device == "cuda" else MINIATURE
    try:
        run_jobs(Jobs(extent, arguments.device, results), results, arguments.device, 60 * arguments.minutes, STARTED)
    except KeyboardInterrupt:
        print(f"Stopped. {arguments.o} holds {len(results.rows)} rows.")
        return 130
    print(f"Results: {arguments.o}")
    wrong = [row for row in results.rows if row.status == "failed" or row.values.get("agrees") is False]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
