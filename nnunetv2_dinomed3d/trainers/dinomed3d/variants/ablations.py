"""The paper's ablations, slab depth (Table 2) and parts of the method (Table 3); and its future work."""

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D


class nnUNetTrainerDINOMed3D_K1(nnUNetTrainerDINOMed3D):
    """Table 2: single slices."""

    slab_depth = 1


class nnUNetTrainerDINOMed3D_K2(nnUNetTrainerDINOMed3D):
    """Table 2: slabs of two slices, the one before and the central one."""

    slab_depth = 2


class nnUNetTrainerDINOMed3D_K4(nnUNetTrainerDINOMed3D):
    """Table 2: slabs of four slices, two before and one after the central one."""

    slab_depth = 4


class nnUNetTrainerDINOMed3D_K5(nnUNetTrainerDINOMed3D):
    """Table 2: slabs of five slices."""

    slab_depth = 5


class nnUNetTrainerDINOMed3D_frozen(nnUNetTrainerDINOMed3D):
    """Table 3, row 1: DINOv3 frozen, only the linear head is trained; no stage 2."""

    stages = (1,)
    train_encoder = False


class nnUNetTrainerDINOMed3D_stage1(nnUNetTrainerDINOMed3D):
    """Table 3, row 2: stage 1 alone; volumes are predicted slice by slice."""

    stages = (1,)


class nnUNetTrainerDINOMed3D_noDetail(nnUNetTrainerDINOMed3D):
    """Table 3, row 3: no detail stream, and so neither fusion nor refinement."""

    detail_stream = False


class nnUNetTrainerDINOMed3D_noStage1(nnUNetTrainerDINOMed3D):
    """Table 3, row 5: stage 2 straight from DINOv3."""

    stages = (2,)


class nnUNetTrainerDINOMed3D_UPerNetProxy(nnUNetTrainerDINOMed3D):
    """Table 3, row 6: UPerNet in place of the linear head in stage 1."""

    proxy = "upernet"


class nnUNetTrainerDINOMed3D_loraStage1(nnUNetTrainerDINOMed3D):
    """The paper's future work, a lighter stage 1: LoRA of rank 16 in the ViT's place, beside ICE and the head.

    At the switch LoRA is folded into the ViT's weights, and stage 2 starts with a new one. The learning rate of stage 1
    is that which the paper trains LoRA with, in stage 2 (section 3.2).
    """

    stage1_lora = True
    stage1_lr = nnUNetTrainerDINOMed3D.stage2_lr
