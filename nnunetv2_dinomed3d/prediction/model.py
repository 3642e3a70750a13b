"""A trained model of nnU-Net, read without running code in its files, and the weights of its folds."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from nnunetv2.inference import predict_from_raw_data as nnunets
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn
from torch._dynamo import OptimizedModule

from nnunetv2_dinomed3d.dataset_json import read_dataset_json
from nnunetv2_dinomed3d.nnunet_files import folds_in
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.trainer_names import BASELINE, DINOMED3D
from nnunetv2_dinomed3d.weights import read_checkpoint

if TYPE_CHECKING:
    from nnunetv2_dinomed3d.network_architecture import DINOMed3D


def require_checkpoints(model: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Refuse a model that does not exist, or not with these folds.

    Raises:
        ValueError: so it is; the message says which folds there are.
    """
    if not model.is_dir():
        raise ValueError(f"{model} does not exist: train the model, or name another one.")
    files = [model / f"fold_{fold}" / checkpoint for fold in folds]
    missing = [file for file in files if not file.is_file()]
    if missing:
        there = [fold for fold in folds_in(model) if (model / f"fold_{fold}" / checkpoint).is_file()]
        folds_there = f"There are the folds {' '.join(there)}: name them with -f" if there else "No fold has one"
        raise ValueError(f"{missing[0]} does not exist. {folds_there}, or name another checkpoint with -chk.")
    for name in ("dataset.json", "plans.json"):
        if not (model / name).is_file():
            raise ValueError(f"{model / name} does not exist. nnU-Net's training writes it beside the folds.")


def make_predictor(
    device: str, *, step_size: float = 0.5, mirror: bool = True, sums_on_device: bool = True, verbose: bool = False
) -> nnunets.nnUNetPredictor:
    """nnU-Net's predictor, still without a model.

    Args:
        device: ``cuda``, ``cpu`` or ``mps``.
        step_size: distance of windows, in patches.
        mirror: whether mirrored windows are predicted too.
        sums_on_device: whether images and sums of logits are on the GPU.
        verbose: whether nnU-Net says what it does.

    Raises:
        ValueError: there is no such device here.
    """
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device) is False:
        raise ValueError(f"-device {device}: PyTorch sees none here. Give -device cpu, or check the driver.")
    if device == "cuda":
        torch.set_num_threads(1)  # as nnU-Net: readers and writers have the others
    with redirect_stdout(StringIO()):  # on a CPU nnU-Net prints which of its options it switches off
        return nnunets.nnUNetPredictor(
            tile_step_size=step_size,
            use_mirroring=mirror,
            perform_everything_on_device=sums_on_device and device == "cuda",
            device=torch.device(device),
            verbose=verbose,
            verbose_preprocessing=verbose,
            allow_tqdm=False,
        )


def load_model(predictor: nnunets.nnUNetPredictor, model: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Fill nnU-Net's predictor with a model; the weights of its folds stay on the disk until they are used.

    Raises:
        ValueError: a file is missing or damaged, or the files do not belong together.
    """
    require_checkpoints(model, folds, checkpoint)
    read_dataset_json(model / "dataset.json")
    contents = {str(model / f"fold_{fold}" / checkpoint): None for fold in folds}

    def read(path: str, **_: Any) -> dict[str, Any]:
        assert path in contents, path
        return read_checkpoint(Path(path))

    try:
        with (
            patch.object(torch, "load", read),  # nnU-Net would run code that is in the file
            patch.object(nnunets, "recursive_find_trainer_class_by_name", _find_trainer),
            redirect_stdout(StringIO()),
        ):
            predictor.initialize_from_trained_model_folder(str(model), list(folds), checkpoint)
    except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:  # nnU-Net does not check them
        reason = printable(f"{type(error).__name__}: {error}")
        raise ValueError(
            f"The checkpoints, plans.json and dataset.json of {model} do not fit together ({reason})."
        ) from error


def _find_trainer(name: str) -> type:
    """The trainer's class. Our own, whose packages take seconds to import, are not for models of others."""
    if not name.startswith((DINOMED3D, BASELINE)):
        with suppress(Exception), redirect_stdout(StringIO()):  # nnU-Net prints where it looks
            return recursive_find_trainer_class_by_name(name)
    from nnunetv2_dinomed3d.trainers.registry import find_trainer

    return find_trainer(name)  # which also says what is wrong


def _ours(network: nn.Module) -> "DINOMed3D | None":
    """The network if it is DINO-Med3D's, whose module is imported then."""
    module = sys.modules.get("nnunetv2_dinomed3d.network_architecture.dinomed3d")
    return network if module is not None and isinstance(network, module.DINOMed3D) else None


class Folds:
    """The network on its device, with the weights of one fold after another and LoRA merged into them.

    Args:
        predictor: of nnU-Net, filled by `load_model`.

    Attributes:
        reuses_slabs: whether the order of the windows matters.
        takes_batches: whether several windows go at a time; a compiled network would be compiled for each number.
    """

    def __init__(self, predictor: nnunets.nnUNetPredictor) -> None:
        self.weights: list[dict[str, torch.Tensor]] = predictor.list_of_parameters
        self.network: nn.Module = predictor.network.to(predictor.device).eval()
        self._ours = _ours(self.network)
        self.reuses_slabs = self._ours is not None
        self.takes_batches = not isinstance(self.network, OptimizedModule)
        self._loaded = 0  # by nnU-Net
        self._merged = ExitStack()
        self._merge()

    def __len__(self) -> int:
        return len(self.weights)

    def _merge(self) -> None:
        if self._ours is not None:
            with torch.no_grad():
                self._merged.enter_context(self._ours.merged_lora())

    @contextmanager
    def network_of(self, fold: int, cache_bytes: int) -> Iterator[nn.Module]:
        """The network with the fold's weights for the windows of a case.

        Args:
            fold: its place among the folds.
            cache_bytes: most bytes of slabs' feature maps that our network keeps while it is open.
        """
        if fold != self._loaded:
            self._merged.close()
            plain = self.network._orig_mod if isinstance(self.network, OptimizedModule) else self.network
            plain.load_state_dict(self.weights[fold])
            self._loaded = fold
            self._merge()
        with ExitStack() as stack:
            if self._ours is not None:
                stack.enter_context(self._ours.cached_slab_features(cache_bytes))
            yield self.network
