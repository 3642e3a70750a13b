"""The recipe of the released code, where it differs from the plugin's."""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

from nnunetv2_dinomed3d.trainers.schedule import PlateauLRScheduler
from nnunetv2_dinomed3d.trainers.trainer import nnUNetTrainerDINOMed3D

ROTATION = (-15 * np.pi / 180, 15 * np.pi / 180)
SCALING = (0.8, 1.2)
INTENSITY = (
    GaussianNoiseTransform,
    GaussianBlurTransform,
    MultiplicativeBrightnessTransform,
    ContrastTransform,
    SimulateLowResolutionTransform,
    GammaTransform,
)
"""nnU-Net's augmentations that the released code does not have."""


def _is_intensity(transform: BasicTransform) -> bool:
    return isinstance(transform, RandomTransform) and isinstance(transform.transform, INTENSITY)


class nnUNetTrainerDINOMed3D_released(nnUNetTrainerDINOMed3D):
    """The released code's depth alignment (without padding), schedule, augmentation and precision.

    The learning rate is halved when the validation Dice has not risen for some epochs. Stage 1 ends when it is under
    1e-6; what is left of its epochs is stage 2's.

    Attributes:
        patience: epochs without a rise that are put up with, of stage 1 and 2.
        stage1_min_lr: under which stage 1 ends.
    """

    depth_alignment = "released"
    mixed_precision = False
    patience: tuple[int, int] = (5, 8)
    stage1_min_lr: float = 1e-6

    lr_scheduler: PlateauLRScheduler

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PlateauLRScheduler]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, PlateauLRScheduler(
            optimizer, self.initial_lr, self.patience[self.stage - 1], self._dice_of_stage
        )

    def _dice_of_stage(self) -> list[float]:
        """Validation Dice (nnU-Net's pseudo Dice) of the stage's epochs so far."""
        return self.logger.get_value("mean_fg_dice", step=None)[self.schedule.first_epoch(self.stage) :]

    def _stage1_is_done(self) -> bool:
        """Whether the learning rate of the epoch to come is too small for stage 1."""
        is_followed = self.stage == 1 and self.schedule.stage2.epochs > 0
        return is_followed and self.lr_scheduler.current_lr() < self.stage1_min_lr

    def _ends_stage1(self) -> bool:
        return super()._ends_stage1() or self._stage1_is_done()

    def on_epoch_start(self) -> None:
        if self.schedule.stage(self.current_epoch) == 1 and self._stage1_is_done():
            self.print_to_log_file(f"Stage 1 ends: its learning rate would be {self.lr_scheduler.current_lr():.2g}.")
            self._set_schedule(self.schedule.with_stage1_ended(self.current_epoch))
        super().on_epoch_start()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """Rotation in plane by up to 15 degrees, in both stages."""
        *_, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        with self._stage_configuration():
            depth, *in_plane = self.configuration_manager.patch_size
        in_plane = get_patch_size(in_plane, ROTATION, (0, 0), (0, 0), SCALING)
        return ROTATION, True, [depth, *in_plane], mirror_axes

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """Of nnU-Net's transforms flip, rotation and scaling, and those that prepare the labels."""
        transforms = nnUNetTrainerDINOMed3D.get_training_transforms(*args, **kwargs)
        kept = [transform for transform in transforms.transforms if not _is_intensity(transform)]
        for transform in kept:
            if isinstance(transform, SpatialTransform):
                transform.scaling = SCALING
        return ComposeTransforms(kept)
