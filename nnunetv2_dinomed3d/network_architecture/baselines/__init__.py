"""Networks of other papers, those of DINO-Med3D's Table 1, in plain PyTorch."""

from nnunetv2_dinomed3d.network_architecture.baselines.factory import (
    BASELINES,
    Baseline,
    MissingPackageError,
    build_baseline,
)

__all__ = ["BASELINES", "Baseline", "MissingPackageError", "build_baseline"]
