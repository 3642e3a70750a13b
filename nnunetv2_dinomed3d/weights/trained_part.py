"""The part of a checkpoint that was trained, in the form in which another network can take it."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import (
    BASE_LAYER,
    STAGE2_PARTS,
    is_lora,
    names_without_lora,
    stage_of,
)

RESAMPLING = re.compile(r"(adapter\.levels\.\d+\.3\.)(1\.)?")
"""The adapter's convolutions from the token grid to a level's. What they are depends on the in-plane scale S."""


@dataclass(frozen=True)
class TrainedPart:
    """Tensors to take.

    Attributes:
        tensors: by their names in the checkpoint.
        with_lora: names of those to which LoRA was added.
        lora: names of that LoRA.
        untrained: names of tensors that were not trained.
    """

    tensors: dict[str, Tensor]
    with_lora: frozenset[str]
    lora: frozenset[str]
    untrained: frozenset[str]

    @cached_property
    def _names_without_lora(self) -> dict[str, str]:
        return names_without_lora(self.tensors)

    def name_of(self, name: str) -> str | None:
        """The checkpoint's name for a tensor of another network; None if it has none.

        It may stand in a layer with LoRA. The adapter's convolution from 16 to 32 voxels is the same for each S, that
        from 8 to 16 for S = 2 and 4; where a mean over tokens comes before it, its name is another.
        """
        if name in self.tensors or is_lora(name):
            return name if name in self.tensors else None
        without = name.replace(f".{BASE_LAYER}", ".")
        if without in self._names_without_lora:
            return self._names_without_lora[without]
        other = RESAMPLING.sub(lambda found: found[1] if found[2] else f"{found[1]}1.", name, count=1)
        return other if other in self.tensors else None


def trained_part(
    state: Mapping[str, Tensor], stage1_lora: bool, network: Collection[str], lora_scaling: float
) -> TrainedPart:
    """Leave out what stage 1 has not trained, and add LoRA to the weights beside it where it cannot stay.

    LoRA cannot stay where the network has none, and where stage 1 trained it in the ViT's place.

    Args:
        state: a network's state dict.
        stage1_lora: whether its stage 1 trains LoRA, see `NetworkOptions`.
        network: names of the tensors of the network to fill.
        lora_scaling: factor of LoRA.
    """
    is_stage1 = stage_of(state) == 1
    untrained = frozenset(
        name for name in state if is_stage1 and (name.startswith(STAGE2_PARTS) or (is_lora(name) and not stage1_lora))
    )
    tensors = {name: tensor for name, tensor in state.items() if name not in untrained}
    with_lora, lora = set(), set()
    for name in list(tensors):
        layer, is_a, adapter = name.partition(".lora_A.")
        if is_a and (is_stage1 or name not in network):
            weight, other = f"{layer}.{BASE_LAYER}weight", f"{layer}.lora_B.{adapter}"
            if weight in tensors and other in tensors:
                added = tensors[other].flatten(1).float() @ tensors[name].flatten(1).float()
                tensors[weight] = tensors[weight] + lora_scaling * added.view_as(tensors[weight])
                with_lora.add(weight)
                lora |= {name, other}
    kept = {name: tensor for name, tensor in tensors.items() if name not in lora}
    return TrainedPart(kept, frozenset(with_lora), frozenset(lora), untrained)
