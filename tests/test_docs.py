"""What README and docs name exists."""

import re
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.trainers.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.variants.names import BASE, THEMES, suffix, trainer_class

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


@pytest.mark.parametrize("page", ["README.md", "docs/paper.md"])
def test_every_suffix_is_there(page: str) -> None:
    named = set(re.findall(r"`(_\w+)`", (ROOT / page).read_text()))
    assert named >= {suffix(trainer) for trainers in THEMES.values() for trainer in trainers} - (
        {"_nano", "_20epochs", "_250epochs", "_1000epochs"} if "paper" in page else set()
    )


def test_attributes_of_the_paper() -> None:
    rows = [line.split("|") for line in (ROOT / "docs/paper.md").read_text().splitlines() if line.count("|") == 4]
    attributes = {name for row in rows for name in re.findall(r"`([a-z]\w+)`", row[3])} - {BASE}
    assert {"slab_depth", "rope_rescale", "stages"} <= attributes
    assert all(hasattr(nnUNetTrainerDINOMed3D, name) for name in attributes), attributes
