"""The network of DINO-Med3D, in plain PyTorch. Names are imported when they are asked for: timm and peft are slow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_dinomed3d.network_architecture.dinomed3d import DINOMed3D
    from nnunetv2_dinomed3d.network_architecture.options import NetworkOptions
    from nnunetv2_dinomed3d.network_architecture.variants import VARIANTS, Variant, build_dinomed3d

__all__ = ["VARIANTS", "DINOMed3D", "NetworkOptions", "Variant", "build_dinomed3d"]

_MODULES = {"DINOMed3D": "dinomed3d", "NetworkOptions": "options"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'variants')}"), name)
