"""One case: reading it, writing it in nnU-Net's format, and a record that it was written whole."""

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.datasets.download import Case
from nnunetv2_dinomed3d.datasets.recipe import Recipe
from nnunetv2_dinomed3d.datasets.target import write_json
from nnunetv2_dinomed3d.datasets.volumes import as_image, as_paper, read_images, read_labels
from nnunetv2_dinomed3d.evaluation.label_map import geometry_warning
from nnunetv2_dinomed3d.evaluation.volume import Geometry, read_volume

RECORDS = ".records"
ENDING = ".nii.gz"


@dataclass(frozen=True)
class Job:
    """A case to convert.

    Attributes:
        part: train, val, test, or "unlabelled" for a published test image.
        folder: of the data set, while it is being written.
        roots: folders of the download; files are named from there.
    """

    case: Case
    part: str
    recipe: Recipe
    folder: Path
    roots: tuple[Path, ...]

    @property
    def record(self) -> Path:
        """The file that says what was written, and exists only then."""
        return self.folder / RECORDS / f"{self.case.name}.json"


def sha256(path: Path) -> str:
    """A file's checksum, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def is_done(job: Job) -> bool:
    """Whether an earlier run wrote the case whole, in the same way from the same files, and nobody changed it since."""
    if not job.record.is_file():
        return False
    try:
        record = read_json(job.record)
        return (
            (record["part"], record["recipe"]) == (job.part, job.recipe.as_json())
            and record["stamps"] == _stamps(job.case.files)
            and all(sha256(job.folder / name) == its for name, its in record["written"].items())
        )
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return False


def _stamps(files: Iterable[Path]) -> list[list[int]]:
    """Size and time of each file: whether a download changed between two runs."""
    return [[status.st_size, status.st_mtime_ns] for status in (path.stat() for path in files)]


def convert_case(job: Job) -> dict[str, Any]:
    """Write a case and its record, which it returns.

    Raises:
        ValueError: a file of the download is damaged or does not fit the others.
        OSError: nothing can be written.
    """
    if is_done(job):
        return read_json(job.record)
    job.record.unlink(missing_ok=True)
    stamps = _stamps(job.case.files)
    workplace = job.folder / RECORDS / f"{job.case.name}.partial"
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir(parents=True)
    try:
        try:
            warning = _write_case(job, workplace)
        except RuntimeError as error:  # SimpleITK's
            raise ValueError(f"it cannot be converted: {_last(error)}") from error
        written = {}
        for path in sorted(path for path in workplace.rglob("*") if path.is_file()):
            _require_whole(path)
            name = path.relative_to(workplace)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            (job.folder / name).parent.mkdir(exist_ok=True)
            written[str(name)] = sha256(path)
            os.replace(path, job.folder / name)
        record = {
            "part": job.part,
            "recipe": job.recipe.as_json(),
            "patient": job.case.patient,
            "warning": warning,
            "stamps": stamps,
            "read": {_public(path, job.roots): sha256(path) for path in job.case.files},
            "written": written,
        }
        write_json(job.record, record)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return record


def _public(path: Path, roots: tuple[Path, ...]) -> str:
    """A file's name from the folder of the download on, without where that is."""
    root = next(root for root in roots if path.is_relative_to(root))
    return str(path.relative_to(root))


def _require_whole(path: Path) -> None:
    """Read what was written: SimpleITK does not always notice a full disk."""
    try:
        read_volume(path)
    except ValueError as error:
        raise OSError(f"{path.name} could not be written whole ({error}): is the disk full?") from error


def _write_case(job: Job, folder: Path) -> str:
    """Write images and labels into a folder; a warning about their positions, or an empty text."""
    kind = "Ts" if job.part in ("test", "unlabelled") else "Tr"
    images, geometry = read_images(job.case, job.recipe.channels)
    for name in (f"images{kind}", f"labels{kind}"):
        (folder / name).mkdir()
    warning = ""
    if job.case.labels:
        labels, where = read_labels(job.case, images[0], geometry, job.recipe)
        if geometry_warning(geometry, where):
            warning = "by their headers, image and labels lie at different places; they are taken voxel by voxel"
        if job.recipe.paper:
            images, labels, geometry = _as_paper(job, images, labels, geometry)
        target = folder / f"labels{kind}" / f"{job.case.name}{ENDING}"
        unchanged = job.case.kind == "nifti" and not job.recipe.paper and not job.recipe.relabels
        _write(labels, geometry, target, job.case.labels[0] if unchanged else None)
    three_axes = len(job.case.images) >= len(images)
    for number, image in enumerate(images):
        target = folder / f"images{kind}" / f"{job.case.name}_{number:04d}{ENDING}"
        unchanged = job.case.kind == "nifti" and not job.recipe.paper and three_axes
        _write(image, geometry, target, job.case.images[job.recipe.channels[number]] if unchanged else None)
    return warning


def _as_paper(
    job: Job, images: list[np.ndarray], labels: np.ndarray, geometry: Geometry
) -> tuple[list[np.ndarray], np.ndarray, Geometry]:
    images, labels, geometry = as_paper(images, labels, geometry, job.recipe)
    if job.recipe.window:
        images = [np.rint(image).astype(np.int16) for image in images]
    return images, labels, geometry


def _write(array: np.ndarray, geometry: Geometry, target: Path, source: Path | None) -> None:
    """Write a volume, or copy the publisher's file of it."""
    if source is None:
        try:
            sitk.WriteImage(as_image(array, geometry), str(target), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"{target.name} could not be written: is the disk full? ({_last(error)})") from error
    elif source.name.endswith(".gz"):
        shutil.copyfile(source, target)
    else:
        with source.open("rb") as file, gzip.open(target, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(file, packed, 2**20)


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
