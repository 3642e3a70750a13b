"""VoCo (arXiv 2402.17300): SwinUNETR with weights of self-supervised training, which are given by the user."""

from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.baselines.swin_unetr import nnUNetTrainerBaseline_SwinUNETR


class nnUNetTrainerBaseline_VoCo_B(nnUNetTrainerBaseline_SwinUNETR):
    """Feature size 48."""

    network_name = "VoCo_B"
    recipe = Recipe("AdamW", 3e-4, 1e-5, "cosine", warmup=5 / 500)
    weights_required = True


class nnUNetTrainerBaseline_VoCo_L(nnUNetTrainerBaseline_VoCo_B):
    """Feature size 96, as VoCo's own downstream tasks have it: 290 million parameters."""

    network_name = "VoCo_L"


class nnUNetTrainerBaseline_VoCo_L_v1(nnUNetTrainerBaseline_VoCo_B):
    """Feature size 96 without the residual blocks of v2: 248 million parameters, the paper's number."""

    network_name = "VoCo_L_v1"
