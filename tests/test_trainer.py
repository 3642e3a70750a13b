"""The trainers on a small preprocessed data set: both stages, the switch, the best epoch, prediction."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants import sizes
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano
from nnunetv2_dinomed3d.trainers.harness.trainer import autocast_dtype
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


def test_one_training_runs_both_stages(trained: nnUNetTrainerDINOMed3D) -> None:
    folder = Path(trained.output_folder)
    assert (folder / "checkpoint_final.pth").is_file()
    assert (folder / "checkpoint_best.pth").is_file()
    assert (folder / STAGE1_BEST).is_file()
    log = next(folder.glob("training_log_*.txt")).read_text()
    assert log.index("Stage 1: ") < log.index("Stage 2 starts from epoch") < log.index("Stage 2: ")
    assert {key: len(values) for key, values in trained.logger.local_logger.my_fantastic_logging.items()} == {
        key: 4 for key in trained.logger.local_logger.my_fantastic_logging
    }, "nnU-Net wants one value per key and epoch"
    assert trained.logger.get_value("lrs", step=None) == pytest.approx([1e-3, 1e-3 * 0.5**0.9] * 2)


def test_stage2_starts_from_the_best_epoch_of_stage1_and_leaves_it_alone(trained: nnUNetTrainerDINOMed3D) -> None:
    best = torch.load(Path(trained.output_folder) / STAGE1_BEST, weights_only=False)["network_weights"]
    now = trained.module.state_dict()
    frozen = [name for name in now if name.startswith("encoder.") and ".lora_" not in name]
    assert len(frozen) > 50
    assert all(torch.equal(best[name], now[name]) for name in frozen)
    assert not torch.equal(best["decoder.seg_layers.weight"], now["decoder.seg_layers.weight"])


@pytest.mark.parametrize("stage", [1, 2])
def test_batches_optimiser_and_loss_of_a_stage(make_trainer: MakeTrainer, stage: Stage) -> None:
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.initialize()
    trainer.begin_stage(stage)
    batch = next(trainer.get_dataloaders()[0])
    patch = trainer.configuration_manager.patch_size
    if stage == 1:
        assert batch["data"].shape == (4, 1, 3, *patch[1:])
        assert batch["target"].shape == (4, 1, 1, *patch[1:])
    else:
        assert batch["data"].shape == (trainer.configuration_manager.batch_size, 1, *patch)
    assert trainer.module(batch["data"]).shape == (len(batch["data"]), 2, *batch["target"].shape[2:])
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.01
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainer.module.parameters() if p.requires_grad}
    assert (trainer.loss.weight_ce, trainer.loss.weight_dice) == (0.2, 0.8)
    assert trainer.loss.dc.batch_dice == (stage == 1 or trainer.configuration_manager.batch_dice)


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_clipped_at_1(make_trainer: MakeTrainer, stage: Stage) -> None:
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.initialize()
    trainer.begin_stage(stage)
    parameters = trainer.optimizer.param_groups[0]["params"]
    trainer._check_gradients()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 7.0)
    trainer.optimizer.step()
    norm = torch.linalg.vector_norm(torch.stack([parameter.grad.norm() for parameter in parameters]))
    assert norm == pytest.approx(1.0, rel=1e-3)


def test_recipe_of_the_paper(make_trainer: MakeTrainer) -> None:
    """DESIGN's table, as a user gets it."""
    for trainer_class in (nnUNetTrainerDINOMed3D, sizes.nnUNetTrainerDINOMed3D_S, sizes.nnUNetTrainerDINOMed3D_L):
        trainer = make_trainer(trainer_class)
        assert trainer.num_epochs == 100
        assert trainer.num_iterations_per_epoch == 250
        assert [trainer.schedule.recipe(stage).epochs for stage in (1, 2)] == [50, 50]
        assert [trainer.schedule.recipe(stage).lr for stage in (1, 2)] == [1e-5, 1e-4]
        assert (trainer.weight_decay, trainer.gradient_clip, trainer.slab_depth, trainer.slab_batch_size) == (
            0.01,
            1,
            3,
            24,
        )


def test_inference_mirrors_as_stage_2_trains(make_trainer: MakeTrainer) -> None:
    """nnU-Net's augmentation set-up also decides inference; stage 1's must not leave its own behind."""
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.initialize()
    stage1 = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert stage1[1] is True, "in-plane augmentation"
    assert stage1[2][0] == 7
    assert np.allclose(stage1[0], (-np.pi / 12, np.pi / 12)), "a ViT knows up from down"
    assert stage1[3] == (2,)
    assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)
    trainer.begin_stage(2)
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (0, 1, 2)


def test_stage_1_alone_is_predicted_as_it_was_trained(make_trainer: MakeTrainer) -> None:
    class Stage1(nnUNetTrainerQuick):
        stages = (1,)

    trainer = make_trainer(Stage1)
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes == (2,)


def test_even_slabs_are_not_mirrored_in_depth(make_trainer: MakeTrainer) -> None:
    class Even(nnUNetTrainerQuick):
        slab_depth = 2

    trainer = make_trainer(Even)
    trainer.initialize()
    axes: dict[Stage, tuple[int, ...]] = {1: (2,), 2: (1, 2)}
    for stage in axes:
        trainer.begin_stage(stage)
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == axes[stage]
        assert trainer.inference_allowed_mirroring_axes == (1, 2)


def test_nnunets_autocast_means_bfloat16_only_while_ours_trains() -> None:
    """Compiled, the backward pass has the dtype of nnU-Net's autocast, which must be the network's."""
    assert torch.get_autocast_dtype("cuda") == torch.float16
    with autocast_dtype("cuda", torch.bfloat16):
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
    assert torch.get_autocast_dtype("cuda") == torch.float16


# ---- the switch ----


class LastStepSkipped(nnUNetTrainerQuick):
    """The gradients of stage 1's last step are not finite."""

    stage1_epochs = stage2_epochs = 1

    def train_step(self, batch: dict) -> dict:
        if self.stage == 1 and len(self._steps.train) == self.iterations_per_epoch - 1:
            loss, self.grad_scaler = self.loss, torch.amp.GradScaler("cpu", init_scale=3e38)
            self.loss = lambda output, target: loss(output, target) * 1e4  # type: ignore[assignment]
            output = super().train_step(batch)
            self.loss, self.grad_scaler = loss, torch.amp.GradScaler("cpu")
            assert self._step_was_skipped
            return output
        output = super().train_step(batch)
        if self.stage == 2:
            assert not self._step_was_skipped
            assert not [p for p in self.module.parameters() if not p.requires_grad and p.grad is not None]
        return output


def test_gradients_of_stage_1_end_with_it(make_trainer: MakeTrainer) -> None:
    """They take memory, and nnU-Net clips by the norm of all: infinite ones would spoil every step of stage 2."""
    trainer = make_trainer(LastStepSkipped)
    trainer.run_training()
    assert trainer.stage == 2


# ---- best epoch ----


def test_best_of_stage2_is_not_judged_by_stage1(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1's Dice, of slabs and higher here, must not inflate stage 2's average or hide its best epoch."""
    trainer = make_trainer(nnUNetTrainerSeeded)
    dice = {0: 0.9, 1: 0.8, 2: 0.2, 3: 0.3}

    def pretend(self, val_outputs) -> None:
        self.logger.log("mean_fg_dice", dice[self.current_epoch], self.current_epoch)
        self.logger.log("dice_per_class_or_region", [dice[self.current_epoch]], self.current_epoch)
        self.logger.log("val_losses", 0.0, self.current_epoch)

    monkeypatch.setattr(nnUNetTrainer, "on_validation_epoch_end", pretend)
    trainer.run_training()
    assert trainer.logger.get_value("ema_fg_dice", step=None) == pytest.approx([0.9, 0.89, 0.2, 0.21])
    assert trainer._best_ema == pytest.approx(0.21)
    folder = Path(trainer.output_folder)
    assert torch.load(folder / "checkpoint_best.pth", weights_only=False)["current_epoch"] == 4
    assert torch.load(folder / STAGE1_BEST, weights_only=False)["current_epoch"] == 1


# ---- prediction ----


@pytest.mark.end_to_end
def test_predictor_and_trainer_agree(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """nnUNetv2_predict builds the network anew; LoRA is merged only in the trainer's validation."""
    trained = make_trainer(nnUNetTrainerQuick)
    trained.run_training()
    trained.perform_actual_validation()
    validation = Path(trained.output_folder) / "validation"
    assert json.loads((validation / "summary.json").read_text())["foreground_mean"]["Dice"] >= 0
    cases = sorted(path.name for path in validation.glob("*.nii.gz"))
    assert cases
    raw = Path(os.environ["nnUNet_raw"]) / "Dataset901_Test" / "imagesTr"

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trained.output_folder_base, use_folds=(0,))
    inputs = [[str(raw / case.replace(".nii.gz", "_0000.nii.gz"))] for case in cases]
    outputs = [str(tmp_path / case) for case in cases]
    predictor.predict_from_files_sequential(inputs, outputs)
    for case in cases:
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(validation / case)))
        predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / case)))
        assert (ours != predicted).mean() < 1e-3, case

    data = torch.randn(1, *trained.configuration_manager.patch_size)
    direct = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    direct.manual_initialization(
        trained.network,
        trained.plans_manager,
        trained.configuration_manager,
        None,
        trained.dataset_json,
        "",
        trained.inference_allowed_mirroring_axes,
    )
    with trained.module.merged_lora():
        merged = direct.predict_sliding_window_return_logits(data)
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    torch.testing.assert_close(predictor.predict_sliding_window_return_logits(data), merged, rtol=1e-2, atol=1e-2)


def test_building_needs_no_weights(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, preprocessed: Path
) -> None:
    """nnUNetv2_predict builds the network on machines that have none."""
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere")
    plans = PlansManager(str(preprocessed / "nnUNetPlans.json"))
    configuration = plans.get_configuration("3d_fullres")
    with torch.device("meta"):
        network = nnUNetTrainerDINOMed3D.build_network_architecture(plans, configuration, 1, 2, False)
    assert network.stage == 2
    assert not network.weights_loaded


def test_a_2d_configuration_is_refused_before_anything_is_written(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'2d' has the patch size.*volumes.*3d_fullres"):
        make_trainer(nnUNetTrainerDINOMed3D_nano, "2d")
    assert not (tmp_path / "results").exists()


def test_a_checkpoint_of_another_networks_trainer_is_refused(make_trainer: MakeTrainer) -> None:
    """nnU-Net's own trainers write such into folders of the same form."""
    trainer = make_trainer(nnUNetTrainerQuick)
    stock = {"network_weights": {"encoder.weight": torch.zeros(1)}, "init_args": {}, "current_epoch": 1, "logging": {}}
    with pytest.raises(ValueError, match="is no checkpoint of a DINO-Med3D training, but of another trainer's"):
        trainer.load_checkpoint(stock)


def test_a_users_trainer_may_set_latest_every_under_its_old_name(make_trainer: MakeTrainer) -> None:
    class Old(nnUNetTrainerQuick):
        latest_every = 3

    assert make_trainer(Old).save_every == 3
