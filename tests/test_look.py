"""``dinomed3d look``: the picture shows what it says, of every kind of trainer; what cannot be shown is refused."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from safetensors.torch import save_file

from nnunetv2_dinomed3d.commands.look import load_model, look
from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.look.case import Case, choose_slices, load_case
from nnunetv2_dinomed3d.look.features import (
    Windows,
    encoder_features,
    feature_colours,
    fusion_gate,
    principal_components,
)
from nnunetv2_dinomed3d.look.figure import Column, draw, label_names
from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.ablations import (
    nnUNetTrainerDINOMed3D_frozen,
    nnUNetTrainerDINOMed3D_noDetail,
    nnUNetTrainerDINOMed3D_noStage1,
)
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.conftest import DATASET
from tests.test_weights_files import Malicious

NANO = "nnUNetTrainerDINOMed3D_nano"


@pytest.fixture
def network() -> DINOMed3D:
    torch.manual_seed(0)
    network = build_dinomed3d("nano", 1, 2, (4, 32, 32))
    stir_lora(network)
    return network


def stir_lora(network: torch.nn.Module) -> None:
    """LoRA that does something, as after a training."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.fixture
def model_folder(make_trainer: Callable[..., nnUNetTrainer]) -> Callable[..., Path]:
    """Make the model folder of a trainer as it is before its first epoch."""

    def make(trainer_class: type[nnUNetTrainer], stage: int = 2) -> Path:
        trainer = make_trainer(trainer_class)
        torch.manual_seed(0)
        trainer.initialize()
        if isinstance(trainer, nnUNetTrainerDINOMed3D):
            trainer._begin_stage(stage)
            stir_lora(trainer.module)
        folder = Path(trainer.output_folder)
        for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
            (folder.parent / f"{name}.json").write_text(json.dumps(content))
        trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
        return folder.parent

    return make


@pytest.fixture
def nano_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of weights of the nano size, as if DINOv3 had that size."""
    monkeypatch.setitem(VARIANTS, "nano", replace(VARIANTS["nano"], weights_name="vit_small_patch16_dinov3"))
    shapes = build_dinomed3d("nano", 1, 2, (4, 32, 32)).pretrained_shapes()
    torch.manual_seed(1)
    file = tmp_path / "model.safetensors"
    save_file({name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}, file)
    return file


def picture(trainer: str, wanted: list[int] | None = None) -> Figure:
    model = load_model(DATASET, trainer, "nnUNetPlans", "3d_fullres", "0", "checkpoint_final.pth")
    predictor = model.predictor
    case = load_case(
        "case_0", DATASET, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    return look(model, case, wanted)


def titles(figure: Figure) -> list[str]:
    """Of the columns, in order, on one line."""
    return [axis.get_title().replace("\n", " ").split(" channels")[0] for axis in figure.axes if axis.get_title()]


def drawn(figure: Figure, title: str) -> np.ndarray:
    """What lies on top in the first row of a column."""
    axis = next(axis for axis in figure.axes if axis.get_title().replace("\n", " ").startswith(title))
    return axis.get_images()[-1].get_array()


# ---- the command ----


def test_command(model_folder: Callable[..., Path], preprocessed: Path, tmp_path: Path, capsys) -> None:
    model_folder(trainer_class(NANO))
    out = tmp_path / "out"
    assert main(["look", "case_1", "-d", "901", "-tr", NANO, "-o", str(out), "--slices", "2", "5"]) == 0
    png = out / f"case_1__{NANO}.png"
    assert str(png) in capsys.readouterr().out
    first = png.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert len(first) > 20_000
    assert main(["look", "case_1", "-d", "901", "-tr", NANO, "-o", str(out), "--slices", "2", "5"]) == 0
    assert png.read_bytes() == first, "twice the same picture"


def test_what_is_refused(
    model_folder: Callable[..., Path], nano_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    model_folder(trainer_class(NANO))
    model_folder(nnUNetTrainer)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    raw = tmp_path / "case_0.nii.gz"
    for words, message in (
        (["case_0", "-tr", "nnUNetTrainer"], "nnUNetTrainer has no slab encoder"),
        (["case_0", "-tr", "nnUNetTrainerDINOMed3D"], r"does not exist. Train nnUNetTrainerDINOMed3D first"),
        (["case_0", "-tr", NANO, "-chk", "no.pth"], r"no.pth does not exist"),
        (["case_7", "-tr", NANO], "There is no case 'case_7' .* but case_0, case_1"),
        ([str(raw), "-tr", NANO], "ends with _0000.nii.gz"),
        ([str(tmp_path / "case_0_0000.nii.gz"), "-tr", NANO], "case_0_0000.nii.gz does not exist"),
        (["case_0", "-tr", NANO, "--slices", "99"], "--slices 99: .* slices, 0 to"),
        (["case_0", "-tr", NANO], "could not be fetched .* set DINOMED3D_WEIGHTS="),
    ):
        assert main(["look", *words, "-d", "901", "-o", str(tmp_path / "out")]) == 1
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# ---- what is read is not run ----


def test_nothing_that_is_read_is_run(model_folder: Callable[..., Path], preprocessed: Path, tmp_path: Path) -> None:
    """A colleague's results folder and data set: neither the checkpoint nor the pickle beside a case is unpickled."""
    fold = model_folder(trainer_class(NANO)) / "fold_0"
    made = tmp_path / "made_by_the_code"
    torch.save({"network_weights": Malicious(made), "trainer_name": NANO}, fold / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth holds posix.mkdir.*never run"):
        load_model(DATASET, NANO, "nnUNetPlans", "3d_fullres", "0", "evil.pth")
    model = load_model(DATASET, NANO, "nnUNetPlans", "3d_fullres", "0", "checkpoint_final.pth")
    predictor = model.predictor
    pickled = preprocessed / predictor.configuration_manager.data_identifier / "case_0.pkl"
    content = pickled.read_bytes()
    try:
        pickled.write_bytes(pickle.dumps(Malicious(made)))
        case = load_case(
            "case_0", DATASET, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
    finally:
        pickled.write_bytes(content)
    assert case.truth is not None
    assert not made.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-chk", "../fold_0/checkpoint_final.pth"], "-chk '../fold_0/checkpoint_final.pth' is a name, not a path"),
        (["-p", ".."], "-p '..' is a name"),
        (["-f", "../x"], "-f '../x' is no fold"),
        (["-f", "3"], r"fold_3/checkpoint_final.pth does not exist.*there are the folds 0"),
    ],
)
def test_names_that_are_paths(words: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """What is looked at lies in nnUNet_results; the folds that are there are named."""
    (tmp_path / DATASET / f"{NANO}__nnUNetPlans__3d_fullres" / "fold_0").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert main(["look", "case_0", "-d", "901", "-tr", NANO, *words, "-o", str(tmp_path / "out")]) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("plans.json", "[]", "plans.json is no plans file of nnU-Net"),
        ("plans.json", "[" * 100_000, "plans.json is no valid JSON"),
        ("plans.json", '{"configurations": {"3d_fullres": {"patch_size": [1e9]}}}', "plans.json is no plans file"),
        ("dataset.json", "{}", "dataset.json: there are no labels"),
        ("dataset.json", None, "dataset.json is no file"),
    ],
)
def test_odd_model_folder(
    file: str, content: str | None, message: str, nnunet_environment: dict[str, str], tmp_path: Path, monkeypatch
) -> None:
    """Written by hand, or by a stranger: one line that names the file."""
    folder = tmp_path / DATASET / f"{NANO}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    description = {"labels": {"background": 0, "box": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    checkpoint = {"network_weights": {}, "trainer_name": NANO, "init_args": {"configuration": "3d_fullres"}}
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    if content is None:
        (folder / file).unlink()
        os.mkfifo(folder / file)
    else:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_model(DATASET, NANO, "nnUNetPlans", "3d_fullres", "0", "checkpoint_final.pth")


def write_volume(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def load_raw(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str | None]:
    """Read a raw image of two channels without a model; the truth's path stands in the segmentation."""
    seen: list[str | None] = []

    class Preprocessor:
        def __init__(self, verbose: bool) -> None: ...

        def run_case(self, images: list[str], labels: str | None, *rest: object) -> tuple:
            seen.append(labels)
            return np.zeros((2, 4, 9, 9), np.float32), np.zeros((1, 4, 9, 9)), {}

    monkeypatch.setattr("nnunetv2_dinomed3d.look.case.determine_num_input_channels", lambda *rest: 2)

    def load(file: str) -> str | None:
        load_case(file, DATASET, None, SimpleNamespace(preprocessor_class=Preprocessor), {"file_ending": ".nii.gz"})
        return seen[-1]

    return load


def test_truth_of_a_raw_image(load_raw: Callable[[str], str | None], tmp_path: Path, monkeypatch) -> None:
    """It lies in labelsTr beside imagesTr; a file of its name elsewhere is an image, a prediction, somebody else's."""
    image, labels = np.zeros((4, 9, 9), np.float32), np.zeros((4, 9, 9), np.uint8)
    for folder in ("imagesTr", "plain", "my_images"):
        for channel in ("0000", "0001"):
            write_volume(tmp_path / folder / f"case_{channel}.nii.gz", image)
    for folder in ("labelsTr", "plain", "my_labels", "my_images"):
        write_volume(tmp_path / folder / "case.nii.gz", labels)
    assert load_raw(str(tmp_path / "imagesTr" / "case_0000.nii.gz")) == str(tmp_path / "labelsTr" / "case.nii.gz")
    for folder in ("plain", "my_images"):
        monkeypatch.chdir(tmp_path / folder)
        for name in ("case_0000.nii.gz", "./case_0000.nii.gz", str(tmp_path / folder / "case_0000.nii.gz")):
            assert load_raw(name) is None, name
    monkeypatch.chdir(tmp_path / "imagesTr")
    assert load_raw("case_0000.nii.gz") == str(tmp_path / "labelsTr" / "case.nii.gz")


def test_raw_images_that_are_none(load_raw: Callable[[str], str | None], tmp_path: Path) -> None:
    """Damaged ones, channels of two sizes, a pipe, labels that are none: named before anything is preprocessed."""
    first, second = (tmp_path / "imagesTr" / f"case_{channel}.nii.gz" for channel in ("0000", "0001"))
    write_volume(first, np.zeros((4, 9, 9), np.float32))
    write_volume(second, np.zeros((4, 9, 8), np.float32))
    with pytest.raises(ValueError, match=r"case_0001.nii.gz has .* the channels of a case are of one size"):
        load_raw(str(first))
    content = first.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"case_0001.nii.gz .*cut off"):
        load_raw(str(first))
    second.unlink()
    os.mkfifo(second)
    with pytest.raises(ValueError, match=r"case_0001.nii.gz is no file"):
        load_raw(str(first))
    second.unlink()
    second.write_bytes(content)
    write_volume(tmp_path / "labelsTr" / "case.nii.gz", np.full((4, 9, 9), -1, np.int16))
    with pytest.raises(ValueError, match=r"labelsTr/case.nii.gz holds -1"):
        load_raw(str(first))


def test_preprocessed_case_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, missing its labels, or a few bytes that unpack to all of the memory."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / DATASET / "data"
    folder.mkdir(parents=True)
    configuration = SimpleNamespace(data_identifier="data")

    def load() -> Case:
        return load_case("case", DATASET, None, configuration, {"file_ending": ".nii.gz"})

    array, seg = np.ones((1, 4, 9, 9), np.float32), np.ones((1, 4, 9, 9), np.int8)
    blosc2.asarray(array, urlpath=str(folder / "case.b2nd"), mode="w")
    with pytest.raises(ValueError, match=r"case.b2nd cannot be read .*_seg.b2nd does not exist"):
        load()
    blosc2.asarray(seg, urlpath=str(folder / "case_seg.b2nd"), mode="w")
    assert torch.equal(load().image, torch.from_numpy(array))
    whole = (folder / "case.b2nd").read_bytes()
    (folder / "case.b2nd").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"case.b2nd cannot be read"):
        load()
    blosc2.zeros((1, 10_000, 10_000, 10_000), np.float32, urlpath=str(folder / "case.b2nd"), mode="w")
    with pytest.raises(ValueError, match="shall hold an array of 4,000,000,000,000"):
        load()
    (folder / "case.b2nd").unlink()
    np.savez_compressed(folder / "case.npz", data=array, seg=seg)
    assert torch.equal(load().image, torch.from_numpy(array))
    np.savez(folder / "case.npz", data=array, seg=np.array([Malicious(tmp_path / "made")], object))
    with pytest.raises(ValueError, match=r"case.npz cannot be read"):
        load()
    assert not (tmp_path / "made").exists()


# ---- which columns ----


def test_before_and_after_stage_1(
    model_folder: Callable[..., Path], nano_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(trainer_class(NANO))
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(nano_weights))
    figure = picture(NANO)
    assert titles(figure) == [
        "image",
        "truth",
        "features before stage 1",
        "features after stage 1",
        "features after stage 2 (LoRA)",
        "gate, mean of",
        "prediction",
    ]
    features = [drawn(figure, f"features {when}") for when in ("before", "after stage 1", "after stage 2")]
    assert all(picture.shape == (*drawn(figure, "image").shape, 3) for picture in features)
    assert not any(np.allclose(a, b) for a, b in pairwise(features)), "each is its own"
    assert "model.safetensors" in figure.get_suptitle()
    assert len([axis for axis in figure.axes if axis.get_ylabel().startswith("slice")]) == 3


def test_without_weights_there_is_no_before(
    model_folder: Callable[..., Path], nano_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(trainer_class(NANO))
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "random")
    figure = picture(NANO)
    assert "features before stage 1" not in titles(figure)
    assert "random weights (DINOMED3D_WEIGHTS=random)" in figure.get_suptitle().replace("\n", " ")
    monkeypatch.setitem(VARIANTS, "nano", replace(VARIANTS["nano"], weights_name=None))
    figure = picture(NANO)
    assert "features before stage 1" not in titles(figure)
    assert "no DINOv3 weights of this size" in figure.get_suptitle().replace("\n", " ")


@pytest.mark.parametrize(
    ("part", "stage", "features", "why"),
    [
        (nnUNetTrainerDINOMed3D_noDetail, 2, ["after stage 1", "after stage 2 (LoRA)"], "no fusion: no detail stream"),
        (nnUNetTrainerDINOMed3D_noStage1, 2, ["of the frozen encoder", "after stage 2 (LoRA)"], None),
        (nnUNetTrainerDINOMed3D_frozen, 1, ["of the frozen encoder"], "no fusion: stage 1"),
    ],
)
def test_columns_of_the_ablations(
    part: type, stage: int, features: list[str], why: str | None, model_folder: Callable[..., Path]
) -> None:
    name = f"{NANO}_{part.__name__.rpartition('_')[2]}"
    model_folder(trainer_class(name), stage)
    figure = picture(name)
    gate = [] if why else ["gate, mean of"]
    assert titles(figure) == ["image", "truth", *(f"features {which}" for which in features), *gate, "prediction"]
    assert (why or "") in figure.get_suptitle()


# ---- what is in them ----


def test_prediction_is_nnunets(model_folder: Callable[..., Path]) -> None:
    model_folder(trainer_class(NANO))
    figure = picture(NANO, [4])
    model = load_model(DATASET, NANO, "nnUNetPlans", "3d_fullres", "0", "checkpoint_final.pth")
    predictor = model.predictor
    case = load_case(
        "case_0", DATASET, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    logits = predictor.predict_logits_from_preprocessed_data(case.image)
    expected = np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits))[4]
    assert np.array_equal(~np.ma.getmaskarray(drawn(figure, "prediction")), expected > 0)
    assert np.array_equal(drawn(figure, "image"), case.image[0, 4].numpy())


def test_raw_image_is_the_preprocessed_case(model_folder: Callable[..., Path], nnunet_environment) -> None:
    model_folder(trainer_class(NANO))
    model = load_model(DATASET, NANO, "nnUNetPlans", "3d_fullres", "0", "checkpoint_final.pth")
    predictor = model.predictor
    rest = (DATASET, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
    raw = Path(nnunet_environment["nnUNet_raw"]) / DATASET / "imagesTr" / "case_0_0000.nii.gz"
    found, expected = load_case(str(raw), *rest), load_case("case_0", *rest)
    assert found.name == expected.name
    torch.testing.assert_close(found.image, expected.image)
    assert np.array_equal(found.truth, expected.truth)


@pytest.mark.parametrize("shape", [(5, 40, 70), (3, 20, 70), (9, 32, 32)])
def test_windows_cover_a_slice(shape: tuple[int, int, int]) -> None:
    volume = torch.randn(1, *shape)
    windows = Windows(volume, (4, 32, 32))
    for index in (0, shape[0] // 2, shape[0] - 1):
        patches, place = windows.patches(index)
        assert all(patch.shape == (1, 1, 4, 32, 32) for patch in patches)
        assert torch.equal(windows.join([patch[0, :, place] for patch in patches]), volume[:, index])
        slabs = windows.slabs(index, 3)
        assert all(slab.shape == (1, 1, 3, 32, 32) for slab in slabs)
        assert torch.equal(windows.join([slab[0, :, 1] for slab in slabs]), volume[:, index])
        if index == 0:
            assert all(slab[0, :, 0].abs().max() == 0 for slab in slabs), "zero slices are outside"


@pytest.mark.parametrize("lora", [False, True])
def test_features_are_the_encoders(network: DINOMed3D, lora: bool) -> None:
    """Of a volume of the patch's size, as the encoder gives them in one go, its boundary slices included."""
    volume = torch.randn(1, 4, 32, 32)
    windows = Windows(volume, (4, 32, 32))
    found = encoder_features(network, windows, [0, 2, 3], lora)
    assert (network.stage, network.training) == (2, True), "the network is as it was"
    network.eval()
    network.set_stage(2 if lora else 1)
    seen = []
    network.encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(volume[None])
    for parts, index in zip(found, [0, 2, 3], strict=True):
        torch.testing.assert_close(parts[0], seen[0][-1][0, :, index], rtol=1e-4, atol=1e-4)


def test_gate_is_the_fusions(network: DINOMed3D) -> None:
    network.eval()
    with torch.no_grad():
        network.fusion.gate.weight.zero_()
        network.fusion.gate.bias.fill_(1.0)
    windows = Windows(torch.randn(1, 5, 40, 36), (4, 32, 32))
    gates = fusion_gate(network, windows, [0, 4])
    for gate in gates:
        torch.testing.assert_close(gate, torch.full((40, 36), torch.sigmoid(torch.tensor(1.0)).item()))
    with torch.no_grad():
        torch.nn.init.normal_(network.fusion.gate.weight)
    assert fusion_gate(network, windows, [0])[0].std() > 1e-3


def test_principal_components() -> None:
    """Of points along known directions; the sign does not depend on the solver's mood."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8)).Q[:, :3]
    tokens = torch.randn(500, 3) * torch.tensor([9.0, 3.0, 1.0]) @ directions.T + 5
    axes = principal_components(tokens)
    assert (axes * directions).sum(dim=0).abs() == pytest.approx(torch.ones(3), abs=0.05)
    assert (axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()
    torch.testing.assert_close(principal_components(tokens.flip(0)), axes, rtol=1e-3, atol=1e-3)


def test_colours_tell_regions_apart() -> None:
    """Tokens of two kinds get two colours, at the place of their voxels."""
    windows = Windows(torch.zeros(1, 1, 32, 64), (1, 32, 64))
    part = torch.zeros(8, 2, 4)
    part[:, :, 2:] = torch.arange(8.0)[:, None, None]
    (colours,) = feature_colours([[part + 1e-3 * torch.randn(part.shape)]], windows, 16)
    assert colours.shape == (32, 64, 3)
    assert (colours[:, :32, 0].mean() - colours[:, 32:, 0].mean()).abs() > 0.9


def test_slices_are_chosen_where_labels_are() -> None:
    labels = np.zeros((20, 4, 4), int)
    labels[5:14, 1, 1] = 1
    assert choose_slices(None, labels) == [6, 9, 12]
    assert choose_slices(None, np.zeros((2, 4, 4))) == [0, 1]
    assert choose_slices([19, 0], labels) == [19, 0]
    with pytest.raises(ValueError, match="--slices 20"):
        choose_slices([20], labels)


def test_names_are_not_markup() -> None:
    """Two dollars are TeX to Matplotlib, which refuses what is no formula, after minutes of prediction."""
    image = np.zeros((4, 4))
    columns = [Column("image", [image], "grey"), Column("truth", [image], "labels")]
    figure = draw("case $x$_: model", "a $b^ file", [0], columns, {1: "_hidden", 2: "$a$ b$"}, 1.0)
    with BytesIO() as file:
        figure.savefig(file, format="png")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_hidden", r"\$a\$ b\$"]


def test_names_of_regions() -> None:
    assert label_names({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}) == {
        1: "whole",
        2: "whole + core",
        3: "ignore",
    }
