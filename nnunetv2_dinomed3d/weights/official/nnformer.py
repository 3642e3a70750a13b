"""nnFormer's official state dict under the names of `network_architecture.baselines.nnformer.NNFormer`."""

import re
from collections.abc import Mapping

from torch import Tensor

COMPUTED = ".attn.relative_position_index"
"""End of the name of a buffer that is computed anew."""

STEM = {
    "proj1.conv1": "convolutions.0",
    "proj1.norm1": "norms.0",
    "proj1.conv2": "convolutions.1",
    "proj1.norm2": "norms.1",
    "proj2.conv1": "convolutions.2",
    "proj2.norm1": "norms.2",
    "proj2.conv2": "convolutions.3",
    "norm": "norms.3",
}
"""Official name in the stem -> ours."""

NAMES = {
    **{rf"^model_down\.patch_embed\.{re.escape(old)}\.": f"encoder.stem.{new}." for old, new in STEM.items()},
    r"^model_down\.layers\.(\d+)\.blocks\.(\d+)\.": r"encoder.levels.\1.\2.",
    r"^model_down\.layers\.(\d+)\.downsample\.norm\.": r"encoder.downsampling.\1.norm.",
    r"^model_down\.layers\.(\d+)\.downsample\.reduction\.": r"encoder.downsampling.\1.convolution.",
    r"^model_down\.norm(\d+)\.": r"encoder.norms.\1.",
    r"^decoder\.layers\.(\d+)\.Upsample\.norm\.": r"decoder.levels.\1.norm.",
    r"^decoder\.layers\.(\d+)\.Upsample\.up\.": r"decoder.levels.\1.upsampling.",
    r"^decoder\.layers\.(\d+)\.": r"decoder.levels.\1.",
    r"^final\.(\d+)\.up\.": r"decoder.seg_layers.\1.",
    r"\.attn\.relative_position_bias_table$": ".attention.position_bias",
    r"\.attn\.proj\.": ".attention.projection.",
    r"\.attn\.": ".attention.",
}
"""Part of an official name, as a pattern -> ours; applied in this order."""


def renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official tensors under our names. Beside what is computed anew, nothing is dropped.

    Raises:
        ValueError: two tensors would have one name.
    """
    result: dict[str, Tensor] = {}
    for official, tensor in state_dict.items():
        if official.endswith(COMPUTED):
            continue
        name = _our_name(official)
        if name in result:
            raise ValueError(f"{official} has the same name as another tensor here: {name}.")
        result[name] = tensor
    return result


def _our_name(official: str) -> str:
    name = official
    for pattern, ours in NAMES.items():
        name = re.sub(pattern, ours, name)
    return name
