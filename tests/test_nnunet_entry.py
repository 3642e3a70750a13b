"""Being found by ``-tr``: through nnUNet_extTrainer and from a wheel; never in a stock trainer's way."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.trainers.registry import BASE, SUFFIX_GROUPS, trainer_class
from tests.conftest import ROOT

ENTRY = "training/nnUNetTrainer/dinomed3d_trainers.py"
NAMES = [BASE, *(trainer.__name__ for trainers in SUFFIX_GROUPS.values() for trainer in trainers), f"{BASE}_S_K1"]

STOCK = ["nnUNetTrainer", "nnUNetTrainerNoMirroring"]

LOOKUP = """
import sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
for names in {groups!r}:
    for name in names:
        found = recursive_find_trainer_class_by_name(name)
        print(f"{{name}} is in {{found.__module__}}")
    print("imported:", sorted({{m.split(".")[0] for m in sys.modules}} & {{"nnunetv2_dinomed3d", "peft"}}))
"""


def lookup(run: Callable[..., str], *groups: list[str], **settings: str) -> str:
    """Let nnU-Net look for trainers, one group after the other, in a process of its own."""
    return run(sys.executable, "-c", LOOKUP.format(groups=groups), **settings)


def assert_stock_imports_nothing_and_ours_are_found(output: str) -> None:
    """A stock trainer would pay for peft, and a fault in our code would break it."""
    stock, ours = output.split("imported: ", 1)
    assert re.findall(r"(\w+) is in nnunetv2\.training\.nnUNetTrainer", stock) == STOCK
    assert ours.startswith("[]\n")
    assert set(re.findall(r"(\w+) is in nnunetv2_dinomed3d\.trainers\.", ours)) == set(NAMES)


@pytest.mark.end_to_end
def test_trainers_are_found_through_the_exported_folder(stock_nnunet: Path, run: Callable[..., str]) -> None:
    settings = {
        "nnUNet_extTrainer": str(trainer_folder()),
        "PYTHONPATH": os.pathsep.join([str(stock_nnunet), str(ROOT)]),
    }
    output = lookup(run, STOCK, NAMES, **settings)
    assert_stock_imports_nothing_and_ours_are_found(output)
    assert f"Using trainer 'nnUNetTrainerDINOMed3D' from: {trainer_folder()}" in output


def test_the_exported_folder_holds_one_thin_module() -> None:
    """nnU-Net imports every module in it and then forgets them all."""
    assert [path.name for path in trainer_folder().glob("*.py") if path.name != "__init__.py"] == [
        "dinomed3d_trainers.py"
    ]


@pytest.mark.usefixtures("nnunet_environment")
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (f"{BASE}_nodetail", f"{BASE}_noDetail"),
        (f"{BASE}_s", f"{BASE}_S"),
        (f"{BASE}_250epoch", f"{BASE}_250epochs"),
        (f"{BASE}_K1_S_plus", f"{BASE}_S_plus_K1"),
        (f"{BASE}_", BASE),
        ("nnUNetTrainerDinoMed3d_L", f"{BASE}_L"),
    ],
)
def test_a_misspelt_name_gets_the_right_one(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net alone would say that the trainer cannot be found, and search on."""
    monkeypatch.setenv("nnUNet_extTrainer", str(trainer_folder()))
    with pytest.raises(ValueError, match=rf"no trainer '{name}'\. Is {meant} meant\? .*size: _nano.*_noDetail"):
        recursive_find_trainer_class_by_name(name)


@pytest.mark.parametrize("name", [f"{BASE}_mine", f"{BASE}_S_L", f"{BASE}_large", f"{BASE}_S_mine"])
def test_a_name_that_is_not_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed; and it is said how a class of one's own is found, by a command to paste."""
    monkeypatch.setenv("nnUNet_extTrainer", "/my own")
    with pytest.raises(ValueError, match=f"no trainer '{name}'") as caught:
        trainer_class(name)
    assert "meant" not in str(caught.value)
    assert "export nnUNet_extTrainer='/my own:/folder/of/its/file', which is '/my own' here" in str(caught.value)


def documented_example() -> tuple[str, str, list[str]]:
    """The documentation's trainer of one's own: file, content, the exports for a wheel and for an editable install."""
    text = (ROOT / "docs/own_trainer.md").read_text()
    file = re.search(r"`(my_trainers/\w+\.py)`", text)
    content = re.search(r"```python\n(from nnunetv2_dinomed3d\.trainers.*?)```", text, re.DOTALL)
    assert file
    assert content
    return file[1], content[1], re.findall(r"^    (export nnUNet_extTrainer=.*my_trainers.*)$", text, re.MULTILINE)


@pytest.mark.end_to_end
@pytest.mark.parametrize("editable", [False, True])
def test_the_documented_trainer_of_ones_own(
    editable: bool, wheel: Path, stock_nnunet: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """It is found as docs/own_trainer.md has it, after either install."""
    name, content, exports = documented_example()
    file = tmp_path / name
    file.parent.mkdir()
    file.write_text(content)
    shutil.copytree(stock_nnunet, tmp_path / "site")
    if not editable:
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = LOOKUP.format(groups=[["nnUNetTrainerLonger", BASE]])
    script = f"cd {tmp_path}\n{exports[editable]}\nexec {sys.executable} -c {shlex.quote(code)}"
    path = os.pathsep.join([str(tmp_path / "site"), *([str(ROOT)] if editable else [])])
    output = run("bash", "-c", script, PYTHONPATH=path, nnUNet_extTrainer="")
    assert f"nnUNetTrainerLonger is in {file.stem}" in output
    assert f"{BASE} is in nnunetv2_dinomed3d.trainers" in output


@pytest.mark.end_to_end
def test_a_users_own_trainer_may_begin_as_ours(
    wheel: Path, stock_nnunet: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """With a wheel our module is asked before nnU-Net looks into the user's folder: it must not stop the search."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text(
        "from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D\n"
        "class nnUNetTrainerDINOMed3D_mine(nnUNetTrainerDINOMed3D):\n    slab_depth = 7\n"
    )
    shutil.copytree(stock_nnunet, tmp_path / "site")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    settings = {"nnUNet_extTrainer": str(own), "PYTHONPATH": str(tmp_path / "site")}
    assert "nnUNetTrainerDINOMed3D_mine is in mine" in lookup(run, ["nnUNetTrainerDINOMed3D_mine"], **settings)


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


@pytest.mark.end_to_end
def test_trainers_are_found_after_a_wheel_install_with_no_setting(
    wheel: Path, stock_nnunet: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """The wheel is unpacked over a copy of nnU-Net, as pip unpacks it into site-packages."""
    shutil.copytree(stock_nnunet, tmp_path / "site")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    settings = {"nnUNet_extTrainer": "", "PYTHONPATH": str(tmp_path / "site")}
    assert_stock_imports_nothing_and_ours_are_found(lookup(run, STOCK, NAMES, **settings))
