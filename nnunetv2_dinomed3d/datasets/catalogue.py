"""The data sets that can be converted: how each is recognised, its number, and what the paper does to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_dinomed3d.datasets.acdc import find_acdc
from nnunetv2_dinomed3d.datasets.aisd import find_aisd
from nnunetv2_dinomed3d.datasets.brats import CONSECUTIVE, REGIONS, find_brats
from nnunetv2_dinomed3d.datasets.download import Download
from nnunetv2_dinomed3d.datasets.msd import find_msd
from nnunetv2_dinomed3d.datasets.recipe import Crop, FirstSlice, Recipe, merged

CLIPPED = "rescale_to_0_1"
"""nnU-Net's name of a channel whose intensities it only brings to 0 to 1: they are clipped already."""


@dataclass(frozen=True)
class Entry:
    """One of the paper's data sets, or any task of MSD.

    Attributes:
        find: recognises the cases of a download, from its files.
        number: of nnU-Net's data set as in the paper; ten more for the plain one.
        window: width and level in HU, of CT.
        slices: kept along z.
        spacing: between slices, in mm.
        labels: which labels are kept, as in the paper: all, one or a name.
        one: name of the one label.
        channels: numbers of the channels that the paper takes; all if None.
    """

    find: Callable[[list[Path]], Download]
    number: int
    window: tuple[float, float] | None = None
    slices: int | None = None
    spacing: float | None = None
    labels: str = "all"
    one: str = "foreground"
    channels: tuple[int, ...] | None = None


def _task(word: str, patients: int) -> Callable[[list[Path]], Download]:
    def find(files: list[Path]) -> Download:
        return replace(find_msd(files, word), patients=(patients,), name=f"MSD{word.capitalize()}")

    return find


ENTRIES = {
    "aisd": Entry(find_aisd, 501, window=(100, 40), labels="one", one="infarct"),
    "msd-pancreas": Entry(_task("pancreas", 281), 502, window=(255, 50), slices=50),
    "msd-colon": Entry(_task("colon", 126), 503, window=(400, 40), slices=30),
    "brats2020": Entry(find_brats, 504, spacing=4.0, labels="one", one="whole tumor", channels=(3,)),
    "acdc": Entry(find_acdc, 505),
    "msd": Entry(find_msd, 506),
}


@dataclass(frozen=True)
class Choices:
    """What a user chooses where the paper is silent; None for the entry's own."""

    paper: bool
    labels: str | None = None
    crop: Crop = "labels"
    slices: int | None = None
    window: tuple[float, float] | None = None
    nonzero: bool = True
    first_slice: FirstSlice = "feet"


def recipe_of(entry: Entry, download: Download, choices: Choices) -> tuple[Recipe, dict[str, int | list[int]]]:
    """What is done to the cases, and the labels of ``dataset.json`` without background.

    Raises:
        ValueError: there is no such label, or CT has no window.
    """
    wanted = choices.labels or (entry.labels if choices.paper else "all")
    values, left = merged(download.labels, wanted, entry.one)
    labels: dict[str, int | list[int]] = {**left}
    if entry.find is find_brats:  # what is published has 4 and no 3
        values = {old: values[new] for old, new in CONSECUTIVE.items()}
        labels = {**REGIONS} if wanted == "all" else labels
    channels = tuple(range(len(download.channels)))
    if not choices.paper:
        return Recipe(False, values, channels, first_slice=choices.first_slice), labels
    window = choices.window or entry.window
    is_ct = any(name.upper() == "CT" for name in download.channels)
    if is_ct and window is None:
        raise ValueError(
            f"{download.name} is CT, and the paper names no window for it: give one, such as --window 400 40, or "
            "convert it with --plain"
        )
    if choices.window and not is_ct:
        raise ValueError(f"--window is for CT; {download.name} is {', '.join(download.channels)}")
    recipe = Recipe(
        True,
        values,
        entry.channels or channels,
        window,
        choices.slices or entry.slices,
        choices.crop,
        entry.spacing,
        choices.nonzero,
        choices.first_slice,
    )
    return recipe, labels


def channel_names(download: Download, recipe: Recipe) -> dict[str, str]:
    """The channels of ``dataset.json``. As in the paper, nnU-Net brings them to 0 to 1 and does not clip them again."""
    names = [CLIPPED if recipe.paper else download.channels[channel] for channel in recipe.channels]
    return {str(number): name for number, name in enumerate(names)}
