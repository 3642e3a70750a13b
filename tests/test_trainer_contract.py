"""What every trainer of the package gives: trains on an odd patch, resumes, skips bad steps, predicts elsewhere."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_dinomed3d.network_architecture.baselines import BASELINES
from nnunetv2_dinomed3d.planning.step_memory import training_step_memory
from nnunetv2_dinomed3d.planning.training_memory import training_steps
from nnunetv2_dinomed3d.trainer_names import TABLES, takes_slices
from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.harness.trainer import HarnessTrainer
from nnunetv2_dinomed3d.trainers.registry import BASE, BASELINE_GROUPS, UnknownTrainerError, trainer_class
from tests.tiny_baselines import shortened

MakeTrainer = Callable[..., HarnessTrainer]

NETWORKS = [trainer.__name__ for trainer in BASELINE_GROUPS["network"]]
LENGTHS = [trainer.__name__.rpartition("_")[2] for trainer in BASELINE_GROUPS["length"]]

OTHER_SIZES = [f"nnUNetTrainerBaseline_{name}" for name in ("VoCo_L", "VoCo_L_v1", "DinoUNet_B", "DinoUNet_L")]
"""Trainers that differ from another one in a number alone; `shortened` makes their networks the same."""

ODD = {3: [11, 27, 21], 2: [37, 41]}
"""Patches that are no multiples of anything, by the number of axes."""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, make_trainer: MakeTrainer) -> Callable[..., HarnessTrainer]:
    """A trainer by its name, as nnU-Net finds it: a tiny network, an odd patch, an epoch of two iterations."""
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "random")

    def make(name: str) -> HarnessTrainer:
        found = recursive_find_trainer_class_by_name(name)
        for attribute, value in shortened(found).items():
            monkeypatch.setattr(found, attribute, value)
        return make_trainer(found, "2d" if takes_slices(name) else "3d_fullres")

    return make


@pytest.fixture
def odd_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans' patch is odd, whatever they say."""

    def patch_size(self: ConfigurationManager) -> list[int]:
        return ODD[len(self.configuration["patch_size"])]

    monkeypatch.setattr(ConfigurationManager, "patch_size", property(patch_size))


@pytest.mark.end_to_end
@pytest.mark.usefixtures("odd_patch")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in OTHER_SIZES else []) for name in (BASE, *NETWORKS)],
)
def test_a_trainer_keeps_the_contract(name: str, tiny: Callable[..., HarnessTrainer], tmp_path: Path) -> None:
    trainer = tiny(name)
    trainer.initialize()
    before = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    spoilt = spoil_first_step(trainer)
    trainer.run_training()
    assert spoilt, "no step was spoilt"
    log = Path(trainer.log_file).read_text()
    assert "steps skipped because of non-finite gradients: 1" in log
    assert name == BASE or f"Recipe of {trainer.network_name}: {trainer.recipe.optimizer}" in log
    trained = trainer.module.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in trained.items()), "nothing was trained"
    assert_resumes(trainer, tiny(name))
    assert_predicts_elsewhere(trainer, tmp_path / "elsewhere")


def spoil_first_step(trainer: HarnessTrainer) -> list[int]:
    """The loss of the first step becomes NaN; the list then has an entry."""
    spoilt: list[int] = []
    step = trainer.train_step

    def spoil(batch: dict) -> dict:
        if not spoilt:
            spoilt.append(1)
            batch = {**batch, "data": batch["data"] * np.nan}
        return step(batch)

    trainer.train_step = spoil
    return spoilt


def assert_resumes(trainer: HarnessTrainer, again: HarnessTrainer) -> None:
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert again.current_epoch == trainer.current_epoch
    for key, value in trainer.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key]), key


def assert_predicts_elsewhere(trainer: HarnessTrainer, folder: Path) -> None:
    """From a copy of the model's folder, with nnU-Net's own predictor."""
    shutil.copytree(Path(trainer.output_folder).parent, folder)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    volume = torch.randn(1, 9, 30, 26, generator=torch.Generator().manual_seed(0))
    logits = predictor.predict_logits_from_preprocessed_data(volume)
    assert logits.shape == (2, 9, 30, 26)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", [BASE, *NETWORKS])
def test_memory_of_its_steps_is_known(name: str, tiny: Callable[..., HarnessTrainer]) -> None:
    trainer = tiny(name)
    steps = training_steps(type(trainer), trainer.plans_manager, trainer.configuration_manager, 1, 2)
    for step in steps:
        memory = training_step_memory(step)
        assert memory.weights > 0
        assert memory.activations > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_deep_supervision_changes_no_state_dict(name: str, tiny: Callable[..., HarnessTrainer]) -> None:
    trainer = tiny(name)
    build = type(trainer).build_network_architecture
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    on, off = (build(plans, configuration, 1, 2, enable) for enable in (True, False))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (on, off)]
    assert shapes[0] == shapes[1]


@pytest.mark.filterwarnings("error:invalid value")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_a_number_on_plans_of_two_stages(
    name: str, tiny: Callable[..., HarnessTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two stages, nnU-Net trains the finer one alone, and gives it no weight."""
    trainer = tiny(name)
    axes = len(trainer.configuration_manager.patch_size)
    strides = [[1] * axes, [2] * axes]
    monkeypatch.setattr(ConfigurationManager, "pool_op_kernel_sizes", property(lambda self: strides))
    scales = trainer._get_deep_supervision_scales()
    logits = [torch.zeros(2, 2, *[8] * axes) for _ in scales or [1]]
    target = [torch.ones(2, 1, *[8] * axes) for _ in logits]
    loss = trainer._build_loss()
    assert loss(logits, target) > 0 if scales else loss(logits[0], target[0]) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_names_lengths_and_axes(name: str) -> None:
    trainer = trainer_class(name)
    network = BASELINES[trainer.network_name]
    assert name == f"nnUNetTrainerBaseline_{trainer.network_name}"
    assert (trainer.axes, trainer.epochs) == (network.axes, 100)
    assert takes_slices(name) == (network.axes == (2,))
    for length in LENGTHS:
        longer = trainer_class(f"{name}_{length}")
        assert f"{longer.epochs}epochs" == length
        assert (longer.network_name, longer.recipe) == (trainer.network_name, trainer.recipe)
        parameters = inspect.signature(longer.__init__).parameters
        assert list(parameters) == list(inspect.signature(nnUNetTrainer.__init__).parameters)


def test_every_baseline_has_a_trainer() -> None:
    assert sorted(BASELINES) == sorted(trainer_class(name).network_name for name in NETWORKS)


@pytest.mark.parametrize("name", [row for rows in TABLES.values() for row in rows])
def test_rows_of_the_papers_tables_are_trainers(name: str) -> None:
    assert recursive_find_trainer_class_by_name(name).__name__ == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nnUNetTrainerBaseline_nnformer", "nnUNetTrainerBaseline_nnFormer"),
        ("nnUNetTrainerBaseline_VoCo_L_v1_20epoch", "nnUNetTrainerBaseline_VoCo_L_v1_20epochs"),
        ("nnUNetTrainerBaseline_20epochs", None),
    ],
)
def test_a_misspelt_name_is_answered(name: str, meant: str | None) -> None:
    with pytest.raises(UnknownTrainerError) as error:
        trainer_class(name)
    assert (f"Is {meant} meant?" in str(error.value)) == (meant is not None)
    assert "network: _nnFormer, _SwinUNETR" in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        (Recipe("SGD", 0.1, schedule="poly"), [0.1, 0.1 * 0.5**0.9]),
        (Recipe("AdamW", 0.1, schedule="cosine", warmup=0.01), [0.05, 0.1]),
    ],
)
def test_schedules(recipe: Recipe, rates: list[float]) -> None:
    optimizer = recipe.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    scheduler = recipe.make_scheduler(optimizer, 2)
    found = []
    for epoch in range(2):
        scheduler.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(rates)


def test_configuration_of_the_wrong_axes_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="it is 2D, and this network takes volumes"):
        make_trainer(trainer_class("nnUNetTrainerBaseline_SwinUNETR"), "2d")
    with pytest.raises(ValueError, match="it is 3D, and this network takes slices"):
        make_trainer(trainer_class("nnUNetTrainerBaseline_DinoUNet_S"), "3d_fullres")


def test_plans_know_the_divisor(make_trainer: MakeTrainer) -> None:
    plans = PlansManager(make_trainer(trainer_class(BASE)).plans_manager.plans)
    configuration = plans.get_configuration("3d_fullres")
    divisors = {
        name: trainer_class(f"nnUNetTrainerBaseline_{name}").patch_divisor(plans, configuration, 1, 2)
        for name in ("nnFormer", "SwinUNETR")
    }
    assert divisors == {"nnFormer": (16, 32, 32), "SwinUNETR": (32, 32, 32)}
