"""Trainers by the name that ``-tr`` takes, a user's own among them."""

from pathlib import Path
from typing import Any

import pytest

from nnunetv2_dinomed3d.trainers.registry import find_trainer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "'nnUNetTrainerMine' cannot be imported: ModuleNotFoundError: .*no_such_module"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("class nnUNetTrainerMine: pass", "is no trainer of nnU-Net"),
    ],
)
def test_a_users_own_trainer_that_is_none(text: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        find_trainer("nnUNetTrainerMine")
