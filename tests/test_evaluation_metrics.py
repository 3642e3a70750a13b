"""The measures: known on paper, and equal to what MedPy and MONAI measure."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from medpy.metric.binary import dc as medpy_dice
from medpy.metric.binary import hd95 as medpy_hd95
from monai.metrics.surface_dice import compute_surface_dice
from scipy import ndimage

from nnunetv2_dinomed3d.evaluation.metrics import crop, dice, hd95, surface_dice, surface_distances, surface_of

pytestmark = pytest.mark.own

Spacing = tuple[float, float, float]


def cube(start: tuple[int, int, int], size: int = 4, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(i, i + size) for i in start)] = True
    return mask


def measures(a: np.ndarray, b: np.ndarray, spacing: Spacing, tolerance: float) -> tuple[float, float, float]:
    """Dice, HD95, surface Dice."""
    one, other = crop(a, spacing), crop(b, spacing)
    distances = surface_distances(one, other)
    return dice(one, other), hd95(distances), surface_dice(distances, tolerance)


def libraries(a: np.ndarray, b: np.ndarray, spacing: Spacing, tolerance: float) -> tuple[float, float, float]:
    """The same of MedPy and MONAI."""
    one_hot = [torch.from_numpy(np.stack([~mask, mask])[None]) for mask in (a, b)]
    nsd = compute_surface_dice(one_hot[0], one_hot[1], class_thresholds=[tolerance], spacing=list(spacing))
    return medpy_dice(a, b), medpy_hd95(a, b, voxelspacing=spacing), float(nsd)


def blobs(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Random structures, some of which touch the border."""
    return ndimage.gaussian_filter(rng.normal(size=shape), 2.5) > 0.02


@pytest.mark.parametrize("start", [(0, 0, 0), (4, 4, 4)], ids=["at the border", "inside"])
def test_a_cube_shifted_by_a_thick_slice(start: tuple[int, int, int]) -> None:
    """4 x 4 x 4 voxels of 3 x 1 x 1 mm, one slice apart: 48 of 64 voxels are common. Of the 56 voxels of each surface,
    the 16 of the slice that sticks out are 3 mm off, the 4 inner ones of the opposite slice 1 mm, the other 36 meet."""
    a, b = cube(start), cube((start[0] + 1, start[1], start[2]))
    assert measures(a, b, (3, 1, 1), 1) == pytest.approx((0.75, 3, 80 / 112))
    assert measures(a, b, (3, 1, 1), 0.5)[2] == pytest.approx(72 / 112)
    assert measures(a, b, (3, 1, 1), 3)[2] == 1


def test_a_cube_shifted_within_the_slice_is_as_far_as_its_spacing_says() -> None:
    a, b = cube((4, 4, 4)), cube((4, 4, 5))
    assert measures(a, b, (3, 1, 1), 0.5)[1] == 1
    assert measures(a, b, (1, 1, 3), 0.5)[1] == 3


def test_single_voxels() -> None:
    a, b = cube((0, 0, 0), 1), cube((2, 3, 4), 1)
    assert measures(a, b, (2.5, 1, 1), 7) == pytest.approx((0, math.hypot(5, 3, 4), 0))
    assert measures(a, b, (2.5, 1, 1), 7.1)[2] == 1
    assert crop(a, (2.5, 1, 1)).volume_ml == pytest.approx(0.0025)


def test_equal_structures() -> None:
    assert measures(cube((0, 3, 8)), cube((0, 3, 8)), (2, 1, 1), 0) == (1, 0, 1)


def test_outside_of_the_image_is_outside_of_the_structure() -> None:
    everything = np.ones((4, 4, 4), bool)
    assert surface_of(everything).sum() == 4**3 - 2**3


def test_empty_structures() -> None:
    nothing, something = crop(np.zeros((5, 5, 5), bool), (1, 1, 1)), crop(cube((1, 1, 1)), (1, 1, 1))
    assert math.isnan(dice(nothing, nothing))
    assert dice(nothing, something) == 0
    assert nothing.volume_ml == 0


def test_single_precision_of_a_header_costs_no_surface() -> None:
    """Two voxels of 0.8 mm as NIfTI keeps them are 1.6 mm, and within 1.6 mm."""
    spacing = float(np.float32(0.8))
    assert measures(cube((0, 0, 0), 1), cube((0, 0, 2), 1), (1, 1, spacing), 1.6)[2] == 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.8, 3.0, 1.3)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_medpy_and_monai_on_random_pairs(spacing: Spacing, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = blobs(rng, (17, 30, 23)), blobs(rng, (17, 30, 23))
    for tolerance in (0, 0.9, 2.2):
        assert measures(a, b, spacing, tolerance) == pytest.approx(libraries(a, b, spacing, tolerance), abs=1e-6)


def test_equals_medpy_and_monai_on_noise() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((9, 10, 11)) > 0.7, rng.random((9, 10, 11)) > 0.7
    assert measures(a, b, (4.0, 1.0, 0.5), 0.6) == pytest.approx(libraries(a, b, (4.0, 1.0, 0.5), 0.6), abs=1e-6)


@pytest.mark.parametrize("dataset", ["Dataset004_Hippocampus", "Dataset005_BrainTumour2"])
def test_equals_medpy_and_monai_on_real_pairs(shared: Path, dataset: str) -> None:
    """The reference against itself, worn away and moved, as it is and as if its slices were thick."""
    files = sorted((shared / "data" / dataset / "labelsTr").glob("*.nii.gz"))[:3]
    assert files
    for file in files:
        image = sitk.ReadImage(str(file))
        a = sitk.GetArrayFromImage(image) == 1
        b = np.roll(ndimage.binary_erosion(a), (0, 1, 2), (0, 1, 2))
        x, y, z = image.GetSpacing()
        for spacing in ((z, y, x), (4.4, 0.6, 0.6)):
            for tolerance in (1, 2):
                expected = libraries(a, b, spacing, tolerance)
                assert measures(a, b, spacing, tolerance) == pytest.approx(expected, abs=1e-6)


def test_the_work_is_that_of_the_structure_not_of_the_image() -> None:
    """Structures are cropped to their boxes, and distances go from surface to surface, whatever the image's size."""
    mask = np.zeros((40, 300, 300), bool)
    mask[10:14, 100:106, 200:205] = True
    structure = crop(mask, (3, 1, 1))
    assert structure.mask.shape == (4, 6, 5)
    assert structure.start == (10, 100, 200)
    assert (
        len(surface_distances(structure, structure)) == 2 * len(structure.surface.data) == 2 * (4 * 6 * 5 - 2 * 4 * 3)
    )


def balls(offset: float) -> np.ndarray:
    z, y, x = np.ogrid[0:128, 0:256, 0:256]
    near = ((z - 60) / 8) ** 2 + ((y - 100 - offset) / 15) ** 2 + ((x - 100) / 15) ** 2 <= 1
    return near | (((z - 70) / 5) ** 2 + ((y - 160) / 9) ** 2 + ((x - 150 - offset) / 9) ** 2 <= 1)


@pytest.mark.long
def test_ten_times_faster_than_medpy_on_small_structures() -> None:
    a, b = balls(0), balls(3)
    start = time.perf_counter()
    expected = medpy_hd95(a, b, voxelspacing=(2.5, 0.8, 0.8))
    medpy_seconds = time.perf_counter() - start
    start = time.perf_counter()
    found = measures(a, b, (2.5, 0.8, 0.8), 1)
    seconds = time.perf_counter() - start
    print(f"\nMedPy's hd95 {medpy_seconds:.2f} s, all measures {seconds:.3f} s: {medpy_seconds / seconds:.0f} times")
    assert found[1] == pytest.approx(expected, abs=1e-6)
    assert medpy_seconds > 10 * seconds


def test_far_inside_a_large_hollow_surface_is_not_slow() -> None:
    """With SciPy's default tree every query visits the whole surface: minutes instead of a second."""
    z, y, x = np.ogrid[-1:1:160j, -1:1:160j, -1:1:160j]
    radius = np.sqrt(z**2 + y**2 + x**2)
    start = time.process_time()  # of this process alone: others may be using the machine
    measures(radius < 0.98, radius < 0.3, (1, 1, 1), 1)
    assert time.process_time() - start < 20
