"""The network of DINO-Med3D, in plain PyTorch."""

from nnunetv2_dinomed3d.network_architecture.dinomed3d import VARIANTS, DINOMed3D, build_dinomed3d

__all__ = ["VARIANTS", "DINOMed3D", "build_dinomed3d"]
