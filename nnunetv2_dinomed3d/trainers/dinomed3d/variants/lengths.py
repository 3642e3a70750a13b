"""Lengths of the training, half of it in each stage."""

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D


class nnUNetTrainerDINOMed3D_20epochs(nnUNetTrainerDINOMed3D):
    """For a first look."""

    stage1_epochs = stage2_epochs = 10


class nnUNetTrainerDINOMed3D_250epochs(nnUNetTrainerDINOMed3D):
    """The length of nnU-Net's ``nnUNetTrainer_250epochs``."""

    stage1_epochs = stage2_epochs = 125


class nnUNetTrainerDINOMed3D_1000epochs(nnUNetTrainerDINOMed3D):
    """The length of nnU-Net's default."""

    stage1_epochs = stage2_epochs = 500
