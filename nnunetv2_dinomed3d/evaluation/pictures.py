"""The report's pictures. One that cannot be drawn is left out with a note: no picture can lose the report."""

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.evaluation import document as doc
from nnunetv2_dinomed3d.evaluation.figures import (
    draw_boxes,
    draw_dice_over_volume,
    draw_differences,
    draw_training,
    label_colours,
)
from nnunetv2_dinomed3d.evaluation.result import Result
from nnunetv2_dinomed3d.evaluation.slices import choose, draw_case, read_picture
from nnunetv2_dinomed3d.evaluation.statistics import Table
from nnunetv2_dinomed3d.nnunet_files import find_image

DPI = 110


class Pictures:
    """Draws into a folder.

    Attributes:
        blocks: for the document.
        lost: a sentence for each picture, or image in one, that is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blocks: list[doc.Block] = []
        self.lost: list[str] = []

    def add(self, name: str, draw: Callable[[], Figure], caption: str) -> None:
        """Draw a picture, or say that it could not be."""
        path = self.folder / f"{name}.png"
        try:
            with matplotlib.rc_context({"text.usetex": False}), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of letters that the font does not have, of long names
                draw().savefig(path, dpi=DPI)
        except Exception as error:  # whatever a name, a font or a full disk does to it
            path.unlink(missing_ok=True)  # an earlier comparison's
            self.lost.append(f"figures/{path.name} could not be drawn: {error}")
            self.blocks.append(doc.Paragraph(f"This picture could not be drawn ({type(error).__name__}): {caption}"))
        else:
            self.blocks.append(doc.Picture(path, caption))


def draw_pictures(result: Result, tables: list[Table], folder: Path) -> tuple[list[doc.Block], list[str]]:
    """Plots of all cases, and slices of some.

    Returns:
        Blocks for the document, and a sentence for each picture that could not be drawn.
    """
    pictures = Pictures(folder)
    pictures.blocks.append(doc.Heading("Figures"))
    _plots(pictures, result, tables)
    pictures.blocks.append(doc.Heading("Cases"))
    _cases(pictures, result, tables[0])
    return pictures.blocks, pictures.lost


def _plots(pictures: Pictures, result: Result, tables: list[Table]) -> None:
    dice, distance = tables[0], tables[1]
    pictures.add("dice", lambda: draw_boxes(dice), "Dice; a grey line joins a case's values.")
    pictures.add("hd95", lambda: draw_boxes(distance), "HD95 in mm; a grey line joins a case's values.")
    if len(dice.models) > 1:
        caption = "Differences of Dice by case (Bland-Altman): mean, and mean -+ 1.96 standard deviations."
        colours = label_colours(result.rules.description)
        pictures.add("differences", lambda: draw_differences(dice, colours), caption)
    caption = "Dice over the structure's true volume."
    pictures.add("volume", lambda: draw_dice_over_volume(result.measurements), caption)
    trained = {m: used for m, folds in result.logs.items() if (used := {f: g for f, g in folds.items() if g.finished})}
    if trained:
        caption = (
            "Training curves; a dotted line marks the start of stage 2. Stage 1's pseudo Dice is of single slices."
        )
        pictures.add("training", lambda: draw_training(trained), caption)


def _cases(pictures: Pictures, result: Result, dice: Table) -> None:
    try:
        worst, different = choose(dice)
    except Exception as error:
        pictures.lost.append(f"no case could be chosen to be shown: {error}")
        return
    for kind, chosen in (("worst", worst), ("different", different)):
        for rank, case in enumerate(chosen, 1):
            caption = f"{case}, number {rank} of the {'worst' if kind == 'worst' else 'most different'} by Dice."
            _case(pictures, result, case, f"{kind} {rank}: {case}", f"{kind}_{rank}", caption)


def _case(pictures: Pictures, result: Result, case: str, title: str, name: str, caption: str) -> None:
    description, plane = result.rules.description, result.measured[case].plane
    picture, note = None, "image not found"
    try:
        if path := find_image(result.dataset, case, description.ending):
            picture, note = read_picture(path, plane), "image"
    except Exception as error:
        note = "image cannot be read"
        pictures.lost.append(f"{case} is shown without its image: {error}")
    pictures.add(name, lambda: draw_case(title, picture, note, plane, description), caption)
