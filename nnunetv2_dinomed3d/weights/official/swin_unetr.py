"""MONAI's SwinUNETR, of which VoCo's network is one: names of its state dict."""

from collections.abc import Mapping

from torch import Tensor

COMPUTED = ".relative_position_index"
"""Ending of a buffer that follows from the window's size."""


def renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of our network, which holds MONAI's as ``network``."""
    return {f"network.{name}": tensor for name, tensor in state_dict.items() if not name.endswith(COMPUTED)}
