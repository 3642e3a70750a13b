"""The command ``dinomed3d``: what it prints, and what its exit code says."""

from pathlib import Path

import pytest

from nnunetv2_dinomed3d.cli import main
from nnunetv2_dinomed3d.entry import trainer_folder


def test_trainer_path_is_the_folder_to_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainer-path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == trainer_folder()
    assert (folder / "dinomed3d_trainers.py").is_file()


def test_demo_does_not_write_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "not an empty folder; name another with --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: dinomed3d" in capsys.readouterr().err
