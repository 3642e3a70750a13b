"""The trainers of the paper's tables: what their names mean, and that each trains, saves and predicts."""

import inspect
import json
from collections.abc import Callable
from os.path import dirname, join
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Recipe, Schedule
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants import released
from nnunetv2_dinomed3d.trainers.harness.whole_cases import WholeLoader
from nnunetv2_dinomed3d.trainers.registry import BASE, SUFFIX_GROUPS, UnknownTrainerError, trainer_class

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]

SINGLE = [BASE, *(trainer.__name__ for trainers in SUFFIX_GROUPS.values() for trainer in trainers)]
COMBINED = [f"{BASE}_S_K1", f"{BASE}_L_250epochs", f"{BASE}_nano_K5_noStage1_released_20epochs"]


@pytest.fixture
def quick(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type[nnUNetTrainerDINOMed3D]]:
    """The class of that name as nnU-Net finds it; nano's network, an epoch of two iterations a stage."""

    def shorten(name: str) -> type[nnUNetTrainerDINOMed3D]:
        found = recursive_find_trainer_class_by_name(name)
        quickly = {"variant": "nano", "stage1_epochs": 1, "stage2_epochs": 1, "iterations_per_epoch": 1}
        for attribute, value in {**quickly, "val_iterations_per_epoch": 1, "slab_batch_size": 2}.items():
            monkeypatch.setattr(found, attribute, value)
        if hasattr(found, "fixed_patch"):
            plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
            patch_size = tuple(plans["configurations"]["3d_fullres"]["patch_size"])
            monkeypatch.setattr(found, "fixed_patch", patch_size)
            monkeypatch.setattr(found, "slab_batch_size", 24)  # an epoch has as many steps as it takes
        return found

    return shorten


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", SINGLE + COMBINED)
def test_trains_saves_and_predicts(
    name: str, quick: Callable[[str], type[nnUNetTrainerDINOMed3D]], make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(quick(name))
    before = {key: value.clone() for key, value in _initialised(trainer).state_dict().items()}
    trainer.run_training()
    assert trainer.stage == max(trainer.stages)
    assert trainer.current_epoch == len(trainer.stages)
    trained = {key for key, value in trainer.module.state_dict().items() if not torch.equal(value, before[key])}
    assert trained, "nothing was trained"

    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(dirname(trainer.output_folder), (0,), "checkpoint_final.pth")
    assert predictor.trainer_name == name
    assert predictor.network.stage == trainer.stage
    volume = torch.randn(1, 9, 30, 26, generator=torch.Generator().manual_seed(0))
    logits = predictor.predict_logits_from_preprocessed_data(volume)
    assert logits.shape == (2, 9, 30, 26)
    assert logits.isfinite().all()


def _initialised(trainer: nnUNetTrainerDINOMed3D) -> torch.nn.Module:
    trainer.initialize()
    return trainer.module


@pytest.mark.parametrize("name", SINGLE + COMBINED)
def test_init_has_nnunets_exact_signature(name: str) -> None:
    """nnU-Net introspects it."""
    parameters = inspect.signature(trainer_class(name).__init__).parameters
    assert list(parameters) == list(inspect.signature(nnUNetTrainer.__init__).parameters)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("", {"variant": "base", "slab_depth": 3, "stages": (1, 2), "rope_rescale": 2.0}),
        ("_T", {"variant": "tiny"}),
        ("_S_plus", {"variant": "small_plus"}),
        ("_H_plus", {"variant": "huge_plus"}),
        ("_S_K1", {"variant": "small", "slab_depth": 1}),
        ("_K2", {"slab_depth": 2}),
        ("_K4", {"slab_depth": 4}),
        ("_K5", {"slab_depth": 5}),
        ("_frozen", {"train_encoder": False, "stages": (1,), "proxy": "linear"}),
        ("_stage1", {"train_encoder": True, "stages": (1,)}),
        ("_noDetail", {"detail_stream": False, "stages": (1, 2)}),
        ("_UPerNetProxy", {"proxy": "upernet", "detail_stream": True}),
        ("_S_loraStage1", {"variant": "small", "stage1_lora": True, "stages": (1, 2), "stage1_lr": 1e-4}),
        (
            "_L_released",
            {"variant": "large", "depth_alignment": "released", "mixed_precision": False, "lora_on_ice": True},
        ),
        ("_nano_250epochs", {"variant": "nano", "stage1_lr": 1e-3, "stage1_epochs": 125}),
    ],
)
def test_what_a_name_means(name: str, attributes: dict) -> None:
    trainer = trainer_class(BASE + name)
    assert trainer.__name__ == BASE + name
    assert {attribute: getattr(trainer, attribute) for attribute in attributes} == attributes


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("_20epochs", (10, 10)),
        ("_250epochs", (125, 125)),
        ("_1000epochs", (500, 500)),
        ("_noStage1_250epochs", (0, 125)),
        ("_stage1_20epochs", (10, 0)),
    ],
)
def test_lengths(name: str, epochs: tuple[int, int], make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainer_class(BASE + name))
    assert (trainer.schedule.stage1.epochs, trainer.schedule.stage2.epochs) == epochs
    assert trainer.num_epochs == sum(epochs)


@pytest.mark.parametrize("name", ["_k1", "_K1_S", "_S_L", "_K1_K2", "_S_", "S", "_nano_", "_K3"])
def test_there_is_one_name_for_each_combination(name: str) -> None:
    """Two names would be two results folders for one thing."""
    with pytest.raises(UnknownTrainerError, match=rf"no trainer '{BASE}{name}'.*slab depth: _K1, _K2, _K4, _K5"):
        trainer_class(BASE + name)


def test_a_name_is_one_class() -> None:
    assert trainer_class(f"{BASE}_S_K1") is trainer_class(f"{BASE}_S_K1")


def test_without_stage_2_the_best_checkpoint_has_nnunets_name(
    quick: Callable[[str], type[nnUNetTrainerDINOMed3D]], make_trainer: MakeTrainer, tmp_path
) -> None:
    """--val_best looks for it."""
    trainer = make_trainer(quick(f"{BASE}_stage1"))
    trainer.initialize()
    for filename in ("checkpoint_best.pth", STAGE1_BEST):
        assert not (tmp_path / filename).exists()
    trainer.save_checkpoint(join(tmp_path, "checkpoint_best.pth"))
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_best.pth"]


def test_frozen_trains_the_head_alone(
    quick: Callable[[str], type[nnUNetTrainerDINOMed3D]], make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(quick(f"{BASE}_frozen"))
    trainer.initialize()
    trainer.network.train()
    trained = {name for name, parameter in trainer.module.named_parameters() if parameter.requires_grad}
    assert trained == {"proxy_head.seg_layers.weight", "proxy_head.seg_layers.bias"}
    assert not trainer.module.encoder.vit.blocks.training
    assert not trainer.module.encoder.vit.rope.training


# ---- the released recipe ----

WHOLE = Schedule(stage1=Recipe(50, 1e-5), stage2=Recipe(50, 1e-4))


@pytest.fixture
def released_trainer(
    quick: Callable[[str], type[nnUNetTrainerDINOMed3D]], make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> nnUNetTrainerDINOMed3D:
    trainer = make_trainer(quick(f"{BASE}_released"))
    trainer._set_schedule(WHOLE)
    trainer.initialize()
    return trainer


def _log_dice(trainer: nnUNetTrainerDINOMed3D, values: list[float]) -> None:
    trainer.logger.get_value("mean_fg_dice", step=None)[:] = values


def test_released_learning_rate_falls_on_a_plateau(released_trainer: nnUNetTrainerDINOMed3D) -> None:
    """Patience 5: the sixth epoch without a rise halves it; a rise starts the count anew."""
    expected = {6: 1e-5, 7: 5e-6, 12: 5e-6, 13: 2.5e-6}
    for past, lr in expected.items():
        _log_dice(released_trainer, [0.5] * past)
        released_trainer.lr_scheduler.step(past)
        assert released_trainer.optimizer.param_groups[0]["lr"] == pytest.approx(lr), past
    _log_dice(released_trainer, [0.5] * 6 + [0.9])
    released_trainer.lr_scheduler.step(7)
    assert released_trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_released_stage1_ends_with_its_learning_rate(
    released_trainer: nnUNetTrainerDINOMed3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four halvings of 1e-5, one every six epochs: stage 2 begins in epoch 25 and gets the 75 that are left."""
    switched = []
    monkeypatch.setattr(released_trainer, "_switch_to_stage2", lambda: switched.append(released_trainer.current_epoch))
    for epoch in (24, 25):
        released_trainer.current_epoch = epoch
        _log_dice(released_trainer, [0.5] * epoch)
        released_trainer.on_epoch_start()
    assert switched == [25]
    assert (released_trainer.schedule.stage1.epochs, released_trainer.schedule.stage2.epochs) == (25, 75)
    assert released_trainer.num_epochs == 100


def test_released_resumes_a_stage_2_that_began_early(
    released_trainer: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, tmp_path
) -> None:
    """The schedule of the class says 50 epochs of stage 1; the checkpoint knows better."""
    released_trainer.current_epoch = 25
    released_trainer.schedule = released_trainer.schedule.with_stage1_ended(25)
    released_trainer.disable_checkpointing = True
    released_trainer._load_best_of_stage1()
    released_trainer.disable_checkpointing = False
    released_trainer.begin_stage(2)
    for values in released_trainer.logger.get_checkpoint().values():
        values[:] = [0.5] * 26
    released_trainer.save_checkpoint(join(tmp_path, "checkpoint_latest.pth"))
    resumed = make_trainer(type(released_trainer))
    resumed._set_schedule(WHOLE)
    resumed.load_checkpoint(join(tmp_path, "checkpoint_latest.pth"))
    assert resumed.stage == 2
    assert resumed.schedule.first_epoch(2) == 25
    assert resumed.my_init_kwargs["stage1"] == {"epochs": 25, "best_epoch": 24}
    resumed.lr_scheduler.step(26)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4), "stage 1's Dice must not count"


@pytest.mark.parametrize("stage", [1, 2])
def test_released_augmentation(released_trainer: nnUNetTrainerDINOMed3D, stage: Stage) -> None:
    """Up to 15 degrees, 0.8 to 1.2 times the size and, in stage 2, shifts of 5%: together, for every other patch."""
    released_trainer.begin_stage(stage)
    rotation, dummy_2d, loaded, mirror_axes = (
        released_trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    assert np.allclose(rotation, (-np.pi / 12, np.pi / 12))
    assert dummy_2d
    with released_trainer.stage_configuration():
        patch_size = released_trainer.configuration_manager.patch_size
    assert loaded[0] == patch_size[0]
    transforms = released_trainer.get_training_transforms(patch_size, rotation, None, mirror_axes, dummy_2d).transforms
    assert not any(released._is_intensity(transform) for transform in transforms)
    (mirror,) = (transform for transform in transforms if isinstance(transform, MirrorTransform))
    assert mirror.allowed_axes == (2,), "horizontal flips alone"

    (spatial,) = (transform for transform in transforms if isinstance(transform, OneOfTransform))
    # a line from the middle to the right
    height, width = loaded[1:]
    image = torch.zeros(1, height, width)
    image[0, height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 6] = 1
    still = moved = 0
    angles, sizes, shifts = [], [], []
    np.random.seed(0)
    for _ in range(300):
        parameters = [transform.get_parameters(image=image) for transform in spatial.list_of_transforms]
        chosen = spatial(image=image)["image"]
        assert chosen.shape[1:] == tuple(patch_size[1:])
        changed = not torch.equal(chosen, spatial.list_of_transforms[1](image=image)["image"])
        moved, still = moved + changed, still + (not changed)
        affine, centre = parameters[0]["affine"], parameters[0]["center_location_in_pixels"]
        sizes.append(1 / np.sqrt(np.linalg.det(affine)))
        angles.append(np.arctan2(affine[1, 0], affine[0, 0]))
        shifts.append((np.array(centre) - np.array([height, width]) / 2) / np.array(patch_size[1:]))
        assert parameters[1]["affine"] is None
        assert np.allclose(parameters[1]["center_location_in_pixels"], [height / 2, width / 2])
    assert 110 < moved < 190, "half of the patches"
    assert 0.2 < np.abs(angles).max() < np.pi / 12
    assert 0.8 < min(sizes) < 0.82
    assert 1.18 < max(sizes) < 1.2
    largest = np.abs(shifts).max(0)
    assert (largest <= 0.05 + 1e-6).all()
    assert (largest > 0.045).all() if stage == 2 else not largest.any()


def test_released_loads_enough_for_what_it_turns_and_shifts(released_trainer: nnUNetTrainerDINOMed3D) -> None:
    """Corners of the largest patch, turned and shifted the most, are inside of what is loaded."""
    released_trainer.begin_stage(2)
    *_, loaded, _ = released_trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    final = np.array(released_trainer.configuration_manager.patch_size[1:])
    cos, sin = np.cos(np.pi / 12), np.sin(np.pi / 12)
    needed = np.array([cos * final[0] + sin * final[1], sin * final[0] + cos * final[1]]) / 0.8 + 0.1 * final
    assert (np.array(loaded[1:]) >= needed).all()
    assert (np.array(loaded[1:]) <= needed + 1).all(), "no more is read than is needed"


@pytest.mark.parametrize("stage", [1, 2])
def test_released_sampling_and_network(released_trainer: nnUNetTrainerDINOMed3D, stage: Stage) -> None:
    """No foreground oversampling, RoPE rescaled in both stages, LoRA on ICE, validation on every slice."""
    released_trainer.begin_stage(stage)
    loaders: tuple[Any, Any] = released_trainer.get_dataloaders()
    train, val = loaders
    assert train.data_loader.oversample_foreground_percent == 0
    assert isinstance(val.data_loader, WholeLoader)
    encoder = released_trainer.module.train().encoder
    assert encoder.vit.rope.training
    assert "encoder.ice.conv.lora_A.default.weight" in released_trainer.module.state_dict()


def test_released_best_epoch_has_the_highest_dice(released_trainer: nnUNetTrainerDINOMed3D) -> None:
    """Not the highest moving average, which lags."""
    assert released_trainer._average_dice([0.2, 0.3], 0.9) == 0.9


def test_released_predicts_with_the_best_epoch(
    released_trainer: nnUNetTrainerDINOMed3D, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`checkpoint_final.pth` is what nnU-Net validates and predicts with: it gets the best epoch's weights."""
    trainer = released_trainer
    weight = trainer.module.get_parameter("decoder.seg_layers.weight")
    trainer.begin_stage(2)
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    trainer.current_epoch = 70
    trainer.save_checkpoint(join(trainer.output_folder, "checkpoint_best.pth"))
    best = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    with torch.no_grad():
        weight.add_(1)
    trainer.current_epoch = 100
    trainer.on_train_end()
    final = torch.load(join(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    assert all(torch.equal(value, best[name]) for name, value in final["network_weights"].items())
    assert torch.equal(weight, best["decoder.seg_layers.weight"]), "validated too"
    assert final["init_args"]["final"] == {"best_epoch": 70}
    assert final["current_epoch"] == 100
    assert final["inference_allowed_mirroring_axes"] is None, "no mirroring"
    assert "gets the weights of epoch 70, the best" in Path(trainer.log_file).read_text()


def test_released_validates_with_uniform_windows(
    released_trainer: nnUNetTrainerDINOMed3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nnU-Net's predictor as it was."""
    seen = {}

    class Stop(Exception):  # noqa: N818
        pass

    def predictor(*args, **settings):
        seen.update(settings)
        raise Stop

    monkeypatch.setattr(released.nnunets_trainer, "nnUNetPredictor", predictor)
    with pytest.raises(Stop):
        released_trainer.perform_actual_validation()
    assert seen["use_gaussian"] is False
    assert released.nnunets_trainer.nnUNetPredictor is predictor


def test_released_refuses_checkpoints_from_before_lora_on_ice(
    released_trainer: nnUNetTrainerDINOMed3D, tmp_path
) -> None:
    filename = join(tmp_path, "checkpoint_latest.pth")
    released_trainer.save_checkpoint(filename)
    checkpoint = torch.load(filename, weights_only=False)
    weights = checkpoint["network_weights"]
    for name in [name for name in weights if name.startswith("encoder.ice.")]:
        tensor = weights.pop(name)
        if ".lora_" not in name:
            weights[name.replace(".base_layer", "")] = tensor
    with pytest.raises(ValueError, match=r"without LoRA on the patch embedding.*older nnunetv2_dinomed3d"):
        released_trainer._check_matches_network(checkpoint, filename)


def test_released_computes_in_float32(released_trainer: nnUNetTrainerDINOMed3D) -> None:
    """Where nnU-Net turns autocast on, in training and in prediction."""
    dtypes = set()
    for module in released_trainer.module.modules():
        module.register_forward_hook(
            lambda module, args, output: dtypes.add(output.dtype) if isinstance(output, torch.Tensor) else None
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        released_trainer.module(torch.randn(1, 1, 3, 32, 32))
    assert dtypes == {torch.float32}
