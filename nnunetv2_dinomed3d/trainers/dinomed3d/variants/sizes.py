"""Sizes of the backbone."""

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D


class nnUNetTrainerDINOMed3D_T(nnUNetTrainerDINOMed3D):
    """With LightlyTrain's ViT-T/16, distilled from DINOv3."""

    variant = "tiny"


class nnUNetTrainerDINOMed3D_S(nnUNetTrainerDINOMed3D):
    """With DINOv3's ViT-S/16."""

    variant = "small"


class nnUNetTrainerDINOMed3D_S_plus(nnUNetTrainerDINOMed3D):
    """With DINOv3's ViT-S+/16."""

    variant = "small_plus"


class nnUNetTrainerDINOMed3D_L(nnUNetTrainerDINOMed3D):
    """With DINOv3's ViT-L/16."""

    variant = "large"


class nnUNetTrainerDINOMed3D_H_plus(nnUNetTrainerDINOMed3D):
    """With DINOv3's ViT-H+/16."""

    variant = "huge_plus"


class nnUNetTrainerDINOMed3D_nano(nnUNetTrainerDINOMed3D):
    """A tiny network without pretrained weights, for tests and the demo on a CPU: never a result to report.

    Its learning rates are those of a network that starts from nothing.
    """

    variant = "nano"
    stage1_epochs = 3
    stage2_epochs = 14
    stage1_lr = 1e-3
    stage2_lr = 2e-3
    iterations_per_epoch = 20
    val_iterations_per_epoch = 2
