"""What the tests of nnU-Net's features share: tiny data sets, and nnU-Net's commands run inside this process."""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D

TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano


class nnUNetTrainerBrief(nnUNetTrainerDINOMed3D_nano):
    stage1_epochs = stage2_epochs = 1
    iterations_per_epoch = 2
    val_iterations_per_epoch = 1
    slab_batch_size = 4


class nnUNetTrainerBriefK5(nnUNetTrainerBrief):
    slab_depth = 5


class nnUNetTrainerBriefLonger(nnUNetTrainerBrief):
    stage1_epochs = stage2_epochs = 3
    iterations_per_epoch = 1


class nnUNetTrainerBriefStill(nnUNetTrainerBrief):
    '''Takes every step of a training and changes nothing.'''

    stage1_lr = stage2_lr = 0.0


class nnUNetTrainerBriefPretrained(nnUNetTrainerBrief):
    '''As small, but DINOv3 has weights for it, so that a fresh training asks for them.'''

    variant = "small"

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        return nnUNetTrainerBrief.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )


class nnUNetTrainerBriefStock(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1
"""
"""One epoch a stage, two iterations an epoch; and stock nnU-Net for one iteration."""

BRIEF = ("-tr", "nnUNetTrainerBrief")


@contextmanager
def brief_trainers(folder: Path) -> Iterator[None]:
    """While open, ``-tr`` finds `TRAINERS`, written to a file in ``folder``."""
    (folder / "brief_trainers.py").write_text(TRAINERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", os.pathsep.join([os.environ["nnUNet_extTrainer"], str(folder)]))
        yield


# ---- commands ----


def nnunet(command: str, *arguments: str | int | Path) -> None:
    """Run one of nnU-Net's commands as its console script does, in this process; errors are raised.

    Its pools of spawned processes become pools of threads: the same code, without the seconds that each process takes
    to import torch.
    """
    (entry,) = entry_points(group="console_scripts", name=command)
    get_context, threads = multiprocessing.get_context, torch.get_num_threads()

    def context(method: str | None = None) -> Any:
        return SimpleNamespace(Pool=ThreadPool) if method == "spawn" else get_context(method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", context)
        patch.setattr(multiprocessing, "cpu_count", lambda: threads)  # nnU-Net gives torch as many
        patch.setattr(sys, "argv", [command, *map(str, arguments)])
        entry.load()()


def train(dataset: int, configuration: str, fold: int | str, *arguments: str | Path) -> None:
    """``nnUNetv2_train`` on the CPU."""
    nnunet("nnUNetv2_train", dataset, configuration, fold, "-device", "cpu", *arguments)


ALONE = ("-npp", 0, "-nps", 0, "--disable_tta", "--disable_progress_bar", "-device", "cpu")
"""``nnUNetv2_predict`` on the CPU, without mirroring, in its own process alone."""


def predict(dataset: int, configuration: str, images: Path, out: Path, *arguments: str | int | Path) -> None:
    """``nnUNetv2_predict``, see `ALONE`; probabilities are saved."""
    folders = ("-i", images, "-o", out, "--save_probabilities")
    nnunet("nnUNetv2_predict", "-d", dataset, "-c", configuration, *folders, *ALONE, *arguments)


# ---- data ----


@dataclass(frozen=True)
class DataSet:
    """A data set in nnU-Net's folders."""

    number: int

    @property
    def name(self) -> str:
        return f"Dataset{self.number}_Features"

    @property
    def raw(self) -> Path:
        return Path(os.environ["nnUNet_raw"]) / self.name

    @property
    def images(self) -> Path:
        return self.raw / "imagesTr"

    @property
    def preprocessed(self) -> Path:
        return Path(os.environ["nnUNet_preprocessed"]) / self.name

    @property
    def plans(self) -> dict[str, Any]:
        return json.loads((self.preprocessed / "nnUNetPlans.json").read_text())

    def model(self, trainer: str = BRIEF[1], configuration: str = "3d_fullres", plans: str = "nnUNetPlans") -> Path:
        """Folder of the results."""
        return Path(os.environ["nnUNet_results"]) / self.name / f"{trainer}__{plans}__{configuration}"

    def trainer(self, configuration: str = "3d_fullres", trainer: str = BRIEF[1]) -> nnUNetTrainerDINOMed3D:
        """Fold 0's, as ``nnUNetv2_train`` makes it; initialised."""
        made = get_trainer_from_args(str(self.number), configuration, 0, trainer, device=torch.device("cpu"))
        made.initialize()
        return made


Case = tuple[np.ndarray, np.ndarray]
"""Image ``(c, z, y, x)`` and labels ``(z, y, x)``, in the axis order of the file."""


def nested_boxes(shape: tuple[int, int, int], rng: np.random.Generator, channels: int = 1) -> Case:
    """In noise a bright box of label 1, in its middle one of label 2."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(side // 5, side - side // 5) for side in shape)] = 1
    labels[tuple(slice(2 * side // 5, max(3 * side // 5, 2 * side // 5 + 1)) for side in shape)] = 2
    return rng.normal(0, 1, (channels, *shape)) + 3 * labels, labels


def write_volume(array: np.ndarray, file: Path, spacing: Sequence[float]) -> None:
    """``(z, y, x)``, spacing ``(x, y, z)``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    volume = sitk.GetImageFromArray(array)
    volume.SetSpacing(spacing)
    sitk.WriteImage(volume, str(file))


def read_volume(file: Path) -> np.ndarray:
    """``(z, y, x)``."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def make_dataset(
    number: int,
    cases: Sequence[Case],
    labels: Mapping[str, Any],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 3.0),
    configurations: Mapping[str, Mapping[str, Any]] | None = None,
    **description: Any,
) -> DataSet:
    """Write a data set, plan and preprocess it.

    Args:
        number: of the data set.
        cases: its training cases.
        labels, description: of ``dataset.json``.
        spacing: of the files, ``(x, y, z)``.
        configurations: by name, what nnU-Net's plans do not have: written into ``nnUNetPlans.json`` by hand.
    """
    data = DataSet(number)
    for i, (image, segmentation) in enumerate(cases):
        for channel, volume in enumerate(image.astype(np.float32)):
            write_volume(volume, data.images / f"case_{i}_{channel:04d}.nii.gz", spacing)
        write_volume(segmentation.astype(np.uint8), data.raw / "labelsTr" / f"case_{i}.nii.gz", spacing)
    description = {
        "channel_names": {str(channel): "MRI" for channel in range(len(cases[0][0]))},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        **description,
    }
    (data.raw / "dataset.json").write_text(json.dumps(description))
    analyze = DatasetFingerprintExtractor.analyze_case
    with pytest.MonkeyPatch.context() as patch:
        # nnU-Net draws 100 million voxels, of the few thousand there are
        patch.setattr(DatasetFingerprintExtractor, "analyze_case", lambda i, s, r, n: analyze(i, s, r, 1000))
        nnunet("nnUNetv2_extract_fingerprint", "-d", number, "-np", 1)
        patch.setenv("nnUNet_n_proc_DA", "1")  # the planner fails with 0
        nnunet("nnUNetv2_plan_experiment", "-d", number)
    plans = data.plans
    for name, configuration in (configurations or {}).items():
        plans["configurations"].setdefault(name, {}).update(configuration)
    (data.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    stored = {"3d_fullres", *(name for name, c in (configurations or {}).items() if "data_identifier" in c)}
    nnunet("nnUNetv2_preprocess", "-d", number, "-c", *sorted(stored), "-np", 1)
    return data


# ---- checkpoints ----


def load(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net's."""
    return torch.load(checkpoint, map_location="cpu", weights_only=False)


def make_it_answer(checkpoint: Path, logits: Sequence[float]) -> None:
    """Change the network in a checkpoint of stage 2 into one that gives these logits everywhere."""
    content = load(checkpoint)
    weights = content["network_weights"]
    weights["decoder.seg_layers.weight"].zero_()
    weights["decoder.seg_layers.bias"].copy_(torch.tensor(logits))
    torch.save(content, checkpoint)


def losses(checkpoint: Path) -> list[float]:
    """Training and validation losses of all epochs."""
    log = load(checkpoint)["logging"]
    log = log.get("local_logger", log)
    return [*log["train_losses"], *log["val_losses"]]
