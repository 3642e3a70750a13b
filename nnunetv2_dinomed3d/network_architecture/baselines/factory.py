"""The baselines by name, with the configurations of the paper's Table 1, and the factory that builds one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork
from nnunetv2_dinomed3d.trainer_names import BASELINE_PACKAGES


class MissingPackageError(ImportError):
    """A package of the extra ``[baselines]`` is not installed."""


@dataclass(frozen=True)
class Baseline:
    """One row of Table 1.

    Attributes:
        module, class_name: where the network is, in this package.
        configuration: its keyword arguments beside channels, classes and patch size.
        axes: spatial axes that it may have.
    """

    module: str
    class_name: str
    configuration: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[int, ...] = (3,)


BASELINES: Mapping[str, Baseline] = {
    "nnFormer": Baseline("nnformer", "NNFormer"),
    "SwinUNETR": Baseline("swin_unetr", "SwinUNETR", {"feature_size": 48}),
    "UMambaBot": Baseline("umamba", "UMamba", {"mamba": "bottleneck"}, axes=(2, 3)),
    "UMambaEnc": Baseline("umamba", "UMamba", {"mamba": "encoder"}, axes=(2, 3)),
    "VoCo_B": Baseline("swin_unetr", "SwinUNETR", {"feature_size": 48, "use_v2": True, "merging": "legacy"}),
    "VoCo_L": Baseline("swin_unetr", "SwinUNETR", {"feature_size": 96, "use_v2": True, "merging": "legacy"}),
    "VoCo_L_v1": Baseline("swin_unetr", "SwinUNETR", {"feature_size": 96, "use_v2": False, "merging": "legacy"}),
    "DinoUNet_S": Baseline("dino_unet", "DinoUNet", {"backbone": "small"}, axes=(2,)),
    "DinoUNet_B": Baseline("dino_unet", "DinoUNet", {"backbone": "base"}, axes=(2,)),
    "DinoUNet_L": Baseline("dino_unet", "DinoUNet", {"backbone": "large"}, axes=(2,)),
}


def build_baseline(
    name: str, in_channels: int, num_classes: int, patch_size: Sequence[int], **configuration: Any
) -> AnySizeNetwork:
    """A network of Table 1 with random weights.

    Args:
        name: one of `BASELINES`: the trainer's name without ``nnUNetTrainerBaseline_``.
        in_channels: C.
        num_classes: N, segmentation heads.
        patch_size: ``(D, H, W)``, or ``(H, W)`` for a 2D network. Any size; it is padded inside.
        configuration: keyword arguments of the network's class, in place of the row's.

    Raises:
        ValueError: there is no such network, or it has not that many axes.
        MissingPackageError: it needs a package of the extra ``[baselines]``.
    """
    if name not in BASELINES:
        raise ValueError(f"There is no baseline {name!r}; there are {', '.join(BASELINES)}.")
    row = BASELINES[name]
    if len(patch_size) not in row.axes:
        axes = " or ".join(f"{count}D" for count in row.axes)
        raise ValueError(f"{name} is a network for {axes} patches, and the patch is {tuple(patch_size)}.")
    network = getattr(_module(name, row), row.class_name)
    built: AnySizeNetwork = network(
        in_channels, num_classes, tuple(patch_size), **{**row.configuration, **configuration}
    )
    return built


def _module(name: str, row: Baseline) -> Any:
    try:
        return import_module(f"nnunetv2_dinomed3d.network_architecture.baselines.{row.module}")
    except ModuleNotFoundError as error:
        if error.name not in BASELINE_PACKAGES:
            raise
        raise MissingPackageError(
            f"{name} needs {error.name}, which is not installed: pip install 'nnunetv2_dinomed3d[baselines]'"
        ) from error
