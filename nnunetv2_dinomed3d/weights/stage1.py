"""Stage 1 of another training, which ``DINOMED3D_STAGE1`` names: a checkpoint of this plugin, or a converted one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import STAGE_KEY
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE
from nnunetv2_dinomed3d.weights.check import as_float32
from nnunetv2_dinomed3d.weights.files import read_checkpoint, sha256

_FIX = (
    f"Set {STAGE1_VARIABLE} to a checkpoint of a DINO-Med3D training (checkpoint_best_stage1.pth) or to what "
    "`dinomed3d convert` made of the authors' stage1_best.pth, or unset it to train stage 1."
)


@dataclass(frozen=True)
class Stage1Checkpoint:
    """A checkpoint with the ICE and ViT that stage 2 starts from.

    Attributes:
        network_weights: its network's state dict.
        file: name of the file, without its folder.
        sha256: of the whole file.
        trainer: the one that wrote it.
        dataset: nnU-Net's name of the data set that it was trained on; None if the file does not tell.
        fold: the one that it was trained on, or "all"; None if the file does not tell.
        stage1_lora: whether its stage 1 trained LoRA in the ViT's place, see `NetworkOptions`.
    """

    network_weights: Mapping[str, Tensor]
    file: str
    sha256: str
    trainer: str
    dataset: str | None
    fold: int | str | None
    stage1_lora: bool

    def report(self) -> str:
        """One line for the training log."""
        training = f"data set {self.dataset}, fold {self.fold}" if self.dataset else "data set and fold unknown"
        return f"Stage 2 starts from {self.file} ({self.trainer}, {training}, SHA-256 {self.sha256})."


def stage1_setting() -> Path | None:
    """The file that ``DINOMED3D_STAGE1`` names; None if it is not set.

    Raises:
        ValueError: there is no such file.
    """
    value = os.environ.get(STAGE1_VARIABLE, "").strip()
    if not value:
        return None
    path = Path(os.path.expanduser(value))
    if not os.path.isfile(path):
        raise ValueError(f"{STAGE1_VARIABLE} is {value!r}, which is no file. {_FIX}")
    return path


def read_stage1_checkpoint(path: Path) -> Stage1Checkpoint:
    """Read a checkpoint that stage 2 can start from; no code in it is run.

    Raises:
        ValueError: the file is damaged, no checkpoint of this plugin, or holds something other than finite numbers.
    """
    try:
        checkpoint = read_checkpoint(path, _FIX)
        state = checkpoint["network_weights"]
        weights = as_float32({name: tensor for name, tensor in state.items() if name != STAGE_KEY})
    except ValueError as error:
        raise ValueError(f"{STAGE1_VARIABLE}: {error}") from error
    init_args = checkpoint["init_args"]
    plans = init_args.get("plans")
    dataset = plans.get("dataset_name") if isinstance(plans, dict) else None
    fold = init_args.get("fold")
    return Stage1Checkpoint(
        network_weights={**state, **weights},
        file=path.name,
        sha256=sha256(path),
        trainer=checkpoint["trainer_name"],
        dataset=dataset if isinstance(dataset, str) else None,
        fold=fold if isinstance(fold, int | str) else None,
        stage1_lora=init_args.get("stage1_lora") is True,
    )
