"""Options of the network: differences of its ablations and of the released code from the paper's network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

DepthAlignment = Literal["exact", "released"]
Proxy = Literal["linear", "upernet"]


@dataclass(frozen=True)
class NetworkOptions:
    """Choices for a `DINOMed3D` beside its size; the defaults are the paper's.

    Attributes:
        slab_depth: K, slices in a slab.
        depth_alignment: see `adapter.Adapter3D`.
        rope_rescale: R; in training, the coordinates that RoPE encodes are multiplied by a random factor between 1 / R
            and R, one for each block of each forward pass, as in DINOv3's own training (R = 2). None switches it off.
            Only a ViT that is trained is in training mode: in stage 2 nothing is rescaled.
        rope_rescale_frozen: rescale in training also if the ViT is frozen, as the released code does in stage 2.
        lora_on_ice: whether ICE's convolution carries LoRA too, as the released code's patch embedding does.
        train_encoder: whether stage 1 trains ICE and ViT, or only the proxy head (Table 3, row 1).
        stage1_lora: whether stage 1 trains LoRA in the ViT's place, beside ICE and the proxy head.
        proxy: what predicts in stage 1: a linear head, or a UPerNet (Table 3, row 6).
        detail_stream: whether stage 2 has a detail stream, the fusion and the refinement (Table 3, row 3: no).
        mixed_precision: whether to compute in bfloat16 where autocast is on.
    """

    slab_depth: int = 3
    depth_alignment: DepthAlignment = "exact"
    rope_rescale: float | None = 2.0
    rope_rescale_frozen: bool = False
    lora_on_ice: bool = False
    train_encoder: bool = True
    stage1_lora: bool = False
    proxy: Proxy = "linear"
    detail_stream: bool = True
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        for name, known in (("depth_alignment", DepthAlignment), ("proxy", Proxy)):
            value, values = getattr(self, name), get_args(known)
            if value not in values:
                raise ValueError(f"{name} is {value!r}; it is {' or '.join(map(repr, values))}.")
        if self.stage1_lora and not self.train_encoder:
            raise ValueError(
                "stage1_lora is True and train_encoder is False: stage 1 cannot train LoRA and leave the encoder as it "
                "is. Set one of them back."
            )

    @classmethod
    def of(cls, owner: object) -> NetworkOptions:
        """Options that are attributes of another object or class, such as a trainer, by the same names."""
        return cls(**{option.name: getattr(owner, option.name) for option in fields(cls)})
