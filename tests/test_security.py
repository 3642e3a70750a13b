"""What SECURITY.md promises."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OFFLINE = """
import socket

def refuse(self, address, *rest):
    raise AssertionError(f"a connection to {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
"""

PREDICT = """
import sys, torch
import nnunetv2_dinomed3d.cli, nnunetv2_dinomed3d.fetch, nnunetv2_dinomed3d.convert, nnunetv2_dinomed3d.doctor
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,), "checkpoint_final.pth")
print(predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 9, 30, 26)).shape)
"""


def test_the_tests_have_no_network() -> None:
    """The fixture that all of them run under works."""
    with socket.socket() as connection, pytest.raises(AssertionError, match=r"a connection to \('192\.0\.2\.1', 443\)"):
        connection.connect(("192.0.2.1", 443))


def test_import_build_and_prediction_do_not_touch_the_network(
    trained: object, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(trained.output_folder).parent
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
    assert unsafe == {"robust.py": 1}
    assert sum(text.count("torch.load(") for text in source.values()) == sum(
        text.count("weights_only=") for text in source.values()
    )
