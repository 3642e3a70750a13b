"""The demo's parts; CI runs the demo itself."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_hex

from nnunetv2_dinomed3d.commands import demo
from nnunetv2_dinomed3d.demo.figure import draw
from nnunetv2_dinomed3d.demo.phantom import LABELS, SHAPE, make_case, make_dataset
from nnunetv2_dinomed3d.evaluation.figures import label_colours
from nnunetv2_dinomed3d.nnunet_files import read_description


def test_data_set_is_in_nnunets_raw_format(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset900_Demo"
    make_dataset(folder, training_cases=2, test_cases=1)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dataset.json",
        "imagesTr/train_00_0000.nii.gz",
        "imagesTr/train_01_0000.nii.gz",
        "imagesTs/test_00_0000.nii.gz",
        "labelsTr/train_00.nii.gz",
        "labelsTr/train_01.nii.gz",
        "labelsTs/test_00.nii.gz",
    ]
    assert json.loads((folder / "dataset.json").read_text())["labels"] == LABELS
    image = sitk.ReadImage(str(folder / "imagesTr/train_00_0000.nii.gz"))
    assert image.GetSpacing() == (1.0, 1.0, 3.0)
    assert image.GetSize() == SHAPE[::-1]


def test_every_case_has_both_structures_and_look_alikes() -> None:
    """A nodule that brightness alone could tell would not need a network."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        image, labels = make_case(rng)
        assert set(np.unique(labels)) == set(LABELS.values())
        assert (labels == LABELS["nodule"]).sum() > 60
        bright = image > image[labels == LABELS["nodule"]].mean() - 20
        assert (bright & (labels == 0)).sum() > 20


def test_same_seed_same_data() -> None:
    cases = [make_case(np.random.default_rng(3)) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*cases, strict=True))


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
            for truth in (out / "nnUNet_raw" / demo.DATASET / "labelsTs").iterdir():
                (out / "predictions" / truth.name).write_bytes(truth.read_bytes())
        if command[0] == "nnUNetv2_evaluate_simple":
            metrics = {"mean": {"1": {"Dice": dice}, "2": {"Dice": dice}}, "foreground_mean": {"Dice": dice}}
            (out / "predictions" / "summary.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(demo, "_run", pretend)
    assert demo.run_demo(tmp_path / "out") == code
    assert commands == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "nnUNetv2_evaluate_simple",
    ]
    output = capsys.readouterr().out
    assert f"mean     {dice:.3f}" in output
    assert str(tmp_path / "out") in output
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000


def test_picture_shows_every_case(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_dataset(folder, training_cases=1, test_cases=2)
    draw(folder / "imagesTs", folder / "labelsTs", folder / "labelsTs", LABELS, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_labels_have_the_colours_of_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One label, one colour, wherever it is drawn."""
    folder = tmp_path / "data"
    make_dataset(folder, training_cases=1, test_cases=1)
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *rest, **more: figures.append(self))
    draw(folder / "imagesTs", folder / "labelsTs", folder / "labelsTs", LABELS, tmp_path / "picture.png")
    (legend,) = figures[0].legends
    drawn = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.texts, legend.get_patches(), strict=True)
    }
    assert drawn == label_colours(read_description(folder / "dataset.json"))


@pytest.mark.parametrize("out", ["file", "file/below", "loop/below", "/proc/nothing", "full"])
def test_folders_that_cannot_be_filled(out: str, tmp_path: Path) -> None:
    """One line, before anything is made."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".precious").touch()
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-m", "nnunetv2_dinomed3d", "demo", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(f"dinomed3d: {out} ")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_users_settings_are_not_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights or a stage 1 for a real training do not fit the nano network."""
    monkeypatch.setenv("DINOMED3D_STAGE1", "/of/a/real/training")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # nnU-Net's planner fails with it
    environment = demo._environment(tmp_path)
    assert not [name for name in environment if name.startswith("DINOMED3D_")]
    assert environment["nnUNet_n_proc_DA"] == "2"


def scripts(folder: Path, text: str) -> list[str]:
    """The demo's command where nnU-Net's first command is this shell script."""
    folder.mkdir()
    (folder / "nnUNetv2_plan_and_preprocess").write_text(f"#!/bin/bash\n{text}\n")
    (folder / "nnUNetv2_plan_and_preprocess").chmod(0o755)
    code = "import sys, sysconfig\nscripts = sys.argv.pop(1)\nsysconfig.get_path = lambda name: scripts\n"
    code += "from nnunetv2_dinomed3d.commands.main import main\nsys.exit(main())"
    return [sys.executable, "-c", code, str(folder), "demo", "--out", "out"]


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    done = subprocess.run(scripts(tmp_path / "bin", "exit 3"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("dinomed3d: nnUNetv2_plan_and_preprocess -d 900 -c 3d_fullres ended with exit code 3")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_running(number: signal.Signals, tmp_path: Path) -> None:
    """Neither nnU-Net's command nor what it started, however the demo ends."""
    command = scripts(tmp_path / "bin", f"sleep 600 & echo $$ $! > {tmp_path}/pids; wait")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = tmp_path / "pids"
    within(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode not in (0, 1)
    within(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))


def within(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
