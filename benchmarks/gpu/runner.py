"""Runs the rows of the GPU benchmark one after the other, as far as the time reaches."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.gpu.results import Results, Row, Status, Values, cell

FOREIGN = ("nnunetv2", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2")
"""Packages that some rows need and a bare machine may lack."""


class CannotRunError(Exception):
    """A row cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Job:
    """A row to measure.

    Attributes:
        section, what: see `results.Row`.
        measure: does it and returns the values; raises `CannotRunError` where it is not possible.
        kind: jobs of a kind take about as long.
        expected: seconds that it takes with all preparation, until one of its kind has run.
    """

    section: str
    what: Values
    measure: Callable[[], Values]
    kind: str
    expected: float


class Outcome(NamedTuple):
    """How a measurement ended: see `results.Row`."""

    status: Status
    values: Values
    reason: str = ""


def attempt(measure: Callable[[], Values]) -> Outcome:
    """Measure once. What goes wrong is the result of this row: the rows after it are still wanted."""
    try:
        return Outcome("done", measure())
    except CannotRunError as error:
        return Outcome("skipped", {}, str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in FOREIGN:
            return Outcome("skipped", {}, f"{package} is not installed")
        return Outcome("failed", {}, f"ModuleNotFoundError: {error}")
    except torch.OutOfMemoryError:
        return Outcome("out of memory", {})
    except Exception as error:
        if isinstance(error, RuntimeError) and "ALLOC_FAILED" in str(error):  # a library's own allocation
            return Outcome("out of memory", {})
        first_line = (str(error).splitlines() or [""])[0]
        return Outcome("failed", {}, f"{type(error).__name__}: {first_line[:200]}")


def clean(device: str) -> None:
    """Give back what the row before left."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_jobs(jobs: Iterable[Job], results: Results, device: str, seconds: float, started: float) -> None:
    """Measure in the given order; a row that would not be done in time is skipped, and cheaper ones may follow.

    Args:
        jobs: the most important first.
        results: takes each row as soon as it is there.
        device: "cuda" or "cpu".
        seconds: for all of them.
        started: when the clock began to run, of `time.monotonic`.
    """
    longest: dict[str, float] = {}
    for job in jobs:
        begin = time.monotonic()
        expected = longest.get(job.kind, job.expected)
        if begin - started + expected > seconds:
            row = Row(job.section, job.what, "skipped", reason=f"no time left for about {expected:.0f} s")
        else:
            outcome = attempt(job.measure)
            clean(device)
            taken = time.monotonic() - begin
            if outcome.status == "done":
                longest[job.kind] = max(taken, longest.get(job.kind, 0.0))
            row = Row(job.section, job.what, outcome.status, outcome.values, outcome.reason, taken)
        results.add(row)
        tell(row)


def tell(row: Row) -> None:
    """Print a row that was tried; those without time are only in the files."""
    if row.reason.startswith("no time left"):
        return
    setting = ", ".join(f"{name} {cell(value)}" for name, value in row.what.items())
    values = ", ".join(f"{name} {cell(value)}" for name, value in row.values.items() if value is not None)
    print(f"[{row.seconds:.0f} s] {row.section}: {setting}: {values or row.reason or row.status}", flush=True)
