"""The trainer, under the name that it had up to version 0.1; kept for trainers that derive from it."""

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D

__all__ = ["nnUNetTrainerDINOMed3D"]
