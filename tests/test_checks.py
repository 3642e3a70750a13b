"""Bad input: an error before training starts that names the value and the fix, and nothing written over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_dinomed3d import versions as requirements
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano
from tests.trainers.quick_trainers import nnUNetTrainerQuick

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


class StartedError(Exception):
    """Training would have begun."""


@pytest.fixture(autouse=True)
def stop_at_the_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self) -> None:
        raise StartedError

    monkeypatch.setattr(nnUNetTrainerDINOMed3D, "get_dataloaders", begin)


class Own:
    """A copy of the small data set that a test may spoil, and trainers on it."""

    def __init__(self, folder: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.cases = folder / "nnUNetPlans_3d_fullres"
        self.make_trainer, self.monkeypatch = make_trainer, monkeypatch

    def start(self, trainer_class: type = nnUNetTrainerQuick, fold: int | str = 0, **dataset: object) -> str:
        """Begin a training; its log. Raises what the user would see."""
        trainer = self.make_trainer(trainer_class, fold=fold)
        trainer.preprocessed_dataset_folder_base = str(self.folder)
        trainer.preprocessed_dataset_folder = str(self.cases)
        if dataset:
            trainer.dataset_json = trainer.dataset_json | dataset
            trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
        told: list[str] = []  # the log itself is removed: the training does not begin
        trainer.print_to_log_file = lambda *words, **_: told.append(" ".join(map(str, words)))
        with pytest.raises(StartedError):
            trainer.run_training()
        return "\n".join(told)

    def change(self, case: str, change: Callable[[np.ndarray, np.ndarray, dict], None]) -> None:
        """Rewrite a preprocessed case."""
        data, seg, _, properties = nnUNetDatasetBlosc2(str(self.cases)).load_case(case)
        data, seg = np.array(data[:]), np.array(seg[:])
        change(data, seg, properties)
        for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
            (self.cases / f"{case}{suffix}").unlink()
        nnUNetDatasetBlosc2.save_case(data, seg, properties, str(self.cases / case))


@pytest.fixture
def own(preprocessed: Path, make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    shutil.copytree(preprocessed, tmp_path / "preprocessed")
    return Own(tmp_path / "preprocessed", make_trainer, monkeypatch)


def test_sound_data_start_without_a_warning(own: Own) -> None:
    assert "WARNING" not in own.start()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(own: Own, value: float) -> None:
    def spoil(data: np.ndarray, seg: np.ndarray, properties: dict) -> None:
        data[0, 3, 4, 5] = value

    own.change("case_2", spoil)
    with pytest.raises(ValueError, match=r"^case_2: .*not finite.*--verify_dataset_integrity"):
        own.start()


def test_constant_intensity(own: Own) -> None:
    own.change("case_3", lambda data, seg, properties: data.fill(0.5))
    with pytest.raises(ValueError, match=r"^case_3: the image has the same intensity everywhere"):
        own.start()


def without_foreground(data: np.ndarray, seg: np.ndarray, properties: dict) -> None:
    seg.fill(0)
    properties["class_locations"] = {label: [] for label in properties["class_locations"]}


def test_a_label_that_no_case_has(own: Own) -> None:
    with pytest.raises(ValueError, match=r"Label 2 of dataset.json is in none of the 5 cases.*Remove it"):
        own.start(labels={"background": 0, "box": 1, "tumour": 2})


def test_a_case_without_foreground_is_named(own: Own) -> None:
    """It may be meant: healthy cases are sound data, and stock nnU-Net trains on them."""
    own.change("case_1", without_foreground)
    assert "WARNING: case_1: no foreground. Is that meant?" in own.start()


def test_a_label_that_only_validation_cases_have_is_named(own: Own) -> None:
    cases = [f"case_{i}" for i in range(5)]
    splits = [{"train": cases[:4], "val": cases[4:]}]
    (own.folder / "splits_final.json").write_text(json.dumps(splits))
    for case in cases[:4]:
        own.change(case, without_foreground)
    assert "WARNING: no training case of this fold has label 1" in own.start()


def test_fewer_cases_than_folds(own: Own) -> None:
    for i in (3, 4):
        for path in own.cases.glob(f"case_{i}*"):
            path.unlink()
    (own.folder / "splits_final.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"cannot split Dataset901_Test into its 5 folds.*n_samples=3.*fold all"):
        own.start()
    own.start(fold="all")


def test_a_misspelt_setting(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED3D_WEIGHT", "/path/to/file")
    with pytest.raises(ValueError, match=r"DINOMED3D_WEIGHT is set.*There are DINOMED3D_WEIGHTS, DINOMED3D_STAGE1"):
        own.start()


class MirrorsInDepth(nnUNetTrainerQuick):
    slab_depth = 4

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # type: ignore[override]
        *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return (*others, (0, 1, 2))


def test_even_k_with_a_trainer_that_mirrors_in_depth(own: Own) -> None:
    with pytest.raises(ValueError, match=r"mirrors along axes \(0, 1, 2\) with slabs of K = 4.*Leave axis 0 out"):
        own.start(MirrorsInDepth)


def test_plans_without_the_configuration(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3d_lowres.*3d_fullres"):
        make_trainer(nnUNetTrainerDINOMed3D_nano, "3d_lowres")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("package", "version"), [("nnunetv2", "2.7.0"), ("peft", "0.10"), ("timm", "1.0.9")])
def test_a_package_that_is_too_old(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the import of our trainers fails in some odd way."""
    from nnunetv2_dinomed3d.nnunet_entry import dinomed3d_trainers

    real = requirements.metadata.version
    monkeypatch.setattr(requirements.metadata, "version", lambda name: version if name == package else real(name))
    with pytest.raises(RuntimeError, match=rf"^{package} {version} is installed, {package}.*>=.*pip install"):
        _ = dinomed3d_trainers.nnUNetTrainerDINOMed3D
