"""The recipe of the released code, as far as nnU-Net allows; docs/paper.md sets both side by side."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
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
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets_trainer
from torch import distributed as dist

from nnunetv2_dinomed3d.network_architecture.encoder import NO_LORA_ON_ICE
from nnunetv2_dinomed3d.network_architecture.state_dict import ICE
from nnunetv2_dinomed3d.trainers.dinomed3d.lr_schedulers import PlateauLRScheduler
from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import Augmentation
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D

ROTATION = (-15 * np.pi / 180, 15 * np.pi / 180)
SCALING = (0.8, 1.2)
"""Scaling of objects, as a factor of their size."""
TRANSLATION = 0.05
"""Shift in stage 2, as a share of the patch's side, to both sides."""
HORIZONTAL = 2
"""The last axis, that of an axial slice's rows."""

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


def _scaling(*_: Any, **__: Any) -> float:
    """nnU-Net's scale factor, by which the coordinates are multiplied: objects become smaller where it is larger."""
    return 1 / np.random.uniform(*SCALING)


@contextmanager
def uniform_windows() -> Iterator[None]:
    """While open, nnU-Net's validation weights all voxels of a window alike: its predictor's setting is in its body."""
    make = nnunets_trainer.nnUNetPredictor
    nnunets_trainer.nnUNetPredictor = lambda *args, **kwargs: make(*args, **{**kwargs, "use_gaussian": False})
    try:
        yield
    finally:
        nnunets_trainer.nnUNetPredictor = make


class nnUNetTrainerDINOMed3D_released(nnUNetTrainerDINOMed3D):
    """The released code's network, sampling, augmentation, schedule, choice of epochs, precision and prediction.

    The learning rate is halved when the validation Dice has not risen for some epochs. Stage 1 ends when it is under
    1e-6; what is left of its epochs is stage 2's. Both stages are validated on all slices of all validation cases; the
    best epoch has the highest Dice. ``checkpoint_final.pth``, with which nnU-Net validates and predicts, gets the
    weights of stage 2's best epoch.

    Attributes:
        patience: epochs without a rise that are put up with, of stage 1 and 2.
        stage1_min_lr: under which stage 1 ends.
    """

    depth_alignment = "released"
    lora_on_ice = True
    rope_rescale_frozen = True
    mixed_precision = False
    whole_validation = True
    patience: tuple[int, int] = (5, 8)
    stage1_min_lr: float = 1e-6

    lr_scheduler: PlateauLRScheduler

    def initialize(self) -> None:
        self.oversample_foreground_percent = 0.0
        super().initialize()

    # ---- schedule ----

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

    def ends_stage1(self) -> bool:
        return super().ends_stage1() or self._stage1_is_done()

    def on_epoch_start(self) -> None:
        if self.schedule.stage(self.current_epoch) == 1 and self._stage1_is_done():
            self.print_to_log_file(f"Stage 1 ends: its learning rate would be {self.lr_scheduler.current_lr():.2g}.")
            self._set_schedule(self.schedule.with_stage1_ended(self.current_epoch))
        super().on_epoch_start()

    # ---- augmentation ----

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Augmentation:
        """Rotation in plane by up to 15 degrees, horizontal flips, room for the shifts; no mirroring in prediction."""
        super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        with self.stage_configuration() as configuration:
            depth, *in_plane = configuration.patch_size
        return Augmentation(ROTATION, True, [depth, *self._loaded(in_plane)], (HORIZONTAL,))

    def _loaded(self, in_plane: Sequence[int]) -> list[int]:
        """Sides ``(h, w)`` that are loaded for a patch of these: its corners too, turned, made larger and shifted."""
        height, width = in_plane
        cos, sin = math.cos(ROTATION[1]), math.sin(ROTATION[1])
        turned = (cos * height + sin * width) / SCALING[0], (sin * height + cos * width) / SCALING[0]
        shift = TRANSLATION if self.stage == 2 else 0
        return [math.ceil(side + 2 * shift * final) for side, final in zip(turned, in_plane, strict=True)]

    def get_training_transforms(self, patch_size: Sequence[int], *args: Any, **kwargs: Any) -> BasicTransform:  # type: ignore[override]
        """nnU-Net's transforms without intensities: flip, rotation and scaling, and those that prepare the labels."""
        transforms = nnUNetTrainerDINOMed3D.get_training_transforms(patch_size, *args, **kwargs).transforms
        kept = [transform for transform in transforms if not _is_intensity(transform)]
        return ComposeTransforms([self._joint(item) if isinstance(item, SpatialTransform) else item for item in kept])

    def _joint(self, spatial: SpatialTransform) -> BasicTransform:
        """Rotation, scaling and, in stage 2, shift of half of the patches; the others are cut out as they are."""
        moved, still = copy(spatial), copy(spatial)
        still.p_rotation = still.p_scaling = 0
        moved.p_rotation = moved.p_scaling = moved.p_synchronize_scaling_across_axes = 1
        moved.scaling = _scaling
        if self.stage == 2:
            moved.random_crop = True  # its centre is anywhere but so near to the border
            loaded = self._loaded(moved.patch_size)
            moved.patch_center_dist_from_border = [
                side / 2 - TRANSLATION * final for side, final in zip(loaded, moved.patch_size, strict=True)
            ]
        return OneOfTransform([moved, still])

    # ---- validation and prediction ----

    def _average_dice(self, past: Sequence[float], dice: float) -> float:
        """None: the best epoch is that of the highest Dice."""
        return dice

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with uniform_windows():
            super().perform_actual_validation(save_probabilities)

    def on_train_end(self) -> None:
        self._take_best_epoch()
        super().on_train_end()

    def _take_best_epoch(self) -> None:
        """Before the last checkpoint is written: the weights of the best epoch, as the released code predicts with."""
        if self.disable_checkpointing:
            self.print_to_log_file("Checkpointing is disabled: the weights stay those of the last epoch.")
            return
        if self.is_ddp:
            dist.barrier()  # rank 0 wrote the file
        file = self.best_epoch()
        checkpoint = file.read(self._training)
        if checkpoint is None:
            self._warn(f"{file.path} is missing: the weights stay those of the last epoch.")
            return
        self.module.load_state_dict(checkpoint["network_weights"])
        best_epoch = checkpoint["current_epoch"] - 1
        self.my_init_kwargs = {**self.my_init_kwargs, "final": {"best_epoch": best_epoch}}
        self.print_to_log_file(
            f"checkpoint_final.pth gets the weights of epoch {best_epoch}, the best ({file.path.name}), as the "
            "released code predicts with them."
        )

    def _check_matches_network(self, checkpoint: dict[str, Any], filename: str) -> None:
        if f"{ICE}weight" in checkpoint["network_weights"]:
            raise ValueError(f"{filename}: {NO_LORA_ON_ICE}")
        super()._check_matches_network(checkpoint, filename)
