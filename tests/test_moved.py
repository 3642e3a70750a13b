"""Old names of modules: the same modules, for one release."""

import subprocess
import sys
from importlib import import_module

import pytest

from nnunetv2_dinomed3d.moved import MOVED, PACKAGE

pytestmark = pytest.mark.own


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_module_of_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, new = f"{PACKAGE}.{old}", import_module(f"{PACKAGE}.{MOVED[old]}")
    monkeypatch.delitem(sys.modules, name, raising=False)
    spec = new.__spec__
    with pytest.warns(DeprecationWarning, match=f"{name} is {new.__name__} now"):
        assert import_module(name) is new
    assert new.__spec__ is spec
    assert new.__name__ == f"{PACKAGE}.{MOVED[old]}"


@pytest.mark.end_to_end
def test_a_users_trainer_derives_from_ours_under_an_old_name() -> None:
    code = (
        "from nnunetv2_dinomed3d.trainers.variants.sizes import nnUNetTrainerDINOMed3D_nano as old\n"
        "from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano as new\n"
        "from nnunetv2_dinomed3d.trainers.trainer import nnUNetTrainerDINOMed3D\n"
        "assert old is new and issubclass(old, nnUNetTrainerDINOMed3D)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
