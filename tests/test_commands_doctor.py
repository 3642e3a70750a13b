"""``dinomed3d doctor``: every state that would be wrong to call fine, in a process as a user starts it."""

import os
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.commands import doctor
from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.weights import hub_name
from tests.conftest import ROOT

pytestmark = pytest.mark.own

SCRIPTS = sysconfig.get_path("scripts")
OURS = ("DINOMED3D_", "HF_", "TRANSFORMERS_", "nnUNet_")


class Place:
    """A place where nothing is amiss, but for what a test makes so."""

    def __init__(self, root: Path, nnunet: Path) -> None:
        self.root = root
        self.weights = root / "vit.safetensors"
        self.weights.write_bytes(b"some")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.environment |= {"PATH": os.pathsep.join([SCRIPTS, os.environ["PATH"]]), "HF_HOME": str(root / "hub")}
        self.environment |= {"PYTHONPATH": os.pathsep.join([str(nnunet), str(ROOT)])}
        self.environment |= {"nnUNet_extTrainer": str(trainer_folder()), "DINOMED3D_WEIGHTS": str(self.weights)}
        for name in doctor.FOLDERS:
            (root / name).mkdir()
            self.environment[name] = str(root / name)

    def doctor(self, **settings: str | None) -> tuple[int, list[str]]:
        """Exit code and lines with these variables set, or not (None)."""
        environment = {name: value for name, value in (self.environment | settings).items() if value is not None}
        command = [os.path.join(SCRIPTS, "dinomed3d"), "doctor"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=self.root)
        assert not done.stderr
        return done.returncode, done.stdout.splitlines()

    def one_problem(self, **settings: str | None) -> tuple[str, str]:
        """The only error and the advice."""
        code, lines = self.doctor(**settings)
        errors = [i for i, line in enumerate(lines) if line.startswith("error")]
        assert (code, len(errors), lines[-1]) == (1, 1, "1 problem prevents training."), lines
        return lines[errors[0]], lines[errors[0] + 1].strip().removeprefix("-> ")


@pytest.fixture
def place(tmp_path: Path, stock_nnunet: Path) -> Place:
    return Place(tmp_path, stock_nnunet)


def test_no_problem_where_there_is_none(place: Place) -> None:
    code, lines = place.doctor()
    assert code == 0
    assert any(line.startswith("ok       nnU-Net finds nnUNetTrainerDINOMed3D through nnUNet_extT") for line in lines)
    assert any(str(place.weights) in line for line in lines)
    if not torch.cuda.is_available():
        assert any("no GPU: nnUNetv2_train will stop" in line for line in lines)
        assert any("-> add -device cpu" in line for line in lines)
    warned = sum(line.startswith("warning") for line in lines)
    assert lines[-1].startswith("No problem found")
    assert ("but see" in lines[-1]) == bool(warned)  # a warning is no unqualified yes


def test_it_imports_neither_torch_nor_nnunets_trainers(place: Place) -> None:
    """They take many times longer than all the checks."""
    code = (
        "import sys; from nnunetv2_dinomed3d.commands import doctor; doctor._has_driver = lambda: False;"
        "doctor.run(None); print({'torch', 'timm', 'nnunetv2.training.nnUNetTrainer.nnUNetTrainer'} & set(sys.modules))"
    )
    environment = {**place.environment, "DINOMED3D_WEIGHTS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_no_weights_and_none_to_be_had(place: Place, name: str) -> None:
    """A training would stop at its start."""
    error, advice = place.one_problem(DINOMED3D_WEIGHTS=None, **{name: "1"})
    assert f"not in the local cache, and {name} forbids the download" in error
    assert advice.startswith("export DINOMED3D_WEIGHTS=/path/to/file")


def test_weights_from_the_hub(place: Place) -> None:
    """They may be had, or are in the cache."""
    _, lines = place.doctor(DINOMED3D_WEIGHTS="")
    assert any(line.startswith("warning  weights") and "when training starts" in line for line in lines)
    snapshot = place.root / f"hub/hub/models--{doctor.HUB_REPOSITORY.replace('/', '--')}"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs/main").write_text("abc")
    file = snapshot / "snapshots/abc" / doctor.HUB_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"some")
    code, lines = place.doctor(DINOMED3D_WEIGHTS=None, HF_HUB_OFFLINE="1")
    assert code == 0
    assert any(line.startswith("ok       weights") and "in the local cache" in line for line in lines)
    file.write_bytes(b"")
    error, advice = place.one_problem(DINOMED3D_WEIGHTS=None, HF_HUB_OFFLINE="1")
    assert "is empty" in error
    assert advice == f"rm {file}"


def test_the_weights_are_those_that_the_trainer_starts_from() -> None:
    """timm, which knows them, takes seconds to import."""
    name = VARIANTS["base"].weights_name
    assert name
    assert hub_name(name) == f"{doctor.HUB_REPOSITORY}/{doctor.HUB_FILE}"


def write_index(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (Path.touch, "is empty"),
        (os.mkfifo, "is no file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("/dev/zero"), "is no file"),
        (Path.mkdir, "is a folder without model.safetensors"),
        (lambda path: (path.mkdir(), (path / "model.safetensors").touch()), "is empty"),
        (
            lambda path: write_index(path, '{"weight_map": {"a": "part.safetensors"}}'),
            "part.safetensors does not exist",
        ),
        (lambda path: write_index(path, "[]"), "is no index of weights"),
    ],
)
def test_weights_that_cannot_be_read(place: Place, make: Callable[[Path], object], reason: str) -> None:
    """Told at once, also of what would never end."""
    make(place.root / "bad")
    error, advice = place.one_problem(DINOMED3D_WEIGHTS=str(place.root / "bad"))
    assert reason in error
    assert advice == "set DINOMED3D_WEIGHTS to a file that exists"


def test_stage1_of_another_training(place: Place) -> None:
    """With it, no weights are needed; and it has to be there."""
    code, lines = place.doctor(DINOMED3D_STAGE1=str(place.weights), DINOMED3D_WEIGHTS=None, HF_HUB_OFFLINE="1")
    assert code == 0
    assert any("stage 1 is skipped and stage 2 starts from" in line for line in lines)
    error, _ = place.one_problem(DINOMED3D_STAGE1="/no/such/file")
    assert "DINOMED3D_STAGE1 is /no/such/file, which does not exist" in error


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DINOMED3D_WEIGTHS", "/x", "DINOMED3D_WEIGTHS is set, which is no setting"),
        ("DINOMED3D_SEED", "one", "DINOMED3D_SEED is 'one': set it to a whole number"),
        ("nnUNet_n_proc_DA", "many", "nnUNet_n_proc_DA is 'many'"),
        ("nnUNet_def_n_proc", "0", "nnUNet_def_n_proc is '0'; it is a number of processes, 1 or more"),
        ("nnUNet_raw", None, "nnUNet_raw is not set"),
        ("nnUNet_preprocessed", "/dev/null", "which is no folder"),
        ("nnUNet_results", "/proc/self", "which cannot be written"),
    ],
)
def test_settings_that_training_refuses(place: Place, name: str, value: str | None, said: str) -> None:
    error, _ = place.one_problem(**{name: value})
    assert said in error


def test_advice_can_be_pasted(place: Place) -> None:
    """Whatever the names are; and no name makes a line of its own."""
    results = place.root / "it's; touch spoiled"
    _, advice = place.one_problem(nnUNet_results=str(results))
    subprocess.run(["bash", "-c", advice], cwd=place.root, check=True)
    error, advice = place.one_problem(nnUNet_results=f"{results}\nok       no problem")
    assert r"spoiled\nok" in error
    assert advice == "choose a printable name"
    assert results.is_dir()
    assert not (place.root / "spoiled").exists()


def test_trainers_that_are_not_found(place: Place) -> None:
    """nnU-Net skips folders that are not there without a word. The advice keeps the user's own."""
    own = place.root / "my trainers"
    own.mkdir()
    code, lines = place.doctor(nnUNet_extTrainer=os.pathsep.join(["/no/such", str(own)]))
    assert (code, any("names /no/such, which is no folder" in line for line in lines)) == (1, True)
    advice = next(line for line in lines if "-> export nnUNet_extTrainer" in line).split("-> ")[1]
    echo = subprocess.run(["bash", "-c", f'{advice}; printf %s "$nnUNet_extTrainer"'], capture_output=True, text=True)
    assert echo.stdout == os.pathsep.join([str(trainer_folder()), str(own)])
    assert place.doctor(nnUNet_extTrainer=echo.stdout)[0] == 0


@pytest.mark.parametrize("folder", [None, "", "/no/such", str(trainer_folder())])
def test_it_agrees_with_nnunets_own_search(folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds, so that doctor looks for a file instead."""
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    if folder is not None:
        monkeypatch.setenv("nnUNet_extTrainer", folder)
    found = all(finding.status != "error" for finding in doctor.check_trainers())
    try:
        recursive_find_trainer_class_by_name(doctor.TRAINER)
    except RuntimeError:
        assert not found
    else:
        assert found


def test_a_shell_without_the_environment(place: Place) -> None:
    """nnU-Net's commands are not found there."""
    _, lines = place.doctor(PATH="/usr/bin:/bin")
    assert any("does not find nnUNetv2_train" in line for line in lines)
    assert any(f"-> export PATH={SCRIPTS}" in line for line in lines)


def test_versions_outside_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy>=1.24", "nnunetv2>=2.8,<3", "no-such-thing>=1", 'tqdm>=1; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)

    def version(name: str) -> str:
        try:
            return {"numpy": "2.0", "nnunetv2": "3.0.1", doctor.DISTRIBUTION: "0"}[name]
        except KeyError:
            raise doctor.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(doctor.metadata, "version", version)
    findings = {finding.what.split()[0]: finding for finding in doctor.check_versions()}
    assert findings["numpy"].status == "ok"
    assert findings["nnunetv2"].status == "error"
    assert "nnunetv2 3.0.1 is installed, nnunetv2<3,>=2.8 is needed" in findings["nnunetv2"].what
    assert findings["no-such-thing"].advice == "pip install 'no-such-thing>=1'"
    assert "tqdm" not in findings


def fake_cuda(monkeypatch: pytest.MonkeyPatch, count: int, caution: str = "") -> None:
    def is_available() -> bool:
        if caution:
            warnings.warn(caution, stacklevel=1)
        return count > 0

    monkeypatch.setattr(doctor, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    card = SimpleNamespace(name="A card", total_memory=24 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, 2)
    assert [finding.what for finding in doctor.check_gpu()] == ["GPU 0: A card, 24 GB", "GPU 1: A card, 24 GB"]


def test_a_gpu_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old driver, or a PyTorch built without CUDA: the reason is PyTorch's, in the line, not before all others."""
    fake_cuda(monkeypatch, 0, "The NVIDIA driver on your system is too old\nsecond line")
    (finding,) = doctor.check_gpu()
    assert finding.status == "warning"
    assert "PyTorch sees no GPU (The NVIDIA driver on your system is too old): nnUNetv2_train will stop" in finding.what
    monkeypatch.setattr(torch.version, "cuda", None)
    (finding,) = doctor.check_gpu()
    assert "built without CUDA" in finding.what


def test_little_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setattr(doctor, "_free_gb", lambda folder: 0.06)
    said = [finding.what for finding in doctor.check_folders() if finding.status == "warning"]
    assert "nnUNet_results" in said[0]
    assert "where 0.1 GB are free" in said[0]
    if os.path.isdir("/dev/shm"):
        assert "/dev/shm, through which loader workers hand over batches, has only 0.1 GB free" in said[1]
