"""Starting stage 2 from the stage 1 of another training: when that is refused, and when it deserves a warning."""

from collections.abc import Collection, Mapping, Sequence

from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE
from nnunetv2_dinomed3d.weights.stage1 import Stage1Checkpoint


def require_one_start(stages: Collection[int], has_weights: bool) -> None:
    """Refuse a training that would have two beginnings, or none.

    Args:
        stages: of the trainer.
        has_weights: whether ``-pretrained_weights`` filled the network.

    Raises:
        ValueError: ``DINOMED3D_STAGE1`` does not go with the trainer or with ``-pretrained_weights``.
    """
    if tuple(stages) != (1, 2):
        raise ValueError(
            f"{STAGE1_VARIABLE} is set, which replaces stage 1 of a training of both stages, but this trainer has only "
            f"stage {', '.join(map(str, stages))}. Unset it, or choose another -tr."
        )
    if has_weights:
        raise ValueError(
            f"{STAGE1_VARIABLE} is set and -pretrained_weights was given: both fill the network. Use one of them."
        )


def leaked_cases(
    checkpoint: Stage1Checkpoint, dataset: str, splits: Sequence[Mapping[str, Sequence[str]]], cases: Collection[str]
) -> list[str]:
    """Those of this fold's validation cases that the checkpoint was trained on.

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
