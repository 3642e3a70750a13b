"""``dinomed3d demo``: the user's own commands, from made-up images to Dice and a picture."""

import json
import os
import shlex
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.demo.phantom import LABELS, make_dataset
from nnunetv2_dinomed3d.processes import Commands
from nnunetv2_dinomed3d.settings import PREFIX

DATASET = "Dataset900_DINOMed3DDemo"
TRAINER = "nnUNetTrainerDINOMed3D_nano"
TRAINING_CASES, TEST_CASES = 10, 3
REQUIRED_DICE = 0.80
ROOM = 50 * 2**20
"""Bytes that the demo writes, roughly."""


def _device() -> str:
    import torch  # takes seconds

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _environment(out: Path) -> dict[str, str]:
    """This process's, with nnU-Net's folders in ``out``, its commands and our trainers to be found, no own settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "nnUNet_extTrainer": str(trainer_folder()),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "2",
    }
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # between libraries; no user can do anything
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        environment[name] = str(out / name)
    return environment


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run one of nnU-Net's commands; it ends with this process, however that ends."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    with Commands() as commands:
        code = commands.run(command, environment)
    if code:
        raise subprocess.CalledProcessError(code, command)


def _prepare(out: Path) -> None:
    """Make the folder, or say why it cannot be filled."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; name another with --out, or remove it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); name another folder with --out.") from error


def _report(out: Path, summary: Path, picture: Path, seconds: float) -> bool:
    """Print the result; whether it is good enough."""
    metrics = json.loads(summary.read_text())
    names = {str(value): name for name, value in LABELS.items()}
    print(f"\nDice on the {TEST_CASES} held-out cases:")
    for label, values in metrics["mean"].items():
        print(f"  {names[label]:8s} {values['Dice']:.3f}")
    mean = metrics["foreground_mean"]["Dice"]
    reached = mean >= REQUIRED_DICE
    print(f"  {'mean':8s} {mean:.3f}  ({'at least' if reached else 'NOT at least'} {REQUIRED_DICE:.2f})")
    print(f"\nMade in {seconds:.0f} s, all of it in {out}:")
    print(f"  {picture.name:20s} image, ground truth and prediction")
    print("  nnUNet_raw           the data set, made up")
    print("  nnUNet_preprocessed  plans and preprocessed data")
    print("  nnUNet_results       the trained model, training log, progress.png")
    print("  predictions          segmentations of the held-out cases")
    print(
        "The network is tiny and was trained from nothing: this shows that everything runs, not how good the method is."
    )
    return reached


def run_demo(out: Path) -> int:
    """Make the data set, train and predict.

    Args:
        out: folder for everything; must not exist yet or be empty.

    Returns:
        The exit code: 0, or 1 when the network did not learn (mean Dice under `REQUIRED_DICE`).

    Raises:
        ValueError: ``out`` holds something already, or cannot be written.
        subprocess.CalledProcessError: one of nnU-Net's commands failed.
    """
    _prepare(out)
    start = time.monotonic()
    out = out.resolve()
    raw = out / "nnUNet_raw" / DATASET
    predictions, picture, summary = out / "predictions", out / "demo.png", out / "predictions" / "summary.json"
    environment, device, dataset_id = _environment(out), _device(), DATASET[7:10]

    print(f"Making {TRAINING_CASES} training and {TEST_CASES} held-out cases in {raw}")
    make_dataset(raw, TRAINING_CASES, TEST_CASES)
    _run(["nnUNetv2_plan_and_preprocess", "-d", dataset_id, "-c", "3d_fullres"], environment)
    _run(["nnUNetv2_train", dataset_id, "3d_fullres", "0", "-tr", TRAINER, "-device", device], environment)
    model = ["-d", dataset_id, "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-device", device]
    _run(["nnUNetv2_predict", "-i", str(raw / "imagesTs"), "-o", str(predictions), *model], environment)
    foreground = [str(value) for value in LABELS.values() if value]
    _run(
        ["nnUNetv2_evaluate_simple", str(raw / "labelsTs"), str(predictions), "-l", *foreground, "-o", str(summary)],
        environment,
    )
    from nnunetv2_dinomed3d.demo.figure import draw  # takes seconds

    draw(raw / "imagesTs", raw / "labelsTs", predictions, LABELS, picture)
    return 0 if _report(out, summary, picture, time.monotonic() - start) else 1
