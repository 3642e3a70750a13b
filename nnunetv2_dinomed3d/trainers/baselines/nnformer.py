"""nnFormer (arXiv 2109.03201): nnU-Net's recipe, deep supervision on three outputs."""

from collections.abc import Sequence

from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer


class nnUNetTrainerBaseline_nnFormer(BaselineTrainer):
    """nnFormer as configured for Synapse: 150 million parameters, the paper's number."""

    network_name = "nnFormer"
    recipe = Recipe("SGD", 1e-2, 3e-5, "poly")
    deep_supervision = True
    deep_supervision_weights = (4 / 7, 2 / 7, 1 / 7)

    def deep_supervision_scales(self) -> Sequence[Sequence[float]]:
        """Each output has half of the finer one's sides."""
        return [[0.5**level] * 3 for level in range(len(self.deep_supervision_weights))]
