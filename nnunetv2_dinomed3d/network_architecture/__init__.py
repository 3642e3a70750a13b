"""The network of DINO-Med3D, in plain PyTorch."""

from nnunetv2_dinomed3d.network_architecture.dinomed3d import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.options import NetworkOptions
from nnunetv2_dinomed3d.network_architecture.variants import VARIANTS, Variant, build_dinomed3d

__all__ = ["VARIANTS", "DINOMed3D", "NetworkOptions", "Variant", "build_dinomed3d"]
