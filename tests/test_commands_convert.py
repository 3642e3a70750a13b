"""``dinomed3d convert``: a checkpoint of the authors predicts here, starts stage 2 or is trained on; or is refused."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.network_architecture import VARIANTS, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.variants import Variant
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.registry import BASE, trainer_class
from nnunetv2_dinomed3d.weights import load_reference_checkpoint
from nnunetv2_dinomed3d.weights.stage1 import read_stage1_checkpoint
from tests.released_checkpoints import VIT, parameters, released_shapes, value

pytestmark = pytest.mark.own

WIDTH, DEPTH, CLASSES = 96, 4, 2
TRAINER = f"{BASE}_T_released"


@pytest.fixture(autouse=True)
def reference_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest variant with weights is as small as the reference files, so that they convert like real ones."""
    vit = VARIANTS["small"].vit_name
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3, "init_values": 0.1}
    monkeypatch.setitem(VARIANTS, "tiny", Variant(vit, vit, size))


@pytest.fixture
def released(shared: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of the released code, of two classes."""

    def write(stage: int, slab_depth: int = 3) -> Path:
        shapes = parameters(shared)
        if stage == 2:
            listed = released_shapes(shapes[2], WIDTH, DEPTH, rank=16, classes=CLASSES)
        else:
            listed = [
                (name, (CLASSES, *shape[1:]) if name.startswith("head.") else shape)
                for name, shape in shapes[1].items()
            ]
        state = {name: torch.from_numpy(value(name, shape)).float() for name, shape in listed}
        for name, tensor in state.items():
            if tensor.ndim == 4 and tensor.shape[-1] == 16:  # patch embedding, and its LoRA
                state[name] = tensor[:, torch.arange(slab_depth) % 3].clone()
        path = tmp_path / f"stage{stage}_best.pth"
        torch.save({"model_state_dict": state, "epoch": 12}, path)
        return path

    return write


@pytest.fixture
def plans(preprocessed: Path, tmp_path: Path) -> Path:
    """nnU-Net's plans with a patch of the paper's kind, of in-plane scale 1."""
    content = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_fullres"]["patch_size"] = [3, 368, 32]
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    return path


def plans_of(plans: Path) -> tuple[PlansManager, ConfigurationManager]:
    manager = PlansManager(json.loads(plans.read_text()))
    return manager, manager.get_configuration("3d_fullres")


def convert_model(source: Path, plans: Path, preprocessed: Path, out: Path) -> int:
    dataset = str(preprocessed / "dataset.json")
    return main(["convert", str(source), "-o", str(out), "--plans", str(plans), "--dataset-json", dataset])


@pytest.mark.end_to_end
def test_stage2_becomes_a_model_folder_that_predicts(
    released: Callable[..., Path], plans: Path, preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = released(2)
    assert convert_model(source, plans, preprocessed, tmp_path / "model") == 0
    assert f"Its trainer here is {TRAINER}" in capsys.readouterr().out

    # without the weighting of windows, which nnU-Net does in float16
    predictor = nnUNetPredictor(
        use_mirroring=True,
        use_gaussian=False,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(tmp_path / "model"), ("all",), "checkpoint_final.pth")
    assert predictor.trainer_name == TRAINER
    volume = torch.randn(1, 3, 368, 32, generator=torch.Generator().manual_seed(0))
    logits = predictor.predict_logits_from_preprocessed_data(volume)

    # LoRA on the patch embedding folded into it, where the trainer's network keeps it beside
    network = build_dinomed3d("tiny", 1, CLASSES, (16, 512, 512), depth_alignment="released").eval()
    load_reference_checkpoint(network, torch.load(source))
    with torch.no_grad():
        expected = network(volume[None])[0]
    torch.testing.assert_close(logits.float(), expected, rtol=1e-3, atol=1e-3)


def test_k_of_the_file(released: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(released(2, slab_depth=5)), "-o", str(tmp_path / "out.pth")]) == 0
    assert f"{BASE}_T_K5_released" in capsys.readouterr().out


def test_stage2_becomes_a_file_for_pretrained_weights(
    released: Callable[..., Path], plans: Path, preprocessed: Path, tmp_path: Path
) -> None:
    """Also for another number of classes."""
    assert main(["convert", str(released(2)), "-o", str(tmp_path / "new" / "out.pth")]) == 0
    checkpoint = torch.load(tmp_path / "new" / "out.pth", weights_only=True)
    network = trainer_class(TRAINER).build_network_architecture(*plans_of(plans), 1, CLASSES + 3)
    load_pretrained_weights(network, str(tmp_path / "new" / "out.pth"))  # what nnUNetv2_train -pretrained_weights calls
    for name, tensor in network.state_dict().items():
        if ".seg_layers." not in name:
            assert torch.equal(tensor, checkpoint["network_weights"][name]), name


def test_stage1_starts_our_stage_2(
    released: Callable[..., Path],
    make_trainer: Callable[..., nnUNetTrainerDINOMed3D],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = released(1), tmp_path / "stage1.pth"
    assert main(["convert", str(source), "-o", str(out)]) == 0
    monkeypatch.setenv("DINOMED3D_STAGE1", str(out))
    trainer = make_trainer(trainer_class(TRAINER))
    trainer.on_train_start()
    assert trainer.stage == trainer.module.stage == 2
    assert trainer.num_epochs == 50
    theirs = torch.load(source)["model_state_dict"]
    ice = trainer.module.encoder.ice.conv.weight[:, 0]
    assert torch.equal(ice, theirs["backbone.model.patch_embed.proj.weight"])
    log = Path(trainer.log_file).read_text()
    assert "Stage 1 is skipped. Stage 2 starts from stage1.pth" in log
    assert "data set and fold unknown" in log
    assert read_stage1_checkpoint(out).dataset is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no file", "is no file"),
        ("exists", "exists and is not written over"),
        ("incomplete", r"1 tensor does not fit.*decoder\.upernet\.laterals\.1\.0\.weight"),
        ("width", "a ViT of width 100 and depth 4, which no variant has. The variants are nano, tiny, small"),
        ("ours", "no checkpoint of the released DINO-Med3D code"),
        ("no DINOv3", r"without a DINOv3 file.*cannot be converted: predict with the released code, or train"),
        ("K", r"There is no trainer 'nnUNetTrainerDINOMed3D_T_K7_released'"),
    ],
)
def test_what_cannot_be_converted(
    fault: str, message: str, released: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = released(2, slab_depth=7 if fault == "K" else 3), tmp_path / "out.pth"
    checkpoint = torch.load(source)
    state = checkpoint["model_state_dict"]
    if fault == "no file":
        source.unlink()
    elif fault == "exists":
        out.touch()
    elif fault == "incomplete":
        del state["decoder.fpn_in.1.0.weight"]
    elif fault == "no DINOv3":
        state[f"{VIT[2]}blocks.1.attn.qkv.base_layer.bias"][2 * WIDTH :] += 0.1
    elif fault == "width":
        state = {
            name: torch.zeros(100, *tensor.shape[1:]) if "patch_embed.proj.base_layer" in name else tensor
            for name, tensor in state.items()
        }
    elif fault == "ours":
        state = build_dinomed3d("nano", 1, 2, (3, 32, 32)).state_dict()
    if source.exists():
        torch.save({"model_state_dict": state}, source)
    assert main(["convert", str(source), "-o", str(out)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert out.exists() == (fault == "exists")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stage 1", "stage 1, which alone makes no model folder"),
        ("patch", r"patch size \[10, 32, 28\].*in-plane scale 1"),
        ("configuration", "no configuration '3d_fullres'; it has 2d"),
        ("classes", "1 image channel and 2 classes.* 1 and 3: it is of another data set"),
        ("json", "is no valid JSON"),
    ],
)
def test_what_makes_no_model_folder(
    fault: str,
    message: str,
    released: Callable[..., Path],
    plans: Path,
    preprocessed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = released(1 if fault == "stage 1" else 2)
    (tmp_path / "data").mkdir()
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    content = json.loads(plans.read_text())
    if fault == "patch":
        content["configurations"]["3d_fullres"]["patch_size"] = [10, 32, 28]
    elif fault == "configuration":
        content["configurations"] = {"2d": copy.deepcopy(content["configurations"]["2d"])}
    elif fault == "classes":
        dataset["labels"]["another"] = 2
    plans.write_text("not JSON" if fault == "json" else json.dumps(content))
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(dataset))
    assert convert_model(source, plans, tmp_path / "data", tmp_path / "model") == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "model").exists()


def test_plans_without_dataset_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "in.pth", "-o", str(tmp_path / "out"), "--plans", "plans.json"]) == 1
    assert "needs both --plans and --dataset-json" in capsys.readouterr().err


def test_commands_to_paste_and_plans_that_are_none(
    released: Callable[..., Path], preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A space or a command in a path does nothing; lists where dicts belong are one line, and leave nothing."""
    out = tmp_path / "my $(touch made) file'.pth"
    assert main(["convert", str(released(1)), "-o", str(out)]) == 0
    assert f"export DINOMED3D_STAGE1={shlex.quote(str(out))}" in capsys.readouterr().out
    plans = tmp_path / "odd.json"
    contents: list[Any] = [[], {"configurations": []}, {"configurations": {"3d_fullres": []}}]
    for content in contents:
        plans.write_text(json.dumps(content))
        assert convert_model(released(2), plans, preprocessed, tmp_path / "made" / "model") == 1
        assert "odd.json" in capsys.readouterr().err
        assert not (tmp_path / "made").exists()


def test_disk_that_is_full(
    released: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left that the next try would call existing; where nothing can be written is told before reading."""
    source = released(1)

    def fail(content: object, path: Path) -> None:
        Path(path).write_bytes(bytes(1000))
        raise RuntimeError("[enforce fail at inline_container.cc:919] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fail)
    there = set(tmp_path.iterdir())
    assert main(["convert", str(source), "-o", str(tmp_path / "below" / "out.pth")]) == 1
    assert re.search(r"out.pth could not be written .*PytorchStreamWriter", capsys.readouterr().err)
    assert set(tmp_path.iterdir()) == there
    monkeypatch.setattr("nnunetv2_dinomed3d.weights.read_reference", lambda path: pytest.fail("read in vain"))
    for out in (source / "out.pth", Path("/proc/nothing/out.pth")):
        assert main(["convert", str(source), "-o", str(out)]) == 1
        assert "out.pth cannot be written: " in capsys.readouterr().err
