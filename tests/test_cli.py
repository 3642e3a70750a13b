"""The command ``dinomed3d``: what it prints, and what its exit code says."""

from pathlib import Path

import pytest

from nnunetv2_dinomed3d import doctor
from nnunetv2_dinomed3d.cli import main
from nnunetv2_dinomed3d.entry import trainer_folder


def test_trainer_path_is_the_folder_to_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trainer-path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == trainer_folder()
    assert (folder / "dinomed3d_trainers.py").is_file()


@pytest.mark.usefixtures("nnunet_environment")
def test_doctor_passes_where_training_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(weights))
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "Training can run." in output
    assert "nnU-Net finds nnUNetTrainerDINOMed3D" in output
    assert str(weights) in output


@pytest.mark.usefixtures("nnunet_environment")
@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("nnUNet_raw", None, "export nnUNet_raw="),
        ("nnUNet_results", "/no/such/folder", "mkdir -p /no/such/folder"),
        ("DINOMED3D_WEIGHTS", "/no/such/file", "set DINOMED3D_WEIGHTS to a file that exists"),
    ],
)
def test_doctor_fails_and_says_what_to_do(
    name: str, value: str | None, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert f"-> {advice}" in output
    assert "1 thing(s) keep training from running." in output


def test_doctor_tells_how_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> type:
        raise RuntimeError("Could not find requested nnunet trainer")

    monkeypatch.setattr("nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name", not_found)
    (finding,) = doctor.check_trainers()
    assert finding.status == "error"
    assert f"export nnUNet_extTrainer={trainer_folder()}" in finding.advice


def test_doctor_compares_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=1.24", "torch>=99", "no-such-thing>=1"])

    def version(name: str) -> str:
        try:
            return {"numpy": "2.0", "torch": "2.6", doctor.DISTRIBUTION: "0"}[name]
        except KeyError:
            raise doctor.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(doctor.metadata, "version", version)
    findings = {finding.what.split()[0]: finding for finding in doctor.check_versions()}
    assert findings["numpy"].status == "ok"
    assert findings["torch"].status == "error"
    assert "torch 2.6 is installed, torch>=99 is needed" in findings["torch"].what
    assert findings["no-such-thing"].advice == "pip install 'no-such-thing>=1'"


@pytest.mark.parametrize(("setting", "status"), [("random", "warning"), ("", "warning"), ("/no/such/file", "error")])
def test_doctor_looks_at_the_weights(setting: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED3D_WEIGHTS", setting)
    monkeypatch.setenv("HF_HUB_CACHE", "/no/such/cache")
    (finding,) = doctor.check_weights()
    assert finding.status == status
    assert finding.advice


def test_demo_does_not_write_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "not an empty folder; name another with --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: dinomed3d" in capsys.readouterr().err
