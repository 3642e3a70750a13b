"""State dicts of the baselines' official code, under the names of our networks. A module per network renames."""

from collections.abc import Callable, Mapping
from importlib import import_module

from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.state_dict import misfit, shapes_of

RENAMED_IN = {
    "NNFormer": "nnformer",
    "SwinUNETR": "swin_unetr",
    "UMamba": "umamba",
    "DinoUNet": "dino_unet",
}
"""Class of the network -> module here, whose ``renamed`` takes an official state dict and returns ours."""

Renamed = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def load_official(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill a baseline with a state dict of its official code.

    Tensors are renamed, never changed. Second names of the same tensor and buffers that are computed anew are dropped
    by name.

    Args:
        network: of `network_architecture.baselines.build_baseline`.
        state_dict: the official code's ``state_dict()`` of the same configuration.

    Raises:
        ValueError: the network is no baseline; a tensor is missing, left over or of another shape.
    """
    module = RENAMED_IN.get(type(network).__name__)
    if module is None:
        raise ValueError(f"{type(network).__name__} is no baseline; these are {', '.join(RENAMED_IN)}.")
    renamed: Renamed = import_module(f"{__name__}.{module}").renamed
    state = renamed(state_dict)
    own = network.state_dict()
    options = {name: own.pop(name) for name in list(own) if name.endswith("_extra_state")}  # a setting, no weight
    if wrong := misfit(shapes_of(state), shapes_of(own)):
        raise ValueError(f"This is no state dict of the official {type(network).__name__} as configured here: {wrong}")
    network.load_state_dict({**state, **options})
