"""DINO-Med3D for nnU-Net v2. The network's names are imported when they are asked for: PyTorch is slow to import."""

from typing import TYPE_CHECKING, Any

from nnunetv2_dinomed3d import moved

if TYPE_CHECKING:
    from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, NetworkOptions, build_dinomed3d

__version__ = "0.2.0"

moved.install()

__all__ = ["VARIANTS", "DINOMed3D", "NetworkOptions", "__version__", "build_dinomed3d"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunetv2_dinomed3d import network_architecture

    return getattr(network_architecture, name)
