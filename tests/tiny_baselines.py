"""The baselines as tiny networks, and short trainings of them, for tests on a CPU."""

import os
import sys
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer

MAMBA: dict[str, Any] = {"features": (4, 8, 8)}
SWIN: dict[str, Any] = {"feature_size": 12}
DINO: dict[str, Any] = {
    "vit_kwargs": {"embed_dim": 96, "depth": 4, "num_heads": 3},
    "features": (4, 8, 8, 16),
}
TINY: dict[str, dict[str, Any]] = {
    "nnFormer": {"embed_dim": 12, "num_heads": (1, 2, 4, 8)},
    "SwinUNETR": SWIN,
    **dict.fromkeys(("VoCo_B", "VoCo_L", "VoCo_L_v1"), SWIN),
    **dict.fromkeys(("UMambaBot", "UMambaEnc"), MAMBA),
    **dict.fromkeys(("DinoUNet_S", "DinoUNet_B", "DinoUNet_L"), DINO),
}
"""Keyword arguments that a network has in place of its own."""


def options_of(trainer: type[BaselineTrainer], configuration: ConfigurationManager) -> dict[str, Any]:
    """The keyword arguments of the tiny network; of U-Mamba, with the plans' first strides, for a few stages."""
    options = dict(TINY[trainer.network_name])
    if trainer.network_name.startswith("UMamba"):
        strides = configuration.pool_op_kernel_sizes[: len(options["features"])]
        options |= {
            "features": options["features"][: len(strides)],
            "kernel_sizes": [[3] * len(configuration.patch_size)] * len(strides),
            "strides": strides,
        }
    return options


def shortened(trainer: type, iterations: int = 2) -> dict[str, Any]:
    """Attributes of a trainer's class that make its network tiny and its training an epoch of so many iterations."""
    quickly = {"iterations_per_epoch": iterations, "val_iterations_per_epoch": 1, "save_latest_every": 1}
    if issubclass(trainer, BaselineTrainer):
        return {**quickly, "network_options": classmethod(options_of), "epochs": 1}
    return {**quickly, "variant": "nano", "stage1_epochs": 1, "stage2_epochs": 1, "slab_batch_size": 2}


SHORT = """#!{python}
# nnU-Net's command of this file's name with tiny networks and a few iterations: the trainers' own names, on a CPU
import sys
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from tests.tiny_baselines import shortened

if __name__ == "__main__":  # processes that it starts import it
    trainer = recursive_find_trainer_class_by_name(sys.argv[sys.argv.index("-tr") + 1])
    if trainer.__module__.startswith("nnunetv2."):
        start = trainer.__init__

        def short(self, plans, configuration, fold, dataset_json, device):
            start(self, plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, {iterations}, 1

        trainer.__init__ = short
    else:
        for attribute, value in shortened(trainer, {iterations}).items():
            setattr(trainer, attribute, value)
    sys.argv += ["-device", "cpu"]
    predict_entry_point() if Path(sys.argv[0]).name == "nnUNetv2_predict" else run_training_entry()
"""


def short_trainings(folder: Path, iterations: int = 2) -> dict[str, str]:
    """Put commands into a folder that train so briefly, and predict; the settings with which they are found."""
    folder.mkdir()
    for name in ("nnUNetv2_train", "nnUNetv2_predict"):
        (folder / name).write_text(SHORT.format(python=sys.executable, iterations=iterations))
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
