"""``dinomed3d weights``: what it fetches is checked before it is relied on; a file's report and its exit code."""

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.weights.report import pretrained_shapes
from tests.command_line import assert_one_line, dinomed3d
from tests.test_weights_report import NANO, REAL_VARIANTS, VIT, Variant

REPOSITORY = "timm/vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more variant, small enough for files in tests; and a Hub that must not be asked."""
    for name in ("small_plus", "large", "huge_plus"):
        monkeypatch.delitem(VARIANTS, name)
    monkeypatch.setitem(VARIANTS, "mini", Variant(VIT, VIT, NANO))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)


@pytest.fixture
def mini_file(tmp_path: Path) -> Path:
    """A file that fits the variant mini."""
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in pretrained_shapes("mini").items()}, file)
    return file


@pytest.mark.parametrize("cached", [True, False])
def test_fetch(
    cached: bool, mini_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user gets the file, knows that it is whole, and reads what to do where there is no internet."""
    asked = []

    def download(repository: str, file: str, etag_timeout: float) -> str:
        asked.append((repository, file))
        return str(mini_file)

    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere")  # what is fetched does not depend on what is in use
    if cached:
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(mini_file))
    else:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert main(["weights", "mini"]) == 0
    assert asked == ([] if cached else [(REPOSITORY, "model.safetensors")])
    output = capsys.readouterr().out
    checksum = hashlib.sha256(mini_file.read_bytes()).hexdigest()
    for part in (REPOSITORY, "fit the variant mini", str(mini_file), checksum, "export DINOMED3D_WEIGHTS="):
        assert part in output


def test_fetched_file_that_does_not_fit(
    mini_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged or wrong file in the cache is found on the machine with internet, not in the first job without."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(mini_file))
    code = main(["weights", "base"])
    assert_one_line(code, capsys.readouterr().err, "width 96 and depth 4, the trainer needs width 768 and depth 12")


def test_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is the training's own, with every way out."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    code = main(["weights", "small"])
    assert_one_line(code, capsys.readouterr().err, "OSError: offline.*DINOMED3D_WEIGHTS=/path/to/file")


@pytest.mark.parametrize("variant", ["bsae", "nano"])
def test_variant_without_weights(
    variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo, or the size that has none: those that have are listed."""
    for name, real in REAL_VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, real)
    assert_one_line(
        main(["weights", variant]), capsys.readouterr().err, rf"'{variant}' is no variant .* tiny, small, .*huge_plus"
    )


def test_tiny_is_not_on_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are LightlyTrain's."""
    assert_one_line(main(["weights", "tiny"]), capsys.readouterr().err, "LightlyTrain")


def test_check_prints_the_report_and_tells_scripts(mini_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "--check", str(mini_file)]) == 0
    assert "\nmini: fits\n" in capsys.readouterr().out
    save_file({"conv.weight": torch.zeros(1)}, mini_file)
    assert main(["weights", "--check", str(mini_file)]) == 1
    assert "no DINOv3 ViT in a known format" in capsys.readouterr().out
    assert main(["weights", "--check", f"{mini_file}x"]) == 1
    assert_one_line(1, capsys.readouterr().err, "model.safetensorsx does not exist")


@pytest.mark.end_to_end
def test_in_a_process(tmp_path: Path) -> None:
    file = tmp_path / "small.pth"
    torch.save({name: torch.zeros(shape) for name, shape in pretrained_shapes("small").items()}, file)
    done = dinomed3d("weights", "--check", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{file}: ")  # and no library speaks before
    assert "\nsmall: fits\n" in done.stdout
