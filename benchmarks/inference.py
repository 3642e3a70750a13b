"""Prediction of a whole case by nnU-Net's own predictor."""

import sys
from contextlib import redirect_stdout
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks.measure import Call
from benchmarks.networks import CLASSES, Size
from nnunetv2_dinomed3d.network_architecture import DINOMed3D


def case_prediction(network: DINOMed3D, patch: Size, case: torch.Tensor, device: str = "cpu") -> Call:
    """Sliding windows at nnU-Net's overlap of half a patch, without mirroring.

    Args:
        network: in stage 2.
        patch: of the windows.
        case: ``(C, D, H, W)``.
        device: where the network is.
    """
    plans: dict[str, Any] = {"configurations": {"3d_fullres": {"patch_size": list(patch), "architecture": {}}}}
    manager = PlansManager(plans)
    dataset = {"labels": {f"label_{i}" if i else "background": i for i in range(CLASSES)}}
    configuration = manager.get_configuration("3d_fullres")
    with redirect_stdout(sys.stderr):  # nnU-Net talks
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
        predictor.manual_initialization(network, manager, configuration, None, dataset, "", None)

    def predict() -> None:
        logits = predictor.predict_sliding_window_return_logits(case)
        assert logits.shape == (CLASSES, *case.shape[1:])

    return predict
