"""Fixtures: a small data set, preprocessed by nnU-Net's own command, and trainers on it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported
os.environ["nnUNet_def_n_proc"] = "1"  # so does nnU-Net; each process of a pool imports PyTorch anew
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # nnU-Net's commands take all cores, and two tests run at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of tiny networks two threads are slower, and two tests run at a time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import distributed as dist

from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.processes import STOP_SIGNALS
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.progress_plot import GuardedPlotLogger
from tests.trainers.quick_trainers import nnUNetTrainerSeeded

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
TEST_TRAINERS = Path(__file__).parent / "trainers"
DATASET = "Dataset901_Test"
CASES = 5

# processes import what this one does, whatever is installed
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    """A bright box in noise; odd extents, thick slices."""
    image = rng.normal(0, 1, (9, 30, 26)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    z, y, x = rng.integers(0, 4), *rng.integers(2, 12, 2)
    labels[z : z + 5, y : y + 12, x : x + 10] = 1
    image[labels == 1] += 4
    for array, kind, suffix in ((image, "imagesTr", "_0000"), (labels, "labelsTr", "")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((1.0, 1.0, 3.0))
        sitk.WriteImage(volume, str(folder / kind / f"{name}{suffix}.nii.gz"))


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A test that reaches for the network fails, wherever it runs."""

    def refuse(self: object, address: object, *rest: object) -> None:
        raise AssertionError(f"a connection to {address}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            connect = getattr(socket.socket, name)

            def guarded(self: socket.socket, address: object, connect: Callable = connect) -> object:
                return connect(self, address) if self.family == socket.AF_UNIX else refuse(self, address)

            patch.setattr(socket.socket, name, guarded)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_signal_ignored() -> None:
    """As in a terminal: a shell's background jobs are started with SIGINT ignored, and nohup's with SIGHUP."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def nnunet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """nnU-Net's folders, our trainers and the tests' own, for this process and its children."""
    root = tmp_path_factory.mktemp("nnunet")
    settings = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in settings.values():
        Path(folder).mkdir()
    settings |= {
        "nnUNet_extTrainer": os.pathsep.join([str(trainer_folder()), str(TEST_TRAINERS)]),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",  # each process imports PyTorch anew
        "nnUNet_wandb_enabled": "0",
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DINOMED3D_WEIGHTS", raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings


@pytest.fixture(scope="session")
def run(nnunet_environment: dict[str, str]) -> Callable[..., str]:
    """Run a command line with nnU-Net's settings; its output, or a failure that shows it."""

    def run(*command: str | Path, **settings: str) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout

    return run


@pytest.fixture(scope="session")
def stock_nnunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with nnU-Net as it comes, without our module (this environment's may have it)."""
    import nnunetv2

    site = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("dinomed3d_trainers.py", "__pycache__", "tests")
    shutil.copytree(Path(nnunetv2.__file__).parent, site / "nnunetv2", ignore=ignore)
    return site


def leave_process_group() -> None:
    """The end of a rank's process. Where it returns instead, gloo of older PyTorch can wait for a lock it holds."""
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def preprocess(run: Callable[..., str], dataset: str, *configurations: str) -> None:
    """nnU-Net's command, with one process for each pool; its planner fails with 0 workers of the loader."""
    one_each = ("-np", "1", "-npfp", "1")  # nnU-Net's default starts 8 processes that import PyTorch
    run("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", *configurations, *one_each, nnUNet_n_proc_DA="1")


@pytest.fixture(scope="session")
def preprocessed(nnunet_environment: dict[str, str], run: Callable[..., str]) -> Path:
    """The small data set, planned and preprocessed for 3d_fullres and 2d."""
    raw = Path(nnunet_environment["nnUNet_raw"]) / DATASET
    rng = np.random.default_rng(0)
    for i in range(CASES):
        write_case(raw, f"case_{i}", rng)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "box": 1},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    preprocess(run, "901", "3d_fullres", "2d")
    return Path(nnunet_environment["nnUNet_preprocessed"]) / DATASET


@pytest.fixture(autouse=True)
def no_progress_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty picture after each epoch of a training in this process: a drawn one takes longer than the epoch."""
    if not request.module.__name__.endswith("test_progress") and "long" not in request.keywords:
        monkeypatch.setattr(
            GuardedPlotLogger, "plot_progress_png", lambda self, folder: Path(folder, "progress.png").touch()
        )


@pytest.fixture
def planned(preprocessed: Path) -> Iterator[Path]:
    """The small data set's folder; plans that a test adds are removed."""
    before = set(preprocessed.iterdir())
    yield preprocessed
    for file in set(preprocessed.iterdir()) - before:
        file.unlink()


@pytest.fixture
def make_trainer(
    preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., nnUNetTrainerDINOMed3D]:
    """Build a trainer on the small data set; results go to a folder of this test."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def make(
        trainer_class: type[nnUNetTrainerDINOMed3D], configuration: str = "3d_fullres", fold: int = 0
    ) -> nnUNetTrainerDINOMed3D:
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        plans["continue_training"] = False
        dataset = json.loads((preprocessed / "dataset.json").read_text())
        return trainer_class(plans, configuration, fold, dataset, torch.device("cpu"))

    return make


@pytest.fixture
def trained(make_trainer: Callable[..., nnUNetTrainerDINOMed3D]) -> nnUNetTrainerDINOMed3D:
    """A trainer that went through both stages."""
    trainer = make_trainer(nnUNetTrainerSeeded)
    trainer.run_training()
    return trainer


@pytest.fixture
def shared() -> Path:
    """Real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not there: no real data")
    return SHARED
