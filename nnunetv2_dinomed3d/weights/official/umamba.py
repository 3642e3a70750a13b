"""U-Mamba's official state dict under the names of `network_architecture.baselines.umamba.UMamba`."""

import re
from collections.abc import Mapping

from torch import Tensor

SECOND_NAMES = re.compile(r"^decoder\.encoder\.|\.all_modules\.[01]\.")
"""Of tensors that the official code holds twice: the encoder, and a further block's convolutions and norms."""

PARTS = {
    r"^decoder\.upsample_layers\.(\d+)\.conv\.": r"decoder.reductions.\1.",
    r"\.(\d+)\.conv3\.": r".\1.shortcut.",
    r"\.conv(\d)\.conv\.": r".conv\1.",
    r"\.conv(\d)\.norm\.": r".norm\1.",
}
"""Part of an official name, as a pattern -> ours."""


def renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official tensors under our names. A name that the official code does not have stays as it is.

    Raises:
        ValueError: two tensors would have one name.
    """
    official = [name for name in state_dict if not SECOND_NAMES.search(name)]
    stages = [int(found[1]) for name in official if (found := re.match(r"encoder\.stages\.(\d+)\.", name))]
    result: dict[str, Tensor] = {}
    for name in official:
        ours = re.sub(r"^mamba_layer\.", f"encoder.mamba_layers.{max(stages, default=0)}.", name)
        for pattern, replacement in PARTS.items():
            ours = re.sub(pattern, replacement, ours)
        if ours in result:
            raise ValueError(f"{name} has the same name as another tensor here: {ours}.")
        result[ours] = state_dict[name]
    return result
