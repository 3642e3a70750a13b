"""Weights that a training starts from: DINOv3's, random ones, or stage 1 of another training."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D
from nnunetv2_dinomed3d.nnunet_files import read_splits
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE
from nnunetv2_dinomed3d.text import join_first
from nnunetv2_dinomed3d.weights import read_pretrained
from nnunetv2_dinomed3d.weights.stage1 import Stage1Checkpoint, read_stage1_checkpoint


@dataclass(frozen=True)
class Start:
    """The start of a training.

    Attributes:
        origin: of the weights, for the record of the training.
        message: for the log.
        stage1: the checkpoint that stage 2 starts from; None where stage 1 is trained or there is none.
    """

    origin: str
    message: str
    stage1: Stage1Checkpoint | None = None

    def stage1_record(self) -> dict[str, Any] | None:
        """Record of a stage 1 that was not trained here, for the checkpoints."""
        return {"epochs": 0, "file": self.stage1.file, "sha256": self.stage1.sha256} if self.stage1 else None


def start_from_stage1(module: DINOMed3D, file: Path, stages: Collection[int]) -> Start:
    """Fill ICE and ViT with those of another training's stage 1.

    Args:
        module: the network.
        file: a checkpoint of stage 1.
        stages: of the trainer.

    Raises:
        ValueError: the file does not fit, or such a start does not go with the trainer.
    """
    require_one_start(stages, module.weights_loaded)
    checkpoint = read_stage1_checkpoint(file)
    module.start_from_stage1(checkpoint.network_weights, checkpoint.stage1_lora)
    origin = f"stage 1 of {checkpoint.file}, SHA-256 {checkpoint.sha256}"
    return Start(origin, f"Stage 1 is skipped. {checkpoint.report()}", checkpoint)


def start_from_pretrained(module: DINOMed3D, variant: str, trainer: str) -> Start:
    """Fill ICE and ViT with DINOv3's weights, as ``DINOMED3D_WEIGHTS`` says.

    Args:
        module: the network.
        variant: its size.
        trainer: name of the trainer.

    Raises:
        ValueError: the weights cannot be had or do not fit.
    """
    name = VARIANTS[variant].weights_name
    if name is None:
        return Start("random weights", f"{trainer} starts from random weights: there are none of its size.")
    weights = read_pretrained(name, module.pretrained_shapes())
    if weights is None:
        return Start("random weights", "DINOMED3D_WEIGHTS=random: training starts from random weights, as asked for.")
    module.load_pretrained(weights.tensors)
    return Start(weights.report(), weights.report())


def require_one_start(stages: Collection[int], weights_loaded: bool) -> None:
    """Refuse a training that would have two beginnings, or none.

    Args:
        stages: of the trainer.
        weights_loaded: whether ``-pretrained_weights`` filled the network.

    Raises:
        ValueError: ``DINOMED3D_STAGE1`` does not go with the trainer or with ``-pretrained_weights``.
    """
    if tuple(stages) != (1, 2):
        raise ValueError(
            f"{STAGE1_VARIABLE} is set, which replaces stage 1 of a training of both stages, but this trainer has only "
            f"stage {', '.join(map(str, stages))}. Unset it, or choose another -tr."
        )
    if weights_loaded:
        raise ValueError(
            f"{STAGE1_VARIABLE} is set and -pretrained_weights was given: both fill the network. Use one of them."
        )


def leaked_cases(
    checkpoint: Stage1Checkpoint, dataset: str, splits: Sequence[Mapping[str, Sequence[str]]], cases: Collection[str]
) -> list[str]:
    """This fold's validation cases that the checkpoint was trained on.

    Args:
        checkpoint: of the other training.
        dataset: this training's data set, by nnU-Net's name.
        splits: nnU-Net's, of this data set.
        cases: this fold's validation cases.
    """
    if checkpoint.dataset != dataset:
        return []
    if checkpoint.fold == "all":
        return sorted(cases)
    if not isinstance(checkpoint.fold, int) or checkpoint.fold >= len(splits):
        return []  # nnU-Net made a random split of its own
    return sorted(set(cases) & set(splits[checkpoint.fold]["train"]))


def leak_warning(
    checkpoint: Stage1Checkpoint, dataset: str, splits: Path, fold: int, cases: Collection[str]
) -> str | None:
    """A warning that stage 1 has seen this fold's validation cases; None where it has not.

    Args:
        checkpoint: of stage 1.
        dataset: this training's data set, by nnU-Net's name.
        splits: nnU-Net's file of folds.
        fold: that is trained now.
        cases: its validation cases.
    """
    leaked = leaked_cases(checkpoint, dataset, read_splits(splits), cases)
    if not leaked:
        return None
    return (
        f"{checkpoint.file} was trained on {len(leaked)} of the {len(cases)} validation cases of fold {fold} "
        f"({join_first(leaked)}): the validation of this training will look "
        "better than the model is. Use the stage 1 of the same fold."
    )
