"""Images and labels of a case: reading them, and what the paper does to them (section 3.1).

Arrays are (d, h, w). Geometry is kept: a voxel of the result lies where it lay in the patient.
"""

import gzip
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from nnunetv2_dinomed3d.datasets.download import Case
from nnunetv2_dinomed3d.datasets.recipe import PERCENTILES, SIDE, FirstSlice, Recipe
from nnunetv2_dinomed3d.evaluation.label_map import read_label_map
from nnunetv2_dinomed3d.evaluation.volume import Geometry, read_volume

SERIES, MODALITY = "0020|000e", "0008|0060"
ALIKE = 0.5
"""Correlation of pictures and CT from which on they show the same slices."""


def read_images(case: Case, channels: tuple[int, ...]) -> tuple[list[np.ndarray], Geometry]:
    """The channels of a case that are taken, by their numbers, and their position.

    Raises:
        ValueError: a file cannot be read, or the channels differ in size or spacing.
    """
    if case.kind == "slices":
        array, geometry = read_series(case.images, len(case.labels))
        return [array], geometry
    if len(case.images) == 1 and len(channels) > 1:
        return read_4d(case.images[0], len(channels))
    found = {case.images[channel]: read_volume(case.images[channel]) for channel in channels}
    geometry = next(iter(found.values()))[1]
    for path, (_, its) in found.items():
        if its.size != geometry.size or not np.allclose(its.spacing, geometry.spacing, rtol=1e-3, atol=0):
            raise ValueError(
                f"{path} has {its.size} voxels of {its.spacing} mm (x, y, z), the first channel {geometry.size} of "
                f"{geometry.spacing}: download it again"
            )
    return [array for array, _ in found.values()], geometry


def read_4d(path: Path, channels: int) -> tuple[list[np.ndarray], Geometry]:
    """The channels of a NIfTI file with four axes.

    Raises:
        ValueError: it is cut off or damaged, or has another number of axes or channels.
    """
    try:
        _require_bytes(path)
        image = sitk.ReadImage(str(path))
    except (EOFError, gzip.BadGzipFile, zlib.error, ImageFileError, RuntimeError) as error:
        raise ValueError(f"{path} is cut off or damaged: {str(error).strip().splitlines()[-1]}") from error
    if image.GetDimension() != 4 or image.GetSize()[3] != channels:
        raise ValueError(f"{path} has {image.GetSize()} voxels (x, y, z, channel): {channels} channels are expected")
    first = image[..., 0]
    geometry = Geometry(first.GetSize(), first.GetSpacing(), first.GetOrigin(), first.GetDirection())
    return list(sitk.GetArrayFromImage(image)), geometry


def _require_bytes(path: Path) -> None:
    """Refuse a NIfTI file with fewer bytes than its header says: SimpleITK reads the rest as 0."""
    header = Nifti1Image.from_filename(path).header
    assert isinstance(header, Nifti1Header)
    voxels = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    needed, there = int(header.get_data_offset()) + voxels, 0
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        while block := file.read(2**24):
            there += len(block)
    if there < needed:
        raise EOFError(f"{needed} bytes by its header, {there} are there")


def read_series(files: tuple[Path, ...], count: int) -> tuple[np.ndarray, Geometry]:
    """A CT series in HU from the DICOM files of a folder, from the feet to the head.

    Args:
        count: slices that it must have. A folder may hold other series.

    Raises:
        ValueError: there is not one CT series of so many slices, or it cannot be read.
    """
    folder = str(files[0].parent)
    reader = sitk.ImageSeriesReader()
    found = {}
    for identifier in reader.GetGDCMSeriesIDs(folder):
        names = reader.GetGDCMSeriesFileNames(folder, identifier)
        if _tag(names[0], MODALITY) == "CT":
            found[identifier] = names
    fitting = [names for names in found.values() if len(names) == count]
    if len(fitting) != 1:
        sizes = " and ".join(str(len(names)) for names in found.values()) or "no"
        raise ValueError(f"{folder} has CT of {sizes} slices, the labels have {count}: download both again")
    reader.SetFileNames(fitting[0])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{folder} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return sitk.GetArrayFromImage(image), geometry


def _tag(file: str, tag: str) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""


def read_labels(case: Case, image: np.ndarray, geometry: Geometry, recipe: Recipe) -> tuple[np.ndarray, Geometry]:
    """The labels of a case with the recipe's values, uint8, and their position by their own file.

    Args:
        image, geometry: of the case's first channel.

    Raises:
        ValueError: they cannot be read, do not fit the image, or hold a value that is no label.
    """
    if case.kind == "slices":
        where, labels = geometry, _stack(case.labels, geometry)
        if _begins_at_head(case, image, geometry, recipe.first_slice):
            labels = labels[::-1]
    else:
        labels, where = read_label_map(case.labels[0], geometry)
    there = np.unique(labels)
    if unknown := sorted(set(there.tolist()) - set(recipe.values)):
        file = case.labels[0] if case.kind == "nifti" else case.labels[0].parent
        raise ValueError(f"{file} holds {unknown[:5]}, and labels may be {sorted(recipe.values)}: download it again")
    table = np.zeros(int(max(recipe.values)) + 1, np.uint8)
    table[list(recipe.values)] = list(recipe.values.values())
    return table[labels], where


def _stack(files: tuple[Path, ...], geometry: Geometry) -> np.ndarray:
    """PNG files as the slices of a volume, uint8 or uint16."""
    slices = []
    for path in files:
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise ValueError(f"{path} is cut off or damaged: download it again") from error
        if array.ndim == 3 and (array[..., :3] == array[..., :1]).all():
            array = array[..., 0]  # grey, saved as colours
        if array.shape != geometry.size[1::-1]:
            raise ValueError(f"{path} has {array.shape} pixels, its CT {geometry.size[1::-1]}: download it again")
        slices.append(array)
    return np.stack(slices)


def _begins_at_head(case: Case, ct: np.ndarray, geometry: Geometry, otherwise: FirstSlice) -> bool:
    """Whether the first PNG is the slice nearest to the head. Pictures of the same slices tell; else `otherwise`."""
    if not case.pictures:
        return otherwise == "head"
    pictures = _stack(case.pictures, geometry)[:, ::4, ::4].astype(np.float32)
    shown = np.clip(ct[:, ::4, ::4], 0, 80).astype(np.float32)
    up, down = _correlation(pictures, shown), _correlation(pictures, shown[::-1])
    if max(up, down) < ALIKE:
        raise ValueError(
            f"{case.pictures[0].parent} does not show the slices of its CT (correlation {max(up, down):.2f}): one of "
            f"them is another case's. Download {case.name} again, or leave it out with --leave-out"
        )
    return down > up


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def as_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """An array (d, h, w) at its position."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def as_paper(
    images: list[np.ndarray], labels: np.ndarray, geometry: Geometry, recipe: Recipe
) -> tuple[list[np.ndarray], np.ndarray, Geometry]:
    """Intensities, slices, spacing and size as in section 3.1 of the paper.

    Intensities are clipped first, over the whole image; then slices are cut out, and images resampled linearly, labels
    to the nearest voxel. CT stays in HU (int16), MRI is brought to 0 to 1 (float32).
    """
    images = [windowed(i, recipe.window) if recipe.window else normalised(i, recipe.nonzero) for i in images]
    kept = kept_slices(labels, recipe)
    moved = (
        np.asarray(geometry.origin) + kept.start * geometry.spacing[2] * np.reshape(geometry.direction, (3, 3))[:, 2]
    )
    size = (*geometry.size[:2], kept.stop - kept.start)
    geometry = replace(geometry, size=size, origin=tuple(moved.tolist()))
    grid = paper_grid(geometry, recipe.spacing)
    images = [resampled(image[kept], geometry, grid, sitk.sitkLinear) for image in images]
    return images, resampled(labels[kept], geometry, grid, sitk.sitkNearestNeighbor), grid


def windowed(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """HU clipped to a window (width, level), float32."""
    width, level = window
    return np.clip(image, level - width / 2, level + width / 2).astype(np.float32)


def normalised(image: np.ndarray, nonzero: bool) -> np.ndarray:
    """Intensities clipped to the 0.5 and 99.5 percentiles, those brought to 0 and 1, float32.

    Raises:
        ValueError: the image has one intensity only.
    """
    voxels = image[image != 0] if nonzero and image.any() else image
    low, high = np.percentile(voxels, PERCENTILES)
    if not high > low:
        raise ValueError(f"its intensities are {low:g} nearly everywhere: download it again, or leave the case out")
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)


def kept_slices(labels: np.ndarray, recipe: Recipe) -> slice:
    """The slices that are kept: around the middle of the labelled ones, or of all if there is no label."""
    depth = len(labels)
    if recipe.slices is None or depth <= recipe.slices:
        return slice(0, depth)
    labelled = np.flatnonzero(labels.any(axis=(1, 2))) if recipe.crop == "labels" else np.arange(0)
    first, last = (labelled[0], labelled[-1]) if len(labelled) else (0, depth - 1)
    start = int(np.clip((first + last + 1 - recipe.slices) // 2, 0, depth - recipe.slices))
    return slice(start, start + recipe.slices)


def paper_grid(geometry: Geometry, spacing: float | None) -> Geometry:
    """The grid of `SIDE` x `SIDE` pixels over the same field of view; slices are `spacing` mm apart, if given."""
    depth = geometry.size[2]
    step = geometry.spacing[2]
    if spacing is not None:
        depth, step = max(1, round(depth * step / spacing)), spacing
    size = np.array([SIDE, SIDE, depth])
    field = np.multiply(geometry.size, geometry.spacing)
    steps = np.array([field[0] / SIDE, field[1] / SIDE, step])
    first = (field - size * steps) / 2 + steps / 2 - np.asarray(geometry.spacing) / 2  # from the first voxel, in mm
    origin = np.asarray(geometry.origin) + np.reshape(geometry.direction, (3, 3)) @ first
    return Geometry((SIDE, SIDE, depth), tuple(steps.tolist()), tuple(origin.tolist()), geometry.direction)


def resampled(array: np.ndarray, geometry: Geometry, grid: Geometry, method: int) -> np.ndarray:
    """An array (d, h, w) on another grid over the same field of view, in the same number type."""
    image = as_image(array, geometry)
    moved = sitk.Resample(image, grid.size, sitk.Transform(), method, grid.origin, grid.spacing, grid.direction, 0.0)
    return sitk.GetArrayFromImage(moved)
