"""Being found by ``-tr``: through nnUNet_extTrainer and from a wheel; never in a stock trainer's way."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.entry import trainer_folder
from nnunetv2_dinomed3d.trainers import variants

ROOT = Path(__file__).parents[1]
ENTRY = "training/nnUNetTrainer/dinomed3d_trainers.py"

LOOKUP = """
import sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
for name in {names!r}:
    found = recursive_find_trainer_class_by_name(name)
    print(f"{{name}} is in {{found.__module__}}")
print("imported:", sorted({{m.split(".")[0] for m in sys.modules}} & {{"nnunetv2_dinomed3d", "peft"}}))
"""


def lookup(run: Callable[..., str], *names: str, **settings: str) -> str:
    """Let nnU-Net look for trainers, in a process of its own."""
    return run(sys.executable, "-c", LOOKUP.format(names=names), **settings)


def assert_all_found(output: str) -> None:
    assert set(re.findall(r"(\w+) is in nnunetv2_dinomed3d\.trainers\.", output)) == set(variants.__all__)


@pytest.fixture(scope="module")
def stock_nnunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with nnU-Net as it comes, without our module (this environment's may have it)."""
    import nnunetv2

    site = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("dinomed3d_trainers.py", "__pycache__", "tests")
    shutil.copytree(Path(nnunetv2.__file__).parent, site / "nnunetv2", ignore=ignore)
    return site


def test_trainers_are_found_through_the_exported_folder(stock_nnunet: Path, run: Callable[..., str]) -> None:
    settings = {
        "nnUNet_extTrainer": str(trainer_folder()),
        "PYTHONPATH": os.pathsep.join([str(stock_nnunet), str(ROOT)]),
    }
    output = lookup(run, *variants.__all__, **settings)
    assert_all_found(output)
    assert f"Using trainer 'nnUNetTrainerDINOMed3D' from: {trainer_folder()}" in output


def test_a_stock_trainers_lookup_imports_nothing_of_ours(run: Callable[..., str]) -> None:
    """It would pay for peft, and a fault in it would break trainers that have nothing to do with us."""
    output = lookup(run, "nnUNetTrainer", "nnUNetTrainerNoMirroring", nnUNet_extTrainer=str(trainer_folder()))
    assert "nnUNetTrainerNoMirroring is in nnunetv2.training.nnUNetTrainer" in output
    assert "imported: []" in output


def test_the_exported_folder_holds_one_thin_module() -> None:
    """nnU-Net imports every module in it and then forgets them all."""
    assert [path.name for path in trainer_folder().glob("*.py") if path.name != "__init__.py"] == [
        "dinomed3d_trainers.py"
    ]


def test_an_unknown_name_is_not_found() -> None:
    from nnunetv2_dinomed3d.nnunet_entry import dinomed3d_trainers

    assert not hasattr(dinomed3d_trainers, "nnUNetTrainerDINOMed3D_XXL")
    assert not hasattr(dinomed3d_trainers, "nnUNetTrainer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves a build folder in the source tree
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "tests"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(folder), str(source)], check=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_adds_one_module_to_nnunets_folder(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.startswith("nnunetv2/")] == [f"nnunetv2/{ENTRY}"]
    assert "nnunetv2_dinomed3d/nnunet_entry/dinomed3d_trainers.py" in names
    assert not any(name.startswith("tests") for name in names)


def test_trainers_are_found_after_a_wheel_install_with_no_setting(
    wheel: Path, stock_nnunet: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """The wheel is unpacked over a copy of nnU-Net, as pip unpacks it into site-packages."""
    shutil.copytree(stock_nnunet, tmp_path / "site")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    settings = {"nnUNet_extTrainer": "", "PYTHONPATH": str(tmp_path / "site")}
    assert_all_found(lookup(run, *variants.__all__, **settings))
    assert "imported: []" in lookup(run, "nnUNetTrainerNoMirroring", **settings)
