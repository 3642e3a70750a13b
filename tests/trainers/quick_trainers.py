"""Trainers for tests: two epochs a stage, two iterations an epoch."""

import time

import numpy as np
import torch

from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import Augmentation
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano


class nnUNetTrainerQuick(nnUNetTrainerDINOMed3D_nano):
    stage1_epochs = stage2_epochs = 2
    stage1_lr = stage2_lr = 1e-3
    iterations_per_epoch = 2
    val_iterations_per_epoch = 1
    slab_batch_size = 4
    save_latest_every = 1


class nnUNetTrainerSeeded(nnUNetTrainerQuick):
    """Draws the same numbers in an epoch whether or not the training was stopped before it; can be stopped."""

    stop_before: int | None = None

    def on_epoch_start(self) -> None:
        if self.current_epoch == self.stop_before:
            raise KeyboardInterrupt
        super().on_epoch_start()
        np.random.seed(self.current_epoch)
        torch.manual_seed(self.current_epoch)

    def initialize(self) -> None:
        torch.manual_seed(0)
        super().initialize()


class nnUNetTrainerSeededLoRAStage1(nnUNetTrainerSeeded):
    stage1_lora = True


class nnUNetTrainerKilled(nnUNetTrainerQuick):
    """Takes long enough to be killed."""

    stage1_epochs = stage2_epochs = 4
    iterations_per_epoch = 3


class nnUNetTrainerKilledOften(nnUNetTrainerKilled):
    stage1_epochs = stage2_epochs = 10


class nnUNetTrainerStarved(nnUNetTrainerQuick):
    """A fresh training waits for a batch in its second epoch, as on a disk that does not answer."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 1 and not self._resumed:
            print("starved", flush=True)
            time.sleep(600)


class nnUNetTrainerQuickBase(nnUNetTrainerDINOMed3D):
    """The real network, not the nano one."""

    stage1_epochs = stage2_epochs = 2
    stage1_lr = stage2_lr = 1e-3
    iterations_per_epoch = 2
    val_iterations_per_epoch = 1
    slab_batch_size = 4


class nnUNetTrainerQuickUnmirrored(nnUNetTrainerQuick):
    """Predicts each window once, not once for each mirrored view of it."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Augmentation:
        """nnU-Net's augmentation without flips."""
        augmentation = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return augmentation._replace(mirror_axes=None)
