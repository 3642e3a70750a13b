"""The demo's steps: generate a data set, train, predict and measure with nnU-Net's commands, draw a picture."""

import json
import os
import shlex
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.demo.phantom import LABELS, make_dataset
from nnunetv2_dinomed3d.processes import Commands
from nnunetv2_dinomed3d.settings import PREFIX

DATASET = "Dataset900_DINOMed3DDemo"
TRAINER = "nnUNetTrainerDINOMed3D_nano"
TRAINING_CASES, TEST_CASES = 10, 3
DISK_SPACE = 50 * 2**20
"""Bytes that the demo writes, about."""


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        dice: of each label on the held-out cases.
        mean_dice: of all labels.
        picture: PNG with image, reference and prediction.
    """

    dice: dict[str, float]
    mean_dice: float
    picture: Path


def prepare_folder(out: Path) -> None:
    """Make the demo's folder.

    Raises:
        ValueError: it holds something already, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder. Name another with --out, or remove it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(bytes(DISK_SPACE))
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}). Name another folder with --out.") from error


def demo_environment(out: Path, trainer_folder: Path) -> dict[str, str]:
    """The environment of nnU-Net's commands: this process's, with folders below `out` and without our own settings.

    Args:
        out: the demo's folder.
        trainer_folder: the folder through which nnU-Net finds our trainers.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "nnUNet_extTrainer": str(trainer_folder),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "2",
    }
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of libraries about one another
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        environment[name] = str(out / name)
    return environment


def run_demo(out: Path, trainer_folder: Path) -> DemoResult:
    """Make the data set, train, predict and measure. Each command is printed before it runs.

    Args:
        out: folder for everything, prepared by `prepare_folder`.
        trainer_folder: the folder through which nnU-Net finds our trainers.

    Raises:
        subprocess.CalledProcessError: one of nnU-Net's commands failed.
    """
    raw, predictions, picture = out / "nnUNet_raw" / DATASET, out / "predictions", out / "demo.png"
    print(f"Making {TRAINING_CASES} training and {TEST_CASES} held-out cases in {raw}", flush=True)
    make_dataset(raw, TRAINING_CASES, TEST_CASES)
    environment, device, number = demo_environment(out, trainer_folder), _device(), DATASET[7:10]
    # by default nnU-Net starts up to 8 processes that import PyTorch: on few cores most of the time
    few = str(min(2, os.cpu_count() or 1))
    _run(["nnUNetv2_plan_and_preprocess", "-d", number, "-c", "3d_fullres", "-np", few, "-npfp", few], environment)
    _run(["nnUNetv2_train", number, "3d_fullres", "0", "-tr", TRAINER, "-device", device], environment)
    model = ["-d", number, "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-device", device, "-npp", "1", "-nps", "1"]
    _run(["nnUNetv2_predict", "-i", str(raw / "imagesTs"), "-o", str(predictions), *model], environment)
    foreground = [str(value) for value in LABELS.values() if value]
    summary = predictions / "summary.json"
    _run(
        ["nnUNetv2_evaluate_simple", str(raw / "labelsTs"), str(predictions), "-l", *foreground, "-o", str(summary)],
        environment,
    )
    from nnunetv2_dinomed3d.demo.figure import draw  # imports Matplotlib, which takes seconds

    draw(raw / "imagesTs", raw / "labelsTs", predictions, LABELS, picture)
    metrics = json.loads(summary.read_text())
    names = {str(value): name for name, value in LABELS.items()}
    dice = {names[label]: values["Dice"] for label, values in metrics["mean"].items()}
    return DemoResult(dice, metrics["foreground_mean"]["Dice"], picture)


def _device() -> str:
    import torch  # takes seconds

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run one of nnU-Net's commands. It ends with this process, however that ends."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    with Commands() as commands:
        code = commands.run(command, environment)
    if code:
        raise subprocess.CalledProcessError(code, command)
