"""What README and docs name exists."""

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d.commands.main import parser_for
from nnunetv2_dinomed3d.settings import PREFIX, VARIABLES
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.registry import BASE, THEMES, suffix, trainer_class

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert all((ROOT / page).parent.joinpath(link).exists() for link in links), links
    for name in re.findall(r"`((?:network_architecture|trainers|weights|evaluation|demo)/[\w/]+\.py)", text):
        assert (ROOT / "nnunetv2_dinomed3d" / name).is_file(), name
    for name in re.findall(r"`(tests/[\w/]+\.py)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_trainers(page: str) -> None:
    for name in re.findall(rf"\b{BASE}\w*", (ROOT / page).read_text()):
        trainer_class(name.split("__")[0])


def commands(program: str) -> list[list[str]]:
    """The words of every command line in the pages that starts this program, or programs that start so."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        lines = [line for line in text.splitlines() if line.startswith("    ")]
        for command in (part.strip() for line in lines for part in line.split("&&")):
            if re.match(rf"{program}\w* ", command):
                found.append(shlex.split(command, comments=True))
    return found


def test_our_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """As they are typed, names in capitals included."""
    found = [words[1:] for words in commands("dinomed3d")]
    assert {words[0] for words in found} >= {"doctor", "demo", "plan", "crossval", "compare", "look", "weights"}
    for words in found:
        try:
            parser_for(words).parse_args(words)
        except SystemExit:
            pytest.fail(f"dinomed3d {shlex.join(words)}: {capsys.readouterr().err}")


def test_options_of_nnunets_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """nnU-Net's own parsers know them."""
    scripts = {script.name: script for script in metadata.entry_points(group="console_scripts")}
    found = commands("nnUNetv2_")
    assert {words[0] for words in found} >= {"nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess"}
    for name in {words[0] for words in found}:
        entry = scripts[name].load()
        monkeypatch.setattr("sys.argv", [name, "-h"])
        with pytest.raises(SystemExit, match="0"):
            entry()
        known = set(re.findall(r"(?<![\w-])--?\w+", capsys.readouterr().out))
        for words in found:
            options = {word for word in words if re.match(r"--?[a-z]", word)}
            assert words[0] != name or options <= known, (words, options - known)


def test_settings() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert set(re.findall(rf"\b{PREFIX}\w+", text)) == set(VARIABLES)


@pytest.mark.usefixtures("nnunet_environment")
def test_stock_trainers() -> None:
    """Of nnU-Net's own, to compare with."""
    text = "".join((ROOT / page).read_text() for page in PAGES)
    names = {name.split("__")[0] for name in re.findall(r"\bnnUNetTrainer\w*", text)}
    names = {name for name in names if not name.startswith(BASE)} - set(re.findall(r"class (\w+)\(", text))
    assert "nnUNetTrainer_100epochs" in names
    for name in names:
        recursive_find_trainer_class_by_name(name)


@pytest.mark.parametrize("page", ["README.md", "docs/paper.md"])
def test_every_suffix_is_there(page: str) -> None:
    named = set(re.findall(r"`(_\w+)`", (ROOT / page).read_text()))
    assert named >= {suffix(trainer) for trainers in THEMES.values() for trainer in trainers} - (
        {"_nano", "_20epochs", "_250epochs", "_1000epochs"} if "paper" in page else set()
    )


def test_attributes_of_the_paper() -> None:
    rows = [line.split("|") for line in (ROOT / "docs/paper.md").read_text().splitlines() if line.count("|") == 5]
    attributes = {name for row in rows for name in re.findall(r"`([a-z]\w+)`", row[4])} - {BASE}
    assert {"slab_depth", "rope_rescale", "stages"} <= attributes
    assert all(hasattr(nnUNetTrainerDINOMed3D, name) for name in attributes), attributes
