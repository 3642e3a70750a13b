"""Being found by ``-tr``: through nnUNet_extTrainer and from a wheel; never in a stock trainer's way."""

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.entry import trainer_folder

ROOT = Path(__file__).parents[1]

LOOKUP = """
import sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = recursive_find_trainer_class_by_name({name!r})
print("module:", found.__module__)
print("imported:", sorted({{m.split(".")[0] for m in sys.modules}} & {{"nnunetv2_dinomed3d", "timm", "peft"}}))
"""


def lookup(run: Callable[..., str], name: str, **settings: str) -> str:
    return run(sys.executable, "-c", LOOKUP.format(name=name), **settings)


@pytest.mark.parametrize("suffix", ["", "_S", "_L", "_nano"])
def test_trainers_are_found_through_the_exported_folder(run: Callable[..., str], suffix: str) -> None:
    output = lookup(run, f"nnUNetTrainerDINOMed3D{suffix}", nnUNet_extTrainer=str(trainer_folder()))
    assert "module: nnunetv2_dinomed3d.trainers." in output


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainer_5epochs"])
def test_a_stock_trainers_lookup_imports_nothing_of_ours(run: Callable[..., str], name: str) -> None:
    """It would pay for timm and peft, and a fault in them would break trainers that have nothing to do with us."""
    output = lookup(run, name, nnUNet_extTrainer=str(trainer_folder()))
    assert "module: nnunetv2.training.nnUNetTrainer" in output
    imported = output.split("imported: ")[1]
    assert "nnunetv2_dinomed3d" not in imported
    assert "peft" not in imported


def test_the_exported_folder_holds_one_thin_module() -> None:
    """nnU-Net imports every module in it and then forgets them all."""
    assert [path.name for path in trainer_folder().glob("*.py") if path.name != "__init__.py"] == ["dinomed3d_trainers.py"]


def test_an_unknown_name_is_not_found() -> None:
    from nnunetv2_dinomed3d.nnunet_entry import dinomed3d_trainers

    assert not hasattr(dinomed3d_trainers, "nnUNetTrainerDINOMed3D_XXL")
    assert not hasattr(dinomed3d_trainers, "nnUNetTrainer")


def test_a_wheel_puts_the_module_into_nnunets_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "nnunetv2/training/nnUNetTrainer/dinomed3d_trainers.py" in names
    assert [name for name in names if name.startswith("nnunetv2/")] == [
        "nnunetv2/training/nnUNetTrainer/dinomed3d_trainers.py"
    ], "nothing else of nnU-Net's may be touched"
    assert "nnunetv2_dinomed3d/nnunet_entry/dinomed3d_trainers.py" in names
    assert not any(name.startswith("tests") for name in names)


def test_trainers_are_found_after_a_wheel_install_with_no_setting(run: Callable[..., str], tmp_path: Path) -> None:
    """Into a folder that lies over nnU-Net's, since this environment has it installed already."""
    import nnunetv2

    stock = Path(nnunetv2.__file__).parent
    if (stock / "training" / "nnUNetTrainer" / "dinomed3d_trainers.py").exists():
        output = lookup(run, "nnUNetTrainerDINOMed3D_nano", nnUNet_extTrainer="")
        assert "module: nnunetv2_dinomed3d.trainers.variants" in output
        output = lookup(run, "nnUNetTrainerNoMirroring", nnUNet_extTrainer="")
        assert "nnunetv2_dinomed3d" not in output.split("imported: ")[1]
        return
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "venv")], check=True)
    pytest.skip("not installed from a wheel: the CI's environment is, and there this runs")


def test_the_command_is_installed() -> None:
    assert (Path(sysconfig.get_path("scripts")) / "dinomed3d").exists()
