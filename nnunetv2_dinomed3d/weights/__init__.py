"""Pretrained DINOv3 weights: found, read, renamed, checked.

They come from the file that the environment variable ``DINOMED3D_WEIGHTS`` names, else from the Hugging Face Hub. What
does not fit completely is refused. Importing this package reads and fetches nothing.
"""

from nnunetv2_dinomed3d.weights.source import (
    WEIGHTS_VARIABLE,
    PretrainedWeights,
    WeightsSetting,
    WeightsUnavailableError,
    load_pretrained_weights,
    weights_setting,
)

__all__ = [
    "WEIGHTS_VARIABLE",
    "PretrainedWeights",
    "WeightsSetting",
    "WeightsUnavailableError",
    "load_pretrained_weights",
    "weights_setting",
]
