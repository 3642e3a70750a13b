"""The report's pictures. One that cannot be drawn is left out with a note: no picture can cost the report."""

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.evaluation import document as doc
from nnunetv2_dinomed3d.evaluation.figures import (
    colours_of_labels,
    draw_boxes,
    draw_dice_over_volume,
    draw_differences,
    draw_training,
)
from nnunetv2_dinomed3d.evaluation.result import Result
from nnunetv2_dinomed3d.evaluation.slices import draw_case, read_slice, select_cases
from nnunetv2_dinomed3d.evaluation.statistics import Table
from nnunetv2_dinomed3d.nnunet_files import find_image

DPI = 110


class Pictures:
    """Pictures in a folder, as blocks for the document.

    Attributes:
        blocks: in the order in which they were added.
        lost: a sentence for each picture that could not be drawn, and for each image that could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blocks: list[doc.Block] = []
        self.lost: list[str] = []

    def add(self, name: str, draw: Callable[[], Figure], caption: str) -> None:
        """Draw a picture, or say that it could not be drawn."""
        path = self.folder / f"{name}.png"
        try:
            with matplotlib.rc_context({"text.usetex": False}), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of letters that the font does not have, and of long names
                draw().savefig(path, dpi=DPI)
        except Exception as error:  # a name, a font or a full disk can raise almost anything
            path.unlink(missing_ok=True)  # of an earlier comparison
            self.lost.append(f"figures/{path.name} could not be drawn: {error}")
            self.blocks.append(doc.Paragraph(f"This picture could not be drawn ({type(error).__name__}): {caption}"))
        else:
            self.blocks.append(doc.Picture(path, caption))


def draw_answer(dice: Table, folder: Path) -> Pictures:
    """The picture below the answer: boxes of Dice."""
    pictures = Pictures(folder)
    pictures.add("dice", lambda: draw_boxes(dice), f"Dice of every case{_joined(dice)}.")
    return pictures


def _joined(table: Table) -> str:
    return "; a grey line joins the values of a case" if len(table.models) > 1 else ""


def draw_details(result: Result, tables: list[Table], folder: Path) -> Pictures:
    """The other plots of all cases, and slices of some."""
    pictures = Pictures(folder)
    pictures.blocks.append(doc.Heading("Figures"))
    _add_plots(pictures, result, tables)
    pictures.blocks.append(doc.Heading("Cases"))
    _add_cases(pictures, result, tables[0])
    return pictures


def _add_plots(pictures: Pictures, result: Result, tables: list[Table]) -> None:
    dice, distance = tables[0], tables[1]
    pictures.add("hd95", lambda: draw_boxes(distance), f"HD95 of every case, in mm{_joined(distance)}.")
    if len(dice.models) > 1:
        caption = "Differences of Dice by case (Bland-Altman): mean, and mean -+ 1.96 standard deviations."
        colours = colours_of_labels(result.rules.labels)
        pictures.add("differences", lambda: draw_differences(dice, colours), caption)
    caption = "Dice over the structure's volume in the reference."
    pictures.add("volume", lambda: draw_dice_over_volume(result.measurements), caption)
    trained = {m: used for m, folds in result.logs.items() if (used := {f: g for f, g in folds.items() if g.finished})}
    if trained:
        caption = (
            "Training curves. A dotted line marks the start of stage 2. Stage 1's pseudo Dice is of single slices."
        )
        pictures.add("training", lambda: draw_training(trained), caption)


def _add_cases(pictures: Pictures, result: Result, dice: Table) -> None:
    try:
        worst, different = select_cases(dice)
    except Exception as error:
        pictures.lost.append(f"no case could be chosen to be shown: {error}")
        return
    for kind, chosen in (("worst", worst), ("different", different)):
        for rank, case in enumerate(chosen, 1):
            caption = f"{case}, number {rank} of the {'worst' if kind == 'worst' else 'most different'} by Dice."
            _add_case(pictures, result, case, kind=f"{kind}_{rank}", caption=caption)


def _add_case(pictures: Pictures, result: Result, case: str, *, kind: str, caption: str) -> None:
    labels, plane = result.rules.labels, result.measured[case].plane
    image, note = None, "image not found"
    try:
        if path := find_image(result.dataset, case, labels.ending):
            image, note = read_slice(path, plane), "image"
    except Exception as error:
        note = "image cannot be read"
        pictures.lost.append(f"{case} is shown without its image: {error}")
    title = f"{kind.replace('_', ' ')}: {case}"
    pictures.add(kind, lambda: draw_case(title, plane, labels, image=image, note=note), caption)
