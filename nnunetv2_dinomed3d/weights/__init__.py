"""Weights and checkpoints: found, read, renamed, checked.

Pretrained DINOv3 weights come from the file or folder that the environment variable ``DINOMED3D_WEIGHTS`` names, else
from the Hugging Face Hub. Checkpoints of the released DINO-Med3D code become ours in `reference`. What does not fit
completely is refused. Importing this package reads and fetches nothing.
"""

from nnunetv2_dinomed3d.weights.files import WEIGHTS_VARIABLE, read_checkpoint
from nnunetv2_dinomed3d.weights.reference import (
    ReferenceCheckpoint,
    describe_reference,
    load_reference_checkpoint,
    read_reference,
)
from nnunetv2_dinomed3d.weights.source import (
    PretrainedWeights,
    WeightsSetting,
    WeightsUnavailableError,
    fetch_from_hub,
    hub_name,
    load_weights,
    read_pretrained,
    weights_setting,
)

__all__ = [
    "WEIGHTS_VARIABLE",
    "PretrainedWeights",
    "ReferenceCheckpoint",
    "WeightsSetting",
    "WeightsUnavailableError",
    "describe_reference",
    "fetch_from_hub",
    "hub_name",
    "load_reference_checkpoint",
    "load_weights",
    "read_checkpoint",
    "read_pretrained",
    "read_reference",
    "weights_setting",
]
