"""Writing files and folders so that they exist whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path to write a file or folder to. It becomes `target` at the end; if the body fails, nothing stays.

    The place is tested at once, before the body does anything that takes long.

    Raises:
        ValueError: nothing can be written there.
    """
    made = [folder for folder in target.parents if not os.path.lexists(folder)]
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        except OSError as error:
            raise ValueError(f"{target} cannot be written: {error.strerror}. Name another place with -o.") from error
        try:
            yield partial / target.name
            os.replace(partial / target.name, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
