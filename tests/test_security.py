"""What SECURITY.md promises."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.command_line import NANO
from tests.look_models import write_model
from tests.made_up_weights import Malicious, call, item, number, save_legacy, write_archive

pytestmark = pytest.mark.own

ROOT = Path(__file__).parents[1]

OFFLINE = """
import socket

def refuse(self, address, *rest):
    raise AssertionError(f"a connection to {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
"""

HOSTILE = """
import contextlib, io, json, os, resource, sys, time
from nnunetv2_dinomed3d.commands.main import main
import nnunetv2_dinomed3d.look.model, nnunetv2_dinomed3d.weights.conversion, nnunetv2_dinomed3d.weights.report
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for words in json.loads(sys.argv[1]):
    told, start = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(told):
        code = main(words)
    print(json.dumps([words, code, told.getvalue(), time.process_time() - start]))
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""

PREDICT = """
import sys, torch
from nnunetv2_dinomed3d.commands import compare, convert, crossval, demo, doctor, look, main, plan, weights
import nnunetv2_dinomed3d.look.case_figure, nnunetv2_dinomed3d.weights.report
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,), "checkpoint_final.pth")
print(predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 9, 30, 26)).shape)
"""


def test_the_tests_have_no_network() -> None:
    """The fixture that all of them run under works."""
    with socket.socket() as connection, pytest.raises(AssertionError, match=r"a connection to \('192\.0\.2\.1', 443\)"):
        connection.connect(("192.0.2.1", 443))


@pytest.mark.end_to_end
def test_import_build_and_prediction_do_not_touch_the_network(
    make_trainer: Callable[..., nnUNetTrainer], run: Callable[..., str]
) -> None:
    folder = write_model(make_trainer, trainer_class(NANO))
    output = run(sys.executable, "-c", OFFLINE + PREDICT, folder, HF_HUB_OFFLINE="0", DINOMED3D_WEIGHTS="")
    assert "torch.Size([2, 9, 30, 26])" in output


@pytest.mark.parametrize(
    "text",
    [
        "shell=True",
        "os.system",
        "os.popen",
        "getoutput",
        'eval "',
        "pickle.load",
        "eval(",
        "exec(",
        "trust_remote_code",
    ],
)
def test_source_without(text: str) -> None:
    """No command goes through a shell, no script evaluates text; nothing but nnU-Net's own checkpoints is unpickled."""
    files = [
        path for path in (ROOT / "nnunetv2_dinomed3d").rglob("*.py") if text in path.read_text().replace(".eval(", "")
    ]
    assert not files


def test_unpickling_is_for_nnunets_own_checkpoints_alone() -> None:
    """torch.load with code allowed stands in one place: reading a checkpoint of this training's own folder."""
    source = {path.name: path.read_text() for path in (ROOT / "nnunetv2_dinomed3d").rglob("*.py")}
    unsafe = {name: text.count("weights_only=False") for name, text in source.items() if "weights_only=False" in text}
    assert unsafe == {"checkpoint_files.py": 1}
    assert sum(text.count("torch.load(") for text in source.values()) == sum(
        text.count("weights_only=") for text in source.values()
    )


def hostile_files(folder: Path) -> dict[str, str]:
    """Names of files that hang, eat the machine or run code where they are read as they ask for; and the answers."""
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    torch.save({"a": torch.zeros(1_000_000).expand(2000, 1_000_000)}, folder / "wide.pth")
    save_legacy({"a": torch.zeros(4).expand(10**10, 4)}, folder / "wide_legacy.pth")
    write_archive(folder / "bytes.pth", item(call("builtins.bytearray", number(10**11))))
    write_archive(folder / "tensor.pth", item(call("torch.FloatTensor", number(10**11))))
    torch.save({"a": Malicious(folder / "made")}, folder / "code.pth")
    save_legacy({"a": Malicious(folder / "made")}, folder / "code_legacy.pth")
    with (folder / "large.safetensors").open("wb") as file:
        file.write((2**62).to_bytes(8, "little") + b"{")
        file.truncate(40 << 30)  # takes no room
    return {
        "pipe": "a pipe",
        "zero": "a device",
        "folder": "a folder",
        "wide.pth": "is damaged",
        "wide_legacy.pth": "is damaged",
        "bytes.pth": "holds builtins.bytearray",
        "tensor.pth": "holds torch.FloatTensor",
        "code.pth": "holds posix.mkdir",
        "code_legacy.pth": "holds posix.mkdir",
        "large.safetensors": "bytes, weights of DINOv3 less than",
    }


@pytest.mark.end_to_end
def test_hostile_files(tmp_path: Path, run: Callable[..., str]) -> None:
    """Each command that reads them ends with one line and code 1, in little time and memory; nothing in them is run."""
    fold = tmp_path / "Dataset950_Hostile" / "nnUNetTrainerDINOMed3D__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    answers = hostile_files(fold)
    commands = [
        words
        for name in answers
        for words in (
            ["weights", "--check", str(fold / name)],
            ["convert", str(fold / name), "-o", str(tmp_path / "out")],
            ["look", "case", "-d", "950", "-tr", "nnUNetTrainerDINOMed3D", "-chk", name, "-o", str(tmp_path / "out")],
        )
    ]
    output = run(sys.executable, "-c", HOSTILE, json.dumps(commands), nnUNet_results=str(tmp_path))
    *results, memory = [json.loads(line) for line in output.splitlines() if line.startswith(("[[", "0", "1", "2", "3"))]
    assert [words for words, *_ in results] == commands
    for words, code, told, seconds in results:
        assert code == 1, words
        assert told.startswith("dinomed3d: "), (words, told)
        assert len(told.splitlines()) == 1, (words, told)
        name = next(name for name in answers if name in (words[-3], Path(words[1]).name, Path(words[2]).name))
        assert answers[name] in told or (words[0] == "convert" and "is no file" in told), (words, told)
        assert seconds < 60, words
    assert memory < 1_000_000, "kB"
    assert not (fold / "made").exists()
    assert not (tmp_path / "out").exists()
