"""What is done to images and labels: windows, percentiles, slices, size, spacing, and their place in the patient."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.datasets.brats import CONSECUTIVE
from nnunetv2_dinomed3d.datasets.catalogue import ENTRIES, Choices, recipe_of
from nnunetv2_dinomed3d.datasets.download import Case, files_below
from nnunetv2_dinomed3d.datasets.recipe import Recipe, merged
from nnunetv2_dinomed3d.datasets.volumes import (
    as_image,
    as_paper,
    kept_slices,
    normalised,
    paper_grid,
    read_images,
    read_labels,
    windowed,
)
from nnunetv2_dinomed3d.evaluation.volume import Geometry
from tests.made_up_downloads import IDENTITY, acdc, aisd, brats, head, msd, write_msd_image, write_series

pytestmark = pytest.mark.own

TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
PAPER = Recipe(True, {0: 0, 1: 1}, (0,))


def geometry(size: tuple[int, int, int], direction: tuple[float, ...] = IDENTITY) -> Geometry:
    return Geometry(size, (0.8, 0.7, 2.5), (-10.0, 20.0, 30.0), direction)


def test_windows_are_those_of_the_paper() -> None:
    hu = np.array([-1000, -11, 0, 89.5, 3000])
    assert windowed(hu, (100, 40)).tolist() == [-10, -10, 0, 89.5, 90]
    windows = {name: entry.window for name, entry in ENTRIES.items() if entry.window}
    assert windows == {"aisd": (100, 40), "msd-pancreas": (255, 50), "msd-colon": (400, 40)}
    assert {name: entry.slices for name, entry in ENTRIES.items() if entry.slices} == {
        "msd-pancreas": 50,
        "msd-colon": 30,
    }


def test_percentiles_of_an_mri() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(500, 50, (5, 40, 40))
    image[:, :20] = 0
    image[0, 30, 30] = 1e6
    inside = image[image != 0]
    low, high = np.percentile(inside, (0.5, 99.5))
    result = normalised(image, nonzero=True)
    assert (result.min(), result.max(), result.dtype) == (0, 1, np.float32)
    assert result[2, 30, 30] == pytest.approx(np.clip((image[2, 30, 30] - low) / (high - low), 0, 1), abs=1e-6)
    assert np.median(normalised(image, nonzero=False)[:, 20:]) > np.median(result[:, 20:])
    with pytest.raises(ValueError, match="intensities are 7 nearly everywhere"):
        normalised(np.full((2, 2, 2), 7), nonzero=True)


@pytest.mark.parametrize(
    ("labelled", "crop", "kept"),
    [
        ((40, 60), "labels", (25, 75)),
        ((0, 3), "labels", (0, 50)),
        ((95, 99), "labels", (50, 100)),
        ((10, 90), "labels", (25, 75)),
        (None, "labels", (25, 75)),
        ((0, 3), "centre", (25, 75)),
    ],
)
def test_slices_that_are_kept(labelled: tuple[int, int] | None, crop: str, kept: tuple[int, int]) -> None:
    labels = np.zeros((100, 4, 4), np.uint8)
    if labelled:
        labels[labelled[0] : labelled[1] + 1] = 1
    recipe = Recipe(True, {}, (0,), slices=50, crop="labels" if crop == "labels" else "centre")
    found = kept_slices(labels, recipe)
    assert (found.start, found.stop) == kept


def test_a_short_volume_keeps_its_slices() -> None:
    assert kept_slices(np.zeros((37, 2, 2)), Recipe(True, {}, (0,), slices=50)) == slice(0, 37)


@pytest.mark.parametrize("direction", [IDENTITY, TURNED])
def test_a_structure_stays_where_it_was_in_the_patient(direction: tuple[float, ...]) -> None:
    """Through crop, resizing and another spacing between slices."""
    labels = np.zeros((40, 20, 30), np.uint8)
    labels[18:30, 5:12, 10:20] = 1
    where = geometry((30, 20, 40), direction)
    image = np.where(labels, 300, 10).astype(np.int16)
    recipe = Recipe(True, {0: 0, 1: 1}, (0,), window=(400, 100), slices=30, spacing=4.0)
    (paper,), drawn, grid = as_paper([image], labels, where, recipe)
    assert grid.size == (512, 512, 19)
    assert grid.spacing == pytest.approx((0.8 * 30 / 512, 0.7 * 20 / 512, 4.0))
    assert set(np.unique(drawn)) == {0, 1}
    for original, result in ((labels, drawn), (image > 150, paper > 150)):
        before, after = centroid(original > 0, where), centroid(result > 0, grid)
        assert np.abs(np.subtract(before, after)).max() < 1.0
    volume = 12 * 7 * 10 * 0.8 * 0.7 * 2.5
    assert drawn.sum() * np.prod(grid.spacing) == pytest.approx(volume, rel=0.08)


def centroid(mask: np.ndarray, where: Geometry) -> tuple[float, ...]:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(as_image(mask.astype(np.uint8), where))
    return shape.GetCentroid(1)


def test_the_field_of_view_stays() -> None:
    where = geometry((30, 20, 40), TURNED)
    grid = paper_grid(where, None)
    for corner in ((0, 0, 0), (1, 1, 1)):
        assert outer(where, corner) == pytest.approx(outer(grid, corner))


def outer(where: Geometry, corner: tuple[int, ...]) -> tuple[float, ...]:
    """The outer corner of the first or last voxel, in mm."""
    image = as_image(np.zeros(where.size[::-1], np.uint8), where)
    return image.TransformContinuousIndexToPhysicalPoint([c * n - 0.5 for c, n in zip(corner, where.size, strict=True)])


def test_nothing_dark_at_the_borders() -> None:
    """Slices at the ends and pixels at the borders are the image's own, not zeros from beyond it."""
    image = np.full((31, 20, 20), 300, np.int16)
    labels = np.zeros(image.shape, np.uint8)
    recipe = Recipe(True, {0: 0}, (0,), window=(1000, 500), spacing=4.0)
    (paper,), _, grid = as_paper([image], labels, geometry((20, 20, 31)), recipe)
    assert grid.size[2] == 19  # 77.5 mm
    assert (paper.min(), paper.max()) == (300, 300)


def test_slices_of_512_pixels_are_not_interpolated() -> None:
    image = np.random.default_rng(0).integers(-100, 100, (2, 512, 512)).astype(np.int16)
    recipe = Recipe(True, {0: 0}, (0,), window=(400, 40))
    (paper,), _, grid = as_paper([image], np.zeros(image.shape, np.uint8), geometry((512, 512, 2)), recipe)
    assert np.abs(paper - image).max() < 1e-3
    assert grid.origin == pytest.approx((-10, 20, 30))


# ---- labels ----


def test_choices_of_labels() -> None:
    labels = {"pancreas": 1, "cancer": 2}
    assert merged(labels, "all", "x") == ({0: 0, 1: 1, 2: 2}, labels)
    assert merged(labels, "one", "x") == ({0: 0, 1: 1, 2: 1}, {"x": 1})
    assert merged(labels, "cancer", "x") == ({0: 0, 1: 0, 2: 1}, {"cancer": 1})
    with pytest.raises(ValueError, match="--labels 'liver' is none of this data set's: give all, one, or pancreas"):
        merged(labels, "liver", "x")


def test_brats_is_whole_tumour_of_flair_or_nnunets_regions(tmp_path: Path) -> None:
    found = ENTRIES["brats2020"].find(files_below(brats(tmp_path, (1,))))
    recipe, labels = recipe_of(ENTRIES["brats2020"], found, Choices(True))
    assert (recipe.values, labels, recipe.channels) == ({0: 0, 1: 1, 2: 1, 4: 1}, {"whole tumor": 1}, (3,))
    recipe, labels = recipe_of(ENTRIES["brats2020"], found, Choices(False))
    assert (recipe.values, recipe.channels) == (CONSECUTIVE, (0, 1, 2, 3))
    assert labels["tumor core"] == [2, 3]
    recipe, labels = recipe_of(ENTRIES["brats2020"], found, Choices(True, labels="enhancing"))
    assert (recipe.values, labels) == ({0: 0, 1: 0, 2: 0, 4: 1}, {"enhancing": 1})


def test_ct_of_another_task_needs_a_window(tmp_path: Path) -> None:
    found = ENTRIES["msd"].find(files_below(msd(tmp_path, "Task06_Lung", ("cancer",))))
    with pytest.raises(ValueError, match=r"MSD|Lung is CT, .*--window 400 40"):
        recipe_of(ENTRIES["msd"], found, Choices(True))
    assert recipe_of(ENTRIES["msd"], found, Choices(True, window=(1500, -600)))[0].window == (1500, -600)
    mri = ENTRIES["acdc"].find(files_below(acdc(tmp_path / "acdc", (1,))))
    with pytest.raises(ValueError, match="--window is for CT; ACDC is cineMRI"):
        recipe_of(ENTRIES["acdc"], mri, Choices(True, window=(400, 40)))


def test_a_label_too_many(tmp_path: Path) -> None:
    case = ENTRIES["acdc"].find(files_below(acdc(tmp_path, (1,)))).cases[0]
    (image,), where = read_images(case, (0,))
    with pytest.raises(ValueError, match=r"patient001_frame01_gt\.nii\.gz holds \[2, 3\], and labels may be \[0, 1\]"):
        read_labels(case, image, where, PAPER)


def test_labels_of_another_size(tmp_path: Path) -> None:
    root = acdc(tmp_path, (1,))
    case = ENTRIES["acdc"].find(files_below(root)).cases[0]
    labels = sitk.ReadImage(str(case.labels[0]))
    sitk.WriteImage(labels[:, :, 1:], str(case.labels[0]))
    (image,), where = read_images(case, (0,))
    with pytest.raises(ValueError, match=r"_gt\.nii\.gz has \(16, 14, 4\) voxels, its reference \(16, 14, 5\)"):
        read_labels(case, image, where, PAPER)


def test_modalities_of_different_size(tmp_path: Path) -> None:
    case = ENTRIES["brats2020"].find(files_below(brats(tmp_path, (1,)))).cases[0]
    sitk.WriteImage(sitk.ReadImage(str(case.images[2]))[1:], str(case.images[2]))
    with pytest.raises(ValueError, match=r"_t2\.nii has \(19, 20, 31\) voxels"):
        read_images(case, (0, 1, 2, 3))


# ---- four axes ----


def test_channels_of_four_axes(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(n).integers(0, 9, (3, 4, 5)).astype(np.int16) for n in range(2)]
    write_msd_image(tmp_path / "a.nii.gz", arrays)
    case = Case("a", "a", (tmp_path / "a.nii.gz",), ())
    found, where = read_images(case, (0, 1))
    assert [array.tolist() for array in found] == [array.tolist() for array in arrays]
    assert (where.size, where.origin) == ((5, 4, 3), pytest.approx((-10, 20, 30)))
    with pytest.raises(ValueError, match="3 channels are expected"):
        read_images(case, (0, 1, 2))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_half_a_file_of_four_axes(tmp_path: Path, name: str) -> None:
    write_msd_image(tmp_path / name, [np.random.default_rng(0).integers(0, 99, (3, 40, 50)).astype(np.int16)] * 2)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"a\.nii.* is cut off or damaged"):
        read_images(Case("a", "a", (tmp_path / name,), ()), (0, 1))


# ---- AISD ----

ALL = Recipe(False, {value: value for value in range(6)}, (0,))


@pytest.mark.parametrize("from_head", [False, True])
def test_pictures_tell_where_the_labels_begin(tmp_path: Path, from_head: bool) -> None:
    case = ENTRIES["aisd"].find(files_below(aisd(tmp_path, from_head=from_head))).cases[0]
    (ct,), where = read_images(case, (0,))
    assert (where.spacing, where.origin) == (pytest.approx((0.5, 0.5, 5)), pytest.approx((-6, -6, 100)))
    assert ct.min() == -1000
    assert (ct[0] > -1000).sum() > (ct[-1] > -1000).sum()  # the head's top is last
    labels, _ = read_labels(case, ct, where, ALL)
    assert labels.any(axis=(1, 2)).tolist() == [False, True, True, False, False, False]
    assert set(np.unique(labels)) == {0, 2, 5}


@pytest.mark.parametrize("first", ["feet", "head"])
def test_without_pictures_the_user_tells(tmp_path: Path, first: str) -> None:
    case = ENTRIES["aisd"].find(files_below(aisd(tmp_path, from_head=first == "head"))).cases[0]
    bare = Case(case.name, case.patient, case.images, case.labels, (), "slices")
    recipe = Recipe(False, ALL.values, (0,), first_slice="head" if first == "head" else "feet")
    (ct,), where = read_images(bare, (0,))
    labels, _ = read_labels(bare, ct, where, recipe)
    assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [1, 2]


def test_pictures_of_another_case(tmp_path: Path) -> None:
    case = ENTRIES["aisd"].find(files_below(aisd(tmp_path))).cases[0]
    (ct,), where = read_images(case, (0,))
    other = np.random.default_rng(5).integers(0, 80, ct.shape).astype(np.int16)
    with pytest.raises(ValueError, match=r"does not show the slices of its CT .*--leave-out"):
        read_labels(case, other, where, ALL)


def test_a_png_of_another_size(tmp_path: Path) -> None:
    case = ENTRIES["aisd"].find(files_below(aisd(tmp_path))).cases[0]
    sitk.WriteImage(sitk.ReadImage(str(case.labels[3]))[1:], str(case.labels[3]))
    (ct,), where = read_images(case, (0,))
    with pytest.raises(ValueError, match=r"003\.png has \(24, 23\) pixels, its CT \(24, 24\)"):
        read_labels(case, ct, where, ALL)


def test_a_ct_with_a_slice_too_many(tmp_path: Path) -> None:
    folder = tmp_path / "1" / "CT"
    write_series(folder, head(np.random.default_rng(0)), "CT", "1")
    files = tuple(sorted(folder.iterdir()))
    with pytest.raises(ValueError, match=r"CT has CT of 6 slices, the labels have 5"):
        read_images(Case("1", "1", files, files[:5], (), "slices"), (0,))
