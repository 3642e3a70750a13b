"""``dinomed3d trainer-path``: the folder to export, by the program and by ``python -m``."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from tests.command_line import dinomed3d

pytestmark = pytest.mark.own


def test_the_folder_is_printed() -> None:
    done = dinomed3d("trainer-path")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.strip())
    assert folder == trainer_folder()
    assert (folder / "dinomed3d_trainers.py").is_file()


def test_as_a_module_of_this_python() -> None:
    done = subprocess.run([sys.executable, "-m", "nnunetv2_dinomed3d", "trainer-path"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{trainer_folder()}\n", "")
