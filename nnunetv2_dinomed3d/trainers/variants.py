"""The trainers that ``-tr`` finds; each is `nnUNetTrainerDINOMed3D` with other class attributes."""

from nnunetv2_dinomed3d.trainers.schedule import Recipe, Schedule
from nnunetv2_dinomed3d.trainers.trainer import nnUNetTrainerDINOMed3D

__all__ = [
    "nnUNetTrainerDINOMed3D",
    "nnUNetTrainerDINOMed3D_L",
    "nnUNetTrainerDINOMed3D_S",
    "nnUNetTrainerDINOMed3D_nano",
]


class nnUNetTrainerDINOMed3D_S(nnUNetTrainerDINOMed3D):
    """With DINOv3's ViT-S/16."""

    variant = "small"


class nnUNetTrainerDINOMed3D_L(nnUNetTrainerDINOMed3D):
    """With DINOv3's ViT-L/16."""

    variant = "large"


class nnUNetTrainerDINOMed3D_nano(nnUNetTrainerDINOMed3D):
    """A tiny network without pretrained weights, for tests and the demo on a CPU: never a result to report.

    Its learning rates are those of a network that starts from nothing.
    """

    variant = "nano"
    schedule = Schedule(stage1=Recipe(epochs=3, lr=1e-3), stage2=Recipe(epochs=14, lr=2e-3))
    iterations_per_epoch = 20
    val_iterations_per_epoch = 2
