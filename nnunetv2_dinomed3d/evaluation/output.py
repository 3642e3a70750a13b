"""The folder that a comparison fills. It is made and tested before anything is measured."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILES = ("cases.csv", "summary.json", "report.md", "report.html")
TRIAL_BYTES = 2**22
"""Bytes that are written to test the folder."""


@contextmanager
def output_folder(out: Path) -> Iterator[None]:
    """Make the folder `out` with a folder ``figures``, and remove what was made if the body fails.

    Raises:
        ValueError: nothing can be written there.
    """
    folders = [out / "figures", out, *out.parents]
    made = [folder for folder in folders if not os.path.lexists(folder)]
    try:
        try:
            _write_trial(out)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"-o {out}: the report cannot be written there: {reason}. Name another folder") from error
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _write_trial(out: Path) -> None:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "figures"):
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(TRIAL_BYTES))
            trial.flush()
    for file in (out / name for name in FILES):
        if os.path.lexists(file) and not file.is_file():
            raise ValueError(f"-o {out}: {file} exists and is no file: remove it, or name another folder")
        if file.is_file() and not os.access(file, os.W_OK):
            raise ValueError(f"-o {out}: {file} is write-protected: remove it, or name another folder")
