"""Pretrained weights of SwinUNETR and VoCo: known by content, complete or refused, never silently part of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.weights.report import describe_weights
from nnunetv2_dinomed3d.weights.swin_unetr import start_swin_unetr
from tests.command_line import dinomed3d

VARIABLE = "DINOMED3D_WEIGHTS"


def network(name: str = "VoCo_B", in_channels: int = 1, num_classes: int = 2, **changes: Any) -> Any:
    return build_baseline(name, in_channels, num_classes, (64, 64, 64), **{"feature_size": 12, **changes})


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    """A whole network's tensors by MONAI's names, with a head for 21 classes."""
    torch.manual_seed(1)
    return network(num_classes=21).network.state_dict()


def part(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def written(folder: Path, name: str, content: Any, monkeypatch: pytest.MonkeyPatch | None = None) -> Path:
    """The file, which the variable names if ``monkeypatch`` is given."""
    file = folder / name
    torch.save(content, file)
    if monkeypatch:
        monkeypatch.setenv(VARIABLE, str(file))
    return file


def swinvit(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """As MONAI's model_swinvit.pt has it."""
    names = {name: name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc") for name in part(state, "swinViT.")}
    tensors = {f"module.{new}": state[name] for name, new in names.items()}
    heads = {"module.norm.weight": torch.ones(3), "module.rotation_head.bias": torch.ones(4)}
    return {"epoch": 5, "state_dict": {**tensors, **heads}}


def encoders(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """As VoCo_B_SSL_head.pt has it: transformer and encoders."""
    names = {name: name.replace("swinViT.", "swin_vit.") for name in part(state, "swinViT.", "encoder")}
    return {"student": {f"module.backbone.{new}": state[name] for name, new in names.items()}}


def test_a_whole_network_but_its_head(
    pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "VoComni_B.pt", {"state_dict": pretrained}, monkeypatch)
    ours = network()
    head = ours.network.out.conv.conv.weight.detach().clone()
    origin, message = start_swin_unetr(ours, "VoCo_B", required=True)
    assert origin.startswith("VoComni_B.pt, SHA-256 ")
    count = len(pretrained)
    assert f"Pretrained weights: {count - 2} of {count} tensors" in message
    assert "Random: out." in message
    assert "Its head is for other classes." in message
    assert ours.weights_loaded
    state = ours.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in pretrained.items() if not name.startswith("out."))
    assert torch.equal(state["out.conv.conv.weight"], head)


def test_voco_s_encoders(pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "VoCo_B_SSL_head.pt", encoders(pretrained), monkeypatch)
    ours = network()
    _, message = start_swin_unetr(ours, "VoCo_B", required=True)
    assert "Random: decoder5, decoder4, decoder3, decoder2, decoder1, out." in message
    name = "encoder10.layer.conv1.conv.weight"
    assert torch.equal(ours.network.state_dict()[name], pretrained[name])


def test_swinvit_brings_the_old_patch_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    state = network("SwinUNETR").network.state_dict()
    written(tmp_path, "model_swinvit.pt", swinvit(state), monkeypatch)
    ours = network("SwinUNETR")
    assert ours.merging == "all"
    _, message = start_swin_unetr(ours, "SwinUNETR", required=False)
    assert ours.merging == "legacy"
    assert f"{len(part(state, 'swinViT.'))} of {len(state)} tensors from model_swinvit.pt" in message
    assert "2 tensors of its pre-training are left: norm.weight, rotation_head.bias" in message
    for name, tensor in part(state, "swinViT.").items():
        assert torch.equal(ours.network.state_dict()[name], tensor), name


def test_channels_are_spread(pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "VoCo_B_SSL_head.pt", encoders(pretrained), monkeypatch)
    one, four = network(), network(in_channels=4)
    start_swin_unetr(one, "VoCo_B", required=True)
    _, message = start_swin_unetr(four, "VoCo_B", required=True)
    assert "Its first convolutions are spread over the 4 channels." in message
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        of_one, of_four = (
            one.network.eval().swinViT(image),
            four.network.eval().swinViT(image.expand(-1, 4, -1, -1, -1)),
        )
    for few, many in zip(of_one, of_four, strict=True):
        torch.testing.assert_close(few, many, atol=1e-4, rtol=1e-4)


def without_a_block(state: dict[str, Tensor]) -> None:
    del state["swinViT.layers2.0.blocks.0.norm1.weight"]


def with_something_unknown(state: dict[str, Tensor]) -> None:
    state["decoder9.weight"] = torch.ones(1)


def of_three_channels(state: dict[str, Tensor]) -> None:
    state["swinViT.patch_embed.proj.weight"] = torch.ones(12, 3, 2, 2, 2)


def with_half_of_the_encoders(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.startswith(("encoder2", "decoder", "out"))]:
        del state[name]


@pytest.mark.parametrize(
    "spoil", [without_a_block, with_something_unknown, of_three_channels, with_half_of_the_encoders]
)
def test_what_fits_in_part_is_refused(
    spoil: Any, pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = dict(pretrained)
    spoil(state)
    written(tmp_path, "VoComni_B.pt", state, monkeypatch)
    ours = network()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError, match="nothing fits VoCo_B"):
        start_swin_unetr(ours, "VoCo_B", required=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_another_size_is_refused(
    pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "VoComni_B.pt", pretrained, monkeypatch)
    with pytest.raises(ValueError, match=r"expected \(24, 1, 2, 2, 2\), found \(12, 1, 2, 2, 2\)"):
        start_swin_unetr(network(feature_size=24), "VoCo_L", required=True)


def test_a_whole_network_is_not_for_swin_unetr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = network("SwinUNETR")
    written(tmp_path, "mine.pt", ours.network.state_dict(), monkeypatch)
    with pytest.raises(ValueError, match="which order of patch merging"):
        start_swin_unetr(ours, "SwinUNETR", required=False)


def test_a_folder_of_several(pretrained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    written(tmp_path, "dinov3.pth", {"cls_token": torch.ones(1)})
    _, message = start_swin_unetr(network("SwinUNETR"), "SwinUNETR", required=False)
    assert "starts from random weights: the folder that DINOMED3D_WEIGHTS names holds no weights of a" in message
    with pytest.raises(ValueError, match=r"VoCo_B starts from pretrained weights, and the folder .* holds no weights"):
        start_swin_unetr(network(), "VoCo_B", required=True)
    written(tmp_path, "large.pt", network(feature_size=24).network.state_dict())
    written(tmp_path, "VoComni_B.pt", pretrained)
    origin, _ = start_swin_unetr(network(), "VoCo_B", required=True)
    assert origin.startswith("VoComni_B.pt")
    written(tmp_path, "again.pt", pretrained)
    with pytest.raises(ValueError, match=r"VoComni_B\.pt and again\.pt both fit VoCo_B"):
        start_swin_unetr(network(), "VoCo_B", required=True)


def test_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    origin, message = start_swin_unetr(network("SwinUNETR"), "SwinUNETR", required=False)
    assert (origin, message) == (
        "random weights",
        "SwinUNETR starts from random weights: DINOMED3D_WEIGHTS is not set.",
    )
    with pytest.raises(ValueError, match=r"DINOMED3D_WEIGHTS is not set. Set .* VoComni_\*.pt"):
        start_swin_unetr(network(), "VoCo_B", required=True)
    monkeypatch.setenv(VARIABLE, "random")
    assert "as asked for" in start_swin_unetr(network(), "VoCo_B", required=True)[1]


def test_a_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere.pt")
    with pytest.raises(ValueError, match=r"which does not exist. .*to the word random for no pretrained weights\.$"):
        start_swin_unetr(network(), "VoCo_B", required=True)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "dinov3.pth", {"cls_token": torch.ones(1)}, monkeypatch)
    with pytest.raises(ValueError, match=r"dinov3.pth holds no weights of a SwinUNETR"):
        start_swin_unetr(network("SwinUNETR"), "SwinUNETR", required=False)


@pytest.mark.end_to_end
def test_the_check_names_the_trainers(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = network("SwinUNETR", feature_size=48).network.state_dict()
    state = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in state.items()}
    file = written(tmp_path, "model_swinvit.pt", swinvit(state))
    report = describe_weights(file)
    assert report.usable
    assert report.lines[-1].endswith("and the trainer nnUNetTrainerBaseline_SwinUNETR.")
    assert any(line.startswith("VoCo_B: does not fit.") for line in report.lines)
    done = dinomed3d("weights", "--check", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == report.lines
