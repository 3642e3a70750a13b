"""SwinUNETR (arXiv 2201.01266): AdamW, warm-up and cosine."""

from typing import TYPE_CHECKING, cast

from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer
from nnunetv2_dinomed3d.weights.swin_unetr import start_swin_unetr

if TYPE_CHECKING:  # MONAI may be missing
    from nnunetv2_dinomed3d.network_architecture.baselines.swin_unetr import SwinUNETR


class nnUNetTrainerBaseline_SwinUNETR(BaselineTrainer):
    """MONAI's SwinUNETR with feature size 48: 62 million parameters, the paper's number."""

    network_name = "SwinUNETR"
    recipe = Recipe("AdamW", 1e-4, 1e-5, "cosine", warmup=50 / 5000)
    weights_required = False

    def start(self) -> tuple[str, str]:
        """Random weights, or those of the file that ``DINOMED3D_WEIGHTS`` names."""
        return start_swin_unetr(cast("SwinUNETR", self.module), self.network_name, self.weights_required)
