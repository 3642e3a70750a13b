"""SwinUNETR (arXiv 2201.01266) and VoCo's network (arXiv 2402.17300), which is the same: MONAI's class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from monai.networks.nets.swin_unetr import PatchMerging
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork

Merging = Literal["all", "legacy"]

OCTANTS: Mapping[Merging, Sequence[tuple[int, int, int]]] = {
    "all": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)],
    "legacy": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)],
}
"""Offsets along d, h, w of the eight copies that patch merging concatenates. MONAI before 1.5 took two of them twice
and left two out; weights that were made with it need the same."""

STRIDE = 32
"""Voxels per token of the deepest map: the patch embedding and four stages halve."""


class OrderedPatchMerging(PatchMerging):
    """MONAI's patch merging with the octants in a given order, which can be switched."""

    merging: Merging = "all"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, d, h, w, C)`` to ``(B, d / 2, h / 2, w / 2, 2 C)``; odd sides are padded with zeros."""
        x = F.pad(x, (0, 0, *(amount for side in x.shape[3:0:-1] for amount in (0, side % 2))))
        copies = [x[:, d::2, h::2, w::2] for d, h, w in OCTANTS[self.merging]]
        merged: Tensor = self.reduction(self.norm(torch.cat(copies, -1)))
        return merged


class _LinspaceOnCPU(TorchFunctionMode):
    """While active, ``torch.linspace`` makes real numbers: MONAI asks them for their values, which meta has not."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class SwinUNETR(AnySizeNetwork):
    """MONAI's SwinUNETR: window 7, depths 2, 2, 2, 2, heads 3, 6, 12, 24, one output.

    Args:
        in_channels: C.
        num_classes: N, segmentation heads.
        patch_size: ``(D, H, W)``; any, the network does not depend on it.
        feature_size: F, channels of the first stage; a multiple of 12.
        use_v2: whether each stage begins with a residual block (SwinUNETR v2).
        merging: order of the octants in patch merging: ``all`` of them, as in MONAI from 1.5 on, or ``legacy``. The
            state dict says which, and loading one sets it.

    Raises:
        ValueError: there is no such order, or F is no multiple of 12.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        *,
        feature_size: int = 48,
        use_v2: bool = False,
        merging: Merging = "all",
    ) -> None:
        super().__init__((STRIDE,) * 3, min_cells=2)
        with _LinspaceOnCPU():
            self.network = MonaiSwinUNETR(
                in_channels,
                num_classes,
                feature_size=feature_size,
                use_v2=use_v2,
                downsample=cast(Any, OrderedPatchMerging),  # MONAI takes a class, and says a module
            )
        for module in self.network.modules():
            if "relative_position_index" in module._buffers:
                module._non_persistent_buffers_set.add("relative_position_index")  # computed, not learned
        self.set_merging(merging)

    def set_merging(self, merging: Merging) -> None:
        """Choose the order of the octants.

        Raises:
            ValueError: there is no such order.
        """
        if merging not in OCTANTS:
            raise ValueError(f"merging is {merging!r}; it is {' or '.join(map(repr, get_args(Merging)))}.")
        self.merging = merging
        for module in self.modules():
            if isinstance(module, OrderedPatchMerging):
                module.merging = merging

    def get_extra_state(self) -> Tensor:
        """The order of the octants, for the state dict."""
        return torch.tensor(list(OCTANTS).index(self.merging), device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Set the order of the octants to a state dict's."""
        self.set_merging(list(OCTANTS)[int(state)])

    def logits(self, x: Tensor) -> list[Tensor]:
        """The prediction; there is no deep supervision."""
        return [self.network(x)]
