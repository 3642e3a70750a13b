"""Models to look at: trainers of the small data set as they are before their first epoch."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.look.case import Case, load_case
from nnunetv2_dinomed3d.look.model import LoadedModel
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from tests.conftest import DATASET

CHECKPOINT = Path("fold_0", "checkpoint_final.pth")


def stir_lora(network: torch.nn.Module) -> None:
    """LoRA that does something, as after a training."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def write_model(
    make_trainer: Callable[..., nnUNetTrainer], trainer_class: type[nnUNetTrainer], stage: Stage = 2
) -> Path:
    """Write the model folder of a trainer; it has fold 0."""
    trainer = make_trainer(trainer_class)
    torch.manual_seed(0)
    trainer.initialize()
    if isinstance(trainer, nnUNetTrainerDINOMed3D):
        trainer.begin_stage(stage)
        stir_lora(trainer.module)
    folder = Path(trainer.output_folder)
    for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
        (folder.parent / f"{name}.json").write_text(json.dumps(content))
    trainer.save_checkpoint(str(folder.parent / CHECKPOINT))
    return folder.parent


def case_of(model: LoadedModel, case: str = "case_0") -> Case:
    """A case of the small data set, preprocessed for a model."""
    predictor = model.predictor
    return load_case(case, DATASET, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
