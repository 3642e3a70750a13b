"""The table of the memory that training takes."""

from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands.main import main


def test_a_stock_trainers_memory_is_told_and_nothing_written(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(planned.iterdir())
    assert main(["plan", "-d", "901", "-gpu_memory_target", "8", "-tr", "nnUNetTrainer"]) == 0
    output = capsys.readouterr().out
    assert "Memory of nnUNetTrainer with nnUNetPlans on a GPU of 8.0 GB:" in output
    rows = [line.split() for line in output.splitlines() if line.startswith(("3d_fullres", "2d"))]
    assert {row[0] for row in rows} == {"3d_fullres", "2d"}
    assert all(row[-1] == "yes" for row in rows)
    assert set(planned.iterdir()) == before
