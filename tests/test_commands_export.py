"""``dinomed3d export``: what it says, and what it refuses in one line before it loads anything."""

import json
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands.main import main
from tests.command_line import assert_one_line, dinomed3d
from tests.export_models import plans, write_model


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network and its description are written, and how near the logits are is said."""
    out = tmp_path / "new" / "net.pt2"
    assert main(["export", str(write_model(tmp_path)), "-o", str(out), "--half"]) == 0
    written, described, checked = capsys.readouterr().out.splitlines()
    assert written.startswith(f"Written: {out} (")
    assert described.startswith(f"Written: {out.with_suffix('.json')} (")
    assert checked.startswith("Checked with torch ")
    assert json.loads(out.with_suffix(".json").read_text())["model"]["fold"] == "0"


def test_stage_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path, "nnUNetTrainerDINOMed3D_nano", plans((4, 32, 32)), stage=1)
    assert main(["export", str(folder), "-o", str(tmp_path / "net.pt2")]) == 1
    assert "is of stage 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("net*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "-o", "net.pt2"], "nothing is no folder"),
        ([".", "-o", "net.pt2", "-f", "x"], "-f 'x' is no fold"),
        ([".", "-o", "net.pt2"], r"fold_0/checkpoint_final\.pth does not exist \(it has no folds\)"),
    ],
)
def test_refused(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = dinomed3d("export", *words)
    assert_one_line(done.returncode, done.stderr, message)
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path)
    assert main(["export", str(model), "-o", "/proc/nothing/net.pt2"]) == 1
    assert "net.pt2 cannot be written" in capsys.readouterr().err
