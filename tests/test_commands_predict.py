"""``dinomed3d predict``: arguments of nnU-Net's two commands, its files, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_models import configuration, labels, plans, write_model
from nnunetv2_dinomed3d.commands.main import main
from nnunetv2_dinomed3d.nnunet_files import model_name
from tests.command_line import NANO, assert_one_line, dinomed3d
from tests.prediction_cases import ENDING, assert_equal_but_ties, nnunets, read, write_image

Model = tuple[Path, Path]
DATASET = "Dataset902_MadeUp"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with two folds in a folder of results, and images."""
    root = tmp_path_factory.mktemp("predict")
    folder = root / DATASET / model_name("nnUNetTrainer", "nnUNetPlans", "3d_fullres")
    write_model(
        folder,
        plans({"3d_fullres": configuration((1, 1, 1), (8, 16, 16))}),
        "3d_fullres",
        folds=(0, 1),
        labels=labels(3),
    )
    images = write_image(root / "images", "a", (10, 17, 16), (1.5, 0.8, 0.8))
    write_image(images, "b", (9, 16, 16), seed=1)
    return folder, images


@pytest.fixture
def predict(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Call the command in this process; it answers 0. What it printed."""
    monkeypatch.setenv("nnUNet_results", str(model[0].parents[1]))

    def run(*words: object, images: Path = model[1], out: Path = tmp_path / "out") -> str:
        arguments = ["-i", images, "-o", out, "-device", "cpu", "--disable_progress_bar", *words]
        code = main(["predict", *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Call the command in this process; it answers with one line, and writes nothing."""
    monkeypatch.setenv("nnUNet_results", str(model[0].parents[1]))

    def run(pattern: str, *words: object, images: Path = model[1], device: str = "cpu") -> None:
        out = tmp_path / "out"
        code = main(["predict", *map(str, ["-i", images, "-o", out, "-device", device, *words])])
        assert_one_line(code, capsys.readouterr().err, pattern)
        assert not out.exists()

    return run


def test_it_writes_what_nnunet_writes(model: Model, tmp_path: Path, predict: Callable[..., str]) -> None:
    printed = predict("-d", "902", "-c", "3d_fullres", "-f", 0, 1, "--save_probabilities")
    out = tmp_path / "out"
    assert printed.splitlines() == [str(out / f"{name}{ENDING}") for name in ("a", "b")]
    expected = nnunets(model[1], model[0], tmp_path / "nnunet", folds=("0", "1"))
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in expected.iterdir())
    assert_equal_but_ties(expected, out, at_most=2e-4)
    for name in ("dataset.json", "plans.json"):
        assert (out / name).read_text() == (expected / name).read_text()
    arguments = json.loads((out / "predict_from_raw_data_args.json").read_text())
    assert arguments["num_parts"] == 1
    assert json.loads((expected / "predict_from_raw_data_args.json").read_text()).keys() <= arguments.keys()


def test_a_models_folder_and_options(model: Model, tmp_path: Path, predict: Callable[..., str]) -> None:
    words = ("-m", model[0], "-f", 1, "--disable_tta", "-step_size", 1, "-npp", 0, "-nps", 0, "--memory", 0)
    predict(*words)
    options: dict[str, Any] = {"use_mirroring": False, "tile_step_size": 1.0}
    expected = nnunets(model[1], model[0], tmp_path / "nnunet", folds=("1",), **options)
    assert_equal_but_ties(expected, tmp_path / "out", at_most=2e-4)


def test_parts_share_the_cases(model: Model, tmp_path: Path, predict: Callable[..., str]) -> None:
    words = ("-m", model[0], "-f", 0, "--disable_tta", "-num_parts", 2, "-part_id")
    for part, name in enumerate("ab"):
        assert predict(*words, part).split() == [str(tmp_path / "out" / f"{name}{ENDING}")]


def test_it_goes_on_where_it_was_stopped(model: Model, tmp_path: Path, predict: Callable[..., str]) -> None:
    """A whole file is left as it is; one that was cut off is made again."""
    words = ("-m", model[0], "-f", 0, "--disable_tta")
    predict(*words)
    whole, cut = (tmp_path / "out" / f"{name}{ENDING}" for name in "ab")
    before, content = whole.stat().st_mtime_ns, cut.read_bytes()
    cut.write_bytes(content[:-20])
    printed = predict(*words, "--continue_prediction")
    assert printed.splitlines() == ["1 of 2 cases are predicted already.", str(cut)]
    assert whole.stat().st_mtime_ns == before
    assert read(cut).shape == (9, 16, 16)


def test_a_damaged_image_is_named(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cases before it are whole, and nothing of it or of later ones is there."""
    images = tmp_path / "images"
    shutil.copytree(model[1], images)
    damaged = images / f"b_0000{ENDING}"
    damaged.write_bytes(damaged.read_bytes()[:100])
    out = tmp_path / "out"
    words = ["-i", images, "-o", out, "-m", model[0], "-f", 0, "--disable_tta", "-device", "cpu", "-npp", 0]
    code = main(["predict", *map(str, words), "--disable_progress_bar"])
    assert_one_line(code, capsys.readouterr().err, f"b_0000{ENDING} cannot be read")
    assert [file.name for file in out.iterdir() if "json" not in file.name] == [f"a{ENDING}"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("-f '-1' is no fold", ("-d", 902, "-c", "3d_fullres", "-f=-1")),
        ("-f 0 00 names a fold twice", ("-d", 902, "-c", "3d_fullres", "-f", "0", "00")),
        ("fold_2.*There are the folds 0 1: name them with -f", ("-d", 902, "-c", "3d_fullres")),
        ("fold_all/best.pth.*No fold has one", ("-d", 902, "-c", "3d_fullres", "-f", "all", "-chk", "best.pth")),
        ("nnUNetTrainer__nnUNetPlans__2d does not exist", ("-d", 902, "-c", "2d")),
        ("-d needs -c", ("-d", 902)),
        ("-tr '../x' is no name", ("-d", 902, "-c", "3d_fullres", "-tr", "../x")),
        ("-c does not go with -m", ("-m", "somewhere", "-c", "3d_fullres")),
        ("somewhere does not exist", ("-m", "somewhere")),
        ("No data set '903'", ("-d", 903, "-c", "3d_fullres")),
        ("-step_size 0", ("-d", 902, "-c", "3d_fullres", "-step_size", 0)),
        ("-part_id 2 of -num_parts 2", ("-d", 902, "-c", "3d_fullres", "-num_parts", 2, "-part_id", 2)),
        ("--memory nan", ("-d", 902, "-c", "3d_fullres", "--memory", "nan")),
        ("-nps -1", ("-d", 902, "-c", "3d_fullres", "-nps=-1")),
        ("the model is no cascade", ("-d", 902, "-c", "3d_fullres", "-f", 0, "-prev_stage_predictions", "x")),
    ],
)
def test_wrong_arguments(pattern: str, words: tuple[object, ...], refused: Callable[..., None]) -> None:
    refused(pattern, *words)


def test_wrong_files(
    model: Model, tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    refused("No image in", "-m", model[0], "-f", 0, images=tmp_path / "empty")
    refused("is no folder", "-m", model[0], "-f", 0, images=tmp_path / "nowhere")
    refused("-device mps: PyTorch sees none", "-m", model[0], "-f", 0, device="mps")
    monkeypatch.setenv("nnUNet_npp", "many")
    refused("nnUNet_npp is 'many'", "-m", model[0], "-f", 0)


def test_a_damaged_model(model: Model, tmp_path: Path, refused: Callable[..., None]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model[0], copy)
    changed = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps(changed | {"labels": labels(7)}))
    refused("do not fit together.*size mismatch", "-m", copy, "-f", 0)
    checkpoint = copy / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    refused("checkpoint_final.pth is damaged", "-m", copy, "-f", 0)
    (copy / "plans.json").unlink()
    refused("plans.json does not exist", "-m", copy, "-f", 0)


def test_a_cascade_needs_the_stage_before(tmp_path: Path, model: Model, refused: Callable[..., None]) -> None:
    made = configuration((1, 1, 1), (8, 16, 16)) | {"previous_stage": "3d_lowres"}
    cascade = write_model(tmp_path / "model", plans({"3d_cascade_fullres": made}), "3d_cascade_fullres")
    refused("goes on from 3d_lowres: name its segmentations", "-m", cascade, "-f", 0)
    (tmp_path / "lowres").mkdir()
    refused("lowres/a.nii.gz is missing", "-m", cascade, "-f", 0, "-prev_stage_predictions", tmp_path / "lowres")


@pytest.mark.end_to_end
def test_a_signal_leaves_whole_files_alone(model: Model, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for case in range(60):
        write_image(images, f"case_{case:02d}", (12, 24, 24), seed=case)
    words = ["-i", images, "-o", out, "-m", model[0], "-f", "0", "-device", "cpu", "--save_probabilities"]
    command = [sys.executable, "-m", "nnunetv2_dinomed3d", "predict", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()  # of the first case
        process.terminate()
        begin = time.monotonic()
        error = process.stderr.read()
        assert process.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 60
    assert "ended by SIGTERM" in error
    names = [file.name for file in out.iterdir() if "json" not in file.name]
    done = {name.partition(".")[0] for name in names}
    assert 1 <= len(done) < 60
    assert sorted(names) == sorted(f"{case}{kind}" for case in done for kind in (".npz", ".pkl", ENDING))
    assert read(out / f"case_00{ENDING}").shape == (12, 24, 24)


@pytest.mark.end_to_end
def test_real_images_with_both_commands(
    shared: Path, tmp_path: Path, run: Callable[..., str], nnunet_environment: dict[str, str]
) -> None:
    """Hippocampus, our network with random weights: of logits that mean nothing, many are nearly equal."""
    made = plans({"3d_fullres": configuration((1, 1, 1), (40, 56, 40))})
    model = write_model(tmp_path / "model", made, "3d_fullres", trainer=NANO, labels=labels(3), mirror=(0,))
    images = tmp_path / "images"
    images.mkdir()
    for name in ("hippocampus_003", "hippocampus_077"):
        file = f"{name}_0000{ENDING}"
        shutil.copy(shared / "data" / "Dataset004_Hippocampus" / "imagesTs" / file, images / file)
    words = ("-i", images, "-m", model, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities")
    run("nnUNetv2_predict_from_modelfolder", "-o", tmp_path / "nnunet", *words)
    done = dinomed3d("predict", "-o", tmp_path / "ours", *words, **nnunet_environment)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "nnunet")) == sorted(os.listdir(tmp_path / "ours"))
    assert_equal_but_ties(tmp_path / "nnunet", tmp_path / "ours", at_most=1e-3)
