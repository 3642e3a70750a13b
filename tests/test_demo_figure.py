"""The demo's picture."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.demo.figure import draw
from nnunetv2_dinomed3d.demo.phantom import LABELS, make_dataset
from nnunetv2_dinomed3d.pictures import label_colour

pytestmark = pytest.mark.own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "data", training_cases=1, test_cases=2)
    return tmp_path / "data"


def test_picture_shows_every_case(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    draw(folder / "imagesTs", folder / "labelsTs", folder / "labelsTs", LABELS, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    titles = [axis.get_title(loc) for axis in figures[0].axes for loc in ("left", "center") if axis.get_title(loc)]
    assert [title.split(",")[0] for title in titles] == ["test_00", "reference", "prediction", "test_01"]
    image, reference, prediction = (axis.get_images()[0].get_array() for axis in figures[0].axes[:3])
    assert (reference == prediction).all()  # one file for both here
    assert (image != reference).any(axis=-1).sum() > 30, "labels lie over the image"


def test_labels_have_the_colours_of_reports(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One label, one colour, wherever it is drawn."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: figures.append(self))
    draw(folder / "imagesTs", folder / "labelsTs", folder / "labelsTs", LABELS, tmp_path / "picture.png")
    (legend,) = figures[0].legends
    drawn = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.texts, legend.get_patches(), strict=True)
    }
    assert drawn == {"organ": to_hex(label_colour(0)), "nodule": to_hex(label_colour(1))}
