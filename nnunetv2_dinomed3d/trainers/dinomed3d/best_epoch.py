"""The best epoch of each stage. Stage 2 starts from that of stage 1 (DINO-Med3D, section 3.2)."""

from pathlib import Path

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage, stage_of
from nnunetv2_dinomed3d.trainers.harness.best_epoch import BestEpoch
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import LATEST
from nnunetv2_dinomed3d.trainers.harness.identity import Identity

STAGE1_BEST = "checkpoint_best_stage1.pth"
"""A name of its own, so that ``checkpoint_best.pth`` is stage 2's."""


def best_epoch_of_stage(path: Path, identity: Identity, stage: Stage) -> BestEpoch:
    """The checkpoint of a stage's best epoch.

    Without that of a stage 1 that stage 2 follows, training stops at once, and not at the switch.

    Args:
        path: of the file.
        identity: of the training.
        stage: that is trained now.
    """
    remedy = (
        f"{path} is missing, damaged or of another training. It holds the best epoch of stage 1, where stage 2 starts. "
        f"Put it back, or take the last saved epoch instead (in that folder: cp {LATEST} {STAGE1_BEST}) and go on with "
        "--c, or train from the beginning (without --c)."
    )
    return BestEpoch(
        path,
        identity,
        lambda checkpoint: stage_of(checkpoint["network_weights"]) == stage,
        remedy if path.name == STAGE1_BEST else None,
    )
