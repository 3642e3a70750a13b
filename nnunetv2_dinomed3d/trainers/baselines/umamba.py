"""U-Mamba (arXiv 2401.04722): nnU-Net's recipe on nnU-Net's plans, whose stages, kernels and strides it takes."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.baselines.trainer import BaselineTrainer


class nnUNetTrainerBaseline_UMambaEnc(BaselineTrainer):
    """A Mamba layer after each stage of the encoder: 43 million parameters, the paper's number."""

    network_name = "UMambaEnc"
    recipe = Recipe("SGD", 1e-2, 3e-5, "poly")
    axes = (2, 3)
    deep_supervision = True
    mixed_precision = False  # a Mamba layer after each stage amplifies bfloat16's rounding

    @classmethod
    def network_options(cls, configuration: ConfigurationManager) -> Mapping[str, Any]:
        """The plans' architecture."""
        plan = configuration.network_arch_init_kwargs
        return {
            "features": plan["features_per_stage"],
            "kernel_sizes": plan["kernel_sizes"],
            "strides": plan["strides"],
            "num_blocks": plan[
                "n_blocks_per_stage" if "n_blocks_per_stage" in plan else "n_conv_per_stage"
            ],  # ResEncUNet plans
            "num_decoder_blocks": plan["n_conv_per_stage_decoder"],
        }


class nnUNetTrainerBaseline_UMambaBot(nnUNetTrainerBaseline_UMambaEnc):
    """One Mamba layer, at the bottleneck."""

    network_name = "UMambaBot"
    mixed_precision = True
