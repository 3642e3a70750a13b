"""``dinomed3d plan`` in a process; what it plans is tested in test_planning.py."""

import pytest

from tests.command_line import NANO, dinomed3d


@pytest.mark.end_to_end
@pytest.mark.usefixtures("planned")
def test_plans_and_the_command_to_train_with_them() -> None:
    done = dinomed3d("plan", "-d", "901", "-tr", NANO, "-gpu_memory_target", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Planning for {NANO} on a GPU of 3.0 GB.\n")  # and no library speaks before
    assert f"nnUNetv2_train 901 3d_fullres 0 -tr {NANO} -p " in done.stdout
