"""Dino U-Net (arXiv 2508.20909): a 2D network on a frozen DINOv3, nnU-Net's SGD with a smaller learning rate."""

from typing import cast

from nnunetv2_dinomed3d.network_architecture.baselines.dino_unet import DinoUNet
from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer
from nnunetv2_dinomed3d.weights import read_pretrained


class nnUNetTrainerBaseline_DinoUNet_S(BaselineTrainer):
    """With DINOv3's ViT-S/16, for configuration ``2d``."""

    network_name = "DinoUNet_S"
    recipe = Recipe("SGD", 1e-3, 3e-5, "poly")
    axes = (2,)

    def start(self) -> tuple[str, str]:
        """DINOv3's weights, as ``DINOMED3D_WEIGHTS`` says."""
        network = cast(DinoUNet, self.module)
        weights = read_pretrained(network.weights_name, network.pretrained_shapes())
        if weights is None:
            asked = "DINOMED3D_WEIGHTS=random: the ViT has random weights, as asked for, and stays frozen."
            return "random weights", asked
        network.load_pretrained(weights.tensors)
        return weights.report(), weights.report()


class nnUNetTrainerBaseline_DinoUNet_B(nnUNetTrainerBaseline_DinoUNet_S):
    """With DINOv3's ViT-B/16."""

    network_name = "DinoUNet_B"


class nnUNetTrainerBaseline_DinoUNet_L(nnUNetTrainerBaseline_DinoUNet_S):
    """With DINOv3's ViT-L/16, the paper's."""

    network_name = "DinoUNet_L"
