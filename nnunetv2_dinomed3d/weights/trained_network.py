"""The weights of a training's checkpoint, for the network that they were trained in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.state_dict import misfit, shapes_of
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.weights.files import shortened


def require_finite(name: str, tensor: Tensor) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        ValueError: so it is.
    """
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: that training had failed. Name an earlier checkpoint of it.")


def load_trained(network: nn.Module, state: Mapping[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """Load all weights of a checkpoint into a network on the CPU; batch norm's counters stay whole numbers.

    Args:
        network: in float32.
        state: the checkpoint's.
        checkpoint: its file, for errors.

    Returns:
        The weights, in float32.

    Raises:
        ValueError: they do not fit, or hold NaN or infinity.
    """
    own = network.state_dict()
    weights = {}
    for name, tensor in state.items():
        if name in own and tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{checkpoint}: {name} holds {tensor.dtype}, where the network has {own[name].dtype}.")
        require_finite(f"{checkpoint}: {name}", tensor)
        weights[name] = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = misfit(shapes_of(state), shapes_of(own)) or shortened(error)
        raise ValueError(
            f"{checkpoint} does not fit its trainer, plans.json and dataset.json ({printable(reason)}). Was one of "
            "them changed?"
        ) from error
    return weights


def mirroring_axes(content: Mapping[str, Any], dimensions: int, checkpoint: Path) -> tuple[int, ...] | None:
    """The spatial axes along which nnU-Net mirrors windows when it predicts; None for none.

    Args:
        content: of the checkpoint.
        dimensions: of the patch: 2 or 3.
        checkpoint: its file, for errors.

    Raises:
        ValueError: they are no axes of the patch.
    """
    axes = content.get("inference_allowed_mirroring_axes")
    if axes is None:
        return None
    if not isinstance(axes, tuple | list) or not set(map(repr, axes)) <= set(map(str, range(dimensions))):
        raise ValueError(
            f"{checkpoint} has the mirroring axes {printable(axes)}. The axes of its patch are 0 to {dimensions - 1}."
        )
    return tuple(axes)
