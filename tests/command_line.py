"""The command ``dinomed3d``, as users type it."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

PROGRAM = str(Path(sysconfig.get_path("scripts"), "dinomed3d"))
NANO = "nnUNetTrainerDINOMed3D_nano"


def dinomed3d(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process, with these environment variables besides this process's."""
    environment = {**os.environ, **settings}
    command = [PROGRAM, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=300)


def assert_one_line(code: object, error: str, pattern: str) -> None:
    """The exit code is 1, and standard error is one printable line that begins with the program's name."""
    assert code == 1, error
    assert error.endswith("\n")
    (line,) = error.splitlines()
    assert re.search(f"^dinomed3d: .*{pattern}", line), line
    assert line.isprintable()
