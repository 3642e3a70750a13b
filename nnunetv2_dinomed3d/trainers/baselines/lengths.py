"""Lengths of a baseline's training; each stands behind the name of a network."""

from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer


class nnUNetTrainerBaseline_20epochs(BaselineTrainer):
    """For a first look."""

    epochs = 20


class nnUNetTrainerBaseline_250epochs(BaselineTrainer):
    """The length of nnU-Net's ``nnUNetTrainer_250epochs``."""

    epochs = 250


class nnUNetTrainerBaseline_1000epochs(BaselineTrainer):
    """The length of nnU-Net's default."""

    epochs = 1000
