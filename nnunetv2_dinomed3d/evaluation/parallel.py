"""Work on many cases in processes of our own, with a progress bar."""

import multiprocessing
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_dinomed3d.processes import STOP_SIGNALS, children_end_with_us, end_with_parent

Job = TypeVar("Job")
Found = TypeVar("Found")


def process_count() -> int:
    """The number of processes: nnU-Net's ``nnUNet_def_n_proc`` (default 8), but no more than there are cores.

    Raises:
        ValueError: the variable holds no number of processes.
    """
    setting = os.environ.get("nnUNet_def_n_proc", "8")
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}", setting):
        raise ValueError(f"nnUNet_def_n_proc is {setting!r}: export a number of processes, 1 or more")
    return min(int(setting), os.cpu_count() or 1)


def _start_process() -> None:
    end_with_parent(ignore=STOP_SIGNALS)  # a signal to the whole group reaches us too, but our parent ends us
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def in_processes(
    work: Callable[[Job], Found], jobs: Mapping[str, Job], processes: int, doing: str = "measured"
) -> dict[str, Found]:
    """What `work` finds for every job, by the job's case and in the order of the jobs.

    Args:
        work: a function of a module, which another process can import.
        jobs: at least one, by case.
        processes: at most so many.
        doing: the progress bar's word.

    Raises:
        ValueError: `work` raised it, or a process was killed.
    """
    results: dict[str, Found] = {}
    processes = min(processes, len(jobs))
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    before = set(multiprocessing.active_children())
    with children_end_with_us(), ProcessPoolExecutor(processes, context, initializer=_start_process) as pool:
        try:
            futures = {pool.submit(work, job): case for case, job in jobs.items()}
            for future in tqdm(as_completed(futures), total=len(jobs), desc=doing, unit="case", disable=None):
                results[futures[future]] = future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"One of {processes} processes was killed, probably for lack of memory: export nnUNet_def_n_proc=1"
            ) from error
        except BaseException:  # a bad file or a signal: work that has begun is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise
    return {case: results[case] for case in jobs}
