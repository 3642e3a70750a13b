"""``dinomed3d demo`` with stand-ins for nnU-Net's commands; CI runs the demo itself."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.demo import pipeline
from tests.command_line import assert_one_line
from tests.processes import await_end, wait_until

pytestmark = pytest.mark.own


@pytest.mark.parametrize(("dice", "code"), [(0.85, 0), (0.79, 1)])
def test_exit_code_says_whether_the_network_learned(
    dice: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def pretend(command: list[str], environment: dict[str, str]) -> None:
        commands.append(command[0])
        out = tmp_path / "out"
        if command[0] == "nnUNetv2_predict":
            (out / "predictions").mkdir()
            for reference in (out / "nnUNet_raw" / pipeline.DATASET / "labelsTs").iterdir():
                (out / "predictions" / reference.name).write_bytes(reference.read_bytes())
        if command[0] == "nnUNetv2_evaluate_simple":
            metrics = {"mean": {"1": {"Dice": dice}, "2": {"Dice": dice}}, "foreground_mean": {"Dice": dice}}
            (out / "predictions" / "summary.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(pipeline, "_run", pretend)
    assert main(["demo", "--out", str(tmp_path / "out")]) == code
    assert commands == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "nnUNetv2_evaluate_simple",
    ]
    output = capsys.readouterr().out
    assert output.startswith("Making 10 training and 3 held-out cases in ")
    assert f"  organ    {dice:.3f}\n  nodule   {dice:.3f}\n  mean     {dice:.3f}" in output
    assert str(tmp_path / "out") in output
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000


@pytest.mark.parametrize("out", ["file", "file/below", "loop/below", "/proc/nothing", "full"])
def test_folders_that_cannot_be_filled(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is made."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".precious").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    code = main(["demo", "--out", out])
    output, error = capsys.readouterr()
    assert_one_line(code, error, f"{out} ")
    assert output == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_the_users_settings_are_not_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights or a stage 1 for a real training do not fit the nano network."""
    monkeypatch.setenv("DINOMED3D_STAGE1", "/of/a/real/training")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # nnU-Net's planner fails with it
    environment = pipeline.demo_environment(tmp_path, trainer_folder())
    assert not [name for name in environment if name.startswith("DINOMED3D_")]
    assert environment["nnUNet_n_proc_DA"] == "2"
    assert environment["nnUNet_extTrainer"] == str(trainer_folder())


@pytest.fixture
def demo(tmp_path: Path) -> Callable[[str], list[str]]:
    """The demo's command, without PyTorch, where nnU-Net's first command is the shell script that is given."""

    def command(script: str) -> list[str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "nnUNetv2_plan_and_preprocess").write_text(f"#!/bin/bash\n{script}\n")
        (folder / "nnUNetv2_plan_and_preprocess").chmod(0o755)
        code = "import sys, sysconfig\nscripts = sys.argv.pop(1)\nsysconfig.get_path = lambda name: scripts\n"
        code += "from nnunetv2_dinomed3d.demo import pipeline\npipeline._device = lambda: 'cpu'\n"
        code += "from nnunetv2_dinomed3d.commands.main import main\nsys.exit(main())"
        return [sys.executable, "-c", code, str(folder), "demo", "--out", "out"]

    return command


def test_a_command_that_fails_is_named(demo: Callable[[str], list[str]], tmp_path: Path) -> None:
    done = subprocess.run(demo("exit 3"), cwd=tmp_path, capture_output=True, text=True)
    assert_one_line(done.returncode, done.stderr, "nnUNetv2_plan_and_preprocess -d 900 .* ended with exit code 3")
    assert done.stdout.startswith("Making 10 training and 3 held-out cases in ")  # and no library speaks before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_running(number: signal.Signals, demo: Callable[[str], list[str]], tmp_path: Path) -> None:
    """Neither nnU-Net's command nor what it started, however the demo ends."""
    command = demo(f"sleep 600 & echo $$ $! > {tmp_path}/pids; wait")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode not in (0, 1)
    await_end(map(int, pids.read_text().split()))
