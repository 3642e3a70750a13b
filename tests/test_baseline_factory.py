"""Baselines by name: what there is, what a missing package says, and what is not imported for it."""

import subprocess
import sys

import pytest

from nnunetv2_dinomed3d.network_architecture.baselines import BASELINES, MissingPackageError, build_baseline

WITHOUT_MONAI = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "monai":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
"""


def in_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_extra_the_error_names_it() -> None:
    program = f"""{WITHOUT_MONAI}
from nnunetv2_dinomed3d.network_architecture.baselines import MissingPackageError, build_baseline
try:
    build_baseline("VoCo_B", 1, 2, (64, 64, 64))
except MissingPackageError as error:
    print(error)
"""
    expected = "VoCo_B needs monai, which is not installed: pip install 'nnunetv2_dinomed3d[baselines]'"
    assert in_python(program) == expected
    assert issubclass(MissingPackageError, ImportError)


@pytest.mark.end_to_end
def test_without_the_extra_all_else_is_as_before() -> None:
    program = f"""{WITHOUT_MONAI}
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
for name in ("nnUNetTrainerDINOMed3D", "nnUNetTrainerBaseline_SwinUNETR", "nnUNetTrainerBaseline_nnFormer"):
    print(trainer_class(name).__name__)
build_baseline("UMambaBot", 1, 2, (32, 32, 32), features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
               kernel_sizes=((3, 3, 3), (3, 3, 3)))
"""
    assert len(in_python(program).splitlines()) == 3


def test_the_names_of_trainers_import_no_network() -> None:
    program = """
import sys
from nnunetv2_dinomed3d.commands.main import command_parser
command_parser("crossval").format_help()
print([name for name in ("torch", "monai", "transformers", "timm") if name in sys.modules])
"""
    assert in_python(program) == "[]"


@pytest.mark.parametrize(("name", "patch"), [("DinoUNet_S", (16, 64, 64)), ("nnFormer", (64, 64))])
def test_a_patch_of_other_axes_is_refused(name: str, patch: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{name} is a network for \dD patches, and the patch is"):
        build_baseline(name, 1, 2, patch)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no baseline 'UNETR'; there are nnFormer, SwinUNETR"):
        build_baseline("UNETR", 1, 2, (64, 64, 64))
    assert len(BASELINES) == 10
