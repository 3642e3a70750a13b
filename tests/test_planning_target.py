"""The memory that is planned for, before anything else is looked at."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("target", ["nan", "inf", "0", "-1", "1e30", "much"])
def test_memory_that_no_gpu_has(target: str) -> None:
    """Told at once, in the last line."""
    command = [sys.executable, "-m", "nnunetv2_dinomed3d", "plan", "-d", "1", "-gpu_memory_target", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (2 if target == "much" else 1)
    assert "-gpu_memory_target" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
