"""``dinomed3d look``: a PNG for each trainer; what cannot be shown is refused in one line."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.command_line import NANO, assert_one_line, dinomed3d
from tests.conftest import DATASET
from tests.look_models import write_model

pytestmark = pytest.mark.own


@pytest.mark.end_to_end
def test_in_a_process_and_here(
    make_trainer: Callable[..., nnUNetTrainer], preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(make_trainer, trainer_class(NANO))
    out = tmp_path / "out"
    words = ["look", "case_1", "-d", "901", "-tr", NANO, "-o", str(out), "--slices", "2", "5"]
    png = out / f"case_1__{NANO}.png"
    done = dinomed3d(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{png}\n", "")
    first = png.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert len(first) > 20_000
    assert main(words) == 0
    assert str(png) in capsys.readouterr().out
    assert png.read_bytes() == first, "twice the same picture"


def test_refusals(
    make_trainer: Callable[..., nnUNetTrainer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_model(make_trainer, trainer_class(NANO))
    write_model(make_trainer, nnUNetTrainer)
    monkeypatch.setitem(VARIANTS, "nano", replace(VARIANTS["nano"], weights_name="vit_small_patch16_dinov3"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    raw = tmp_path / "case_0.nii.gz"
    for words, message in (
        (["case_0", "-tr", "nnUNetTrainer"], "nnUNetTrainer has no slab encoder"),
        (["case_0", "-tr", "nnUNetTrainerDINOMed3D"], r"does not exist. Train nnUNetTrainerDINOMed3D first"),
        (["case_0", "-tr", NANO, "-chk", "no.pth"], r"no.pth does not exist"),
        (["case_7", "-tr", NANO], "There is no case 'case_7' .* There are: case_0, case_1"),
        ([str(raw), "-tr", NANO], "ends with _0000.nii.gz"),
        ([str(tmp_path / "case_0_0000.nii.gz"), "-tr", NANO], "case_0_0000.nii.gz does not exist"),
        (["case_0", "-tr", NANO, "--slices", "99"], "--slices 99: .* slices, 0 to"),
        (["case_0", "-tr", NANO], "could not be fetched .* set DINOMED3D_WEIGHTS="),
    ):
        code = main(["look", *words, "-d", "901", "-o", str(tmp_path / "out")])
        assert_one_line(code, capsys.readouterr().err, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-chk", "../fold_0/checkpoint_final.pth"], "-chk '../fold_0/checkpoint_final.pth' is no name"),
        (["-p", ".."], "-p '..' is no name"),
        (["-f", "../x"], "-f '../x' is no fold"),
        (["-f", "3"], "fold_3/checkpoint_final.pth does not exist (there are the folds 0)"),
    ],
)
def test_names_that_are_paths(
    words: list[str],
    message: str,
    nnunet_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint lies in nnUNet_results; the folds that are there are named."""
    (tmp_path / DATASET / f"{NANO}__nnUNetPlans__3d_fullres" / "fold_0").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    code = main(["look", "case_0", "-d", "901", "-tr", NANO, *words, "-o", str(tmp_path / "out")])
    assert_one_line(code, capsys.readouterr().err, re.escape(message))
    assert not (tmp_path / "out").exists()
