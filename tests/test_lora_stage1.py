"""LoRA in stage 1: what is trained, how it is folded into the ViT at the switch, and its checkpoints."""

import copy
import os
from collections.abc import Callable
from os.path import dirname, join
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_dinomed3d.look import case_figure as look
from nnunetv2_dinomed3d.look.features import encoder_features
from nnunetv2_dinomed3d.look.model import load_model
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import VIT, Stage, is_lora, stage_of
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from nnunetv2_dinomed3d.weights.files import read_tensors
from tests.command_line import NANO
from tests.look_models import CHECKPOINT, case_of, write_model
from tests.networks import nano, with_trained_lora
from tests.trainers.quick_trainers import nnUNetTrainerSeeded, nnUNetTrainerSeededLoRAStage1

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


class AlsoK5(nnUNetTrainerSeededLoRAStage1):
    slab_depth = 5


def in_stage1(lora_on_ice: bool = False) -> DINOMed3D:
    network = nano(stage1_lora=True, lora_on_ice=lora_on_ice)
    network.set_stage(1)
    return network


def vit_without_lora(network: DINOMed3D) -> dict[str, torch.Tensor]:
    return {n: w.clone() for n, w in network.state_dict().items() if n.startswith(VIT) and not is_lora(n)}


# ---- the network ----


@pytest.mark.parametrize("lora_on_ice", [False, True])
def test_stage_1_trains_ice_the_head_and_the_vits_lora(lora_on_ice: bool) -> None:
    network = in_stage1(lora_on_ice=lora_on_ice).train()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    ice = "encoder.ice.conv.base_layer." if lora_on_ice else "encoder.ice.conv."
    others = {name for name in trained if not (name.startswith(VIT) and is_lora(name))}
    assert others == {f"{ice}weight", f"{ice}bias", "proxy_head.seg_layers.weight", "proxy_head.seg_layers.bias"}
    assert len(trained - others) == 2 * len(nano().encoder.lora_layers())
    encoder = network.encoder
    assert not any(block.training for block in encoder.vit.blocks)
    assert encoder.vit.rope.training, "stage 1's augmentation of positions is the same"
    assert not network.eval().encoder.vit.rope.training


def test_folding_changes_nothing_that_is_predicted_and_lora_starts_anew() -> None:
    network = with_trained_lora(in_stage1()).eval()
    x = torch.randn(1, 1, 4, 32, 32)
    plain, before = network(x), vit_without_lora(network)
    network.end_stage1()
    state = network.state_dict()
    assert not state[next(name for name in state if "qkv.lora_B" in name)].any()
    torch.testing.assert_close(network(x), plain, rtol=1e-4, atol=1e-5)
    after = vit_without_lora(network)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.endswith("base_layer.weight")}
    network.set_stage(2)
    with_trained_lora(network).end_stage1()
    assert all(torch.equal(value, after[name]) for name, value in vit_without_lora(network).items()), "stage 2's stays"


def test_ordinary_networks_fold_nothing() -> None:
    network = with_trained_lora(nano())
    network.set_stage(1)
    before = copy.deepcopy(network.state_dict())
    network.end_stage1()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("target_option", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
def test_another_network_starts_from_it(target_option: bool, stage: int) -> None:
    """Of stage 1 with its LoRA, of stage 2 without: there it is stage 2's. Whichever stage 1 the target has."""
    source, target = with_trained_lora(in_stage1()), nano(stage1_lora=target_option)
    source.set_stage(1 if stage == 1 else 2)
    state = copy.deepcopy(source.state_dict())
    target.start_from_stage1(state, stage1_lora=True)
    if stage == 1:
        source.end_stage1()
    expected = vit_without_lora(source)
    assert all(torch.equal(value, expected[name]) for name, value in vit_without_lora(target).items())
    assert not any(value.any() for name, value in target.state_dict().items() if "lora_B" in name)


# ---- the trainer ----


@pytest.fixture
def lora_trained(make_trainer: MakeTrainer) -> nnUNetTrainerDINOMed3D:
    trainer = make_trainer(nnUNetTrainerSeededLoRAStage1)
    trainer.run_training()
    return trainer


def read(trainer: nnUNetTrainerDINOMed3D, name: str) -> dict:
    return torch.load(join(trainer.output_folder, name), weights_only=False)


def test_stage_2_starts_from_the_folded_vit_and_resumes_as_if_not_stopped(
    lora_trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer
) -> None:
    """Stopped at the switch, where the new LoRA is drawn."""
    best, final = read(lora_trained, STAGE1_BEST), lora_trained.module.state_dict()
    folded = nano((4, 32, 32), num_classes=2, stage1_lora=True)
    folded.load_state_dict(best["network_weights"])
    assert any(value.any() for name, value in best["network_weights"].items() if "lora_B" in name)
    folded.end_stage1()
    assert all(torch.equal(final[name], value) for name, value in vit_without_lora(folded).items())
    log = Path(lora_trained.log_file).read_text()
    assert "Stage 2 starts from epoch" in log

    stopped = make_trainer(nnUNetTrainerSeededLoRAStage1)
    stopped.stop_before = 2
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(nnUNetTrainerSeededLoRAStage1)
    resumed.load_checkpoint(join(resumed.output_folder, "checkpoint_latest.pth"))
    assert resumed.stage == 1
    resumed.run_training()
    assert all(torch.equal(value, final[name]) for name, value in resumed.module.state_dict().items())


def test_its_stage_1_predicts(lora_trained: nnUNetTrainerDINOMed3D) -> None:
    """nnU-Net builds the network in stage 2 and loads the file: LoRA has to be on."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(dirname(lora_trained.output_folder), (0,), STAGE1_BEST)
    weights = read(lora_trained, STAGE1_BEST)["network_weights"]
    assert stage_of(weights) == predictor.network.stage == 1
    network = predictor.network.eval()
    x = torch.randn(1, 1, 5, 32, 32)
    with torch.no_grad():
        found = network(x)
        network.end_stage1()
        torch.testing.assert_close(network(x), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stage", "lora"), [(1, [True]), (2, [False, True])])
def test_look_draws_what_stage_1_left(
    stage: Stage, lora: list[bool], make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stage 1's checkpoint with its LoRA; in stage 2's that is in the weights."""
    model = load_model(write_model(make_trainer, trainer_class(f"{NANO}_loraStage1"), stage) / CHECKPOINT)
    seen: list[bool] = []

    def noted(*args: Any) -> list[list[torch.Tensor]]:
        seen.append(args[-1])
        return encoder_features(*args)

    monkeypatch.setattr(look, "encoder_features", noted)
    look.case_figure(model, case_of(model), None)
    assert seen == lora


def test_it_is_taken_by_dinomed3d_stage1_and_no_2d_vit(
    lora_trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(lora_trained.output_folder, STAGE1_BEST)
    with pytest.raises(ValueError, match=r"trained LoRA in the ViT's place.*DINOMED3D_STAGE1=FILE"):
        read_tensors(path)
    read_tensors(path.with_name("checkpoint_final.pth"))
    monkeypatch.setenv("DINOMED3D_STAGE1", os.fspath(path))
    trainer = make_trainer(nnUNetTrainerSeeded)  # one with an ordinary stage 1
    trainer.initialize()
    trainer.load_start_weights()
    expected = lora_trained.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in vit_without_lora(trainer.module).items())
    other = make_trainer(AlsoK5)
    other.initialize()
    with pytest.raises(ValueError, match="slab depth K"):
        other.load_start_weights()
