"""Trainers for tests: two epochs a stage, two iterations an epoch."""

from nnunetv2_dinomed3d.trainers.schedule import Recipe, Schedule
from nnunetv2_dinomed3d.trainers.variants import nnUNetTrainerDINOMed3D, nnUNetTrainerDINOMed3D_nano

QUICK = Schedule(stage1=Recipe(epochs=2, lr=1e-3), stage2=Recipe(epochs=2, lr=1e-3))


class nnUNetTrainerQuick(nnUNetTrainerDINOMed3D_nano):
    schedule = QUICK
    iterations_per_epoch = 2
    val_iterations_per_epoch = 1
    slab_batch_size = 4
    latest_every = 1


class nnUNetTrainerQuickBase(nnUNetTrainerDINOMed3D):
    """The real network, not the nano one."""

    schedule = QUICK
    iterations_per_epoch = 2
    val_iterations_per_epoch = 1
    slab_batch_size = 4
