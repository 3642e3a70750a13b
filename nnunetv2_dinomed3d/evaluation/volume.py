"""Reading volumes (NIfTI, NRRD, MetaImage) once and whole. A file that is damaged, cut off or no volume is refused.

SimpleITK reads a NIfTI file that was cut off as if the rest were 0, and it refuses axes that are not quite orthogonal,
which nnU-Net reads through nibabel. So nibabel reads NIfTI's header here, and the voxels are read and counted.
"""

import gzip
import math
import os
import re
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

LARGEST = 4 * 2**30
"""Most bytes of voxels that are read."""
DEFLATE = 1032
"""Most bytes that gzip can unpack from one."""
HEADER = 2**16
"""Bytes within which the header of an NRRD or MetaImage file ends."""
CHUNK = 2**24
MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
ORTHOGONAL = 1e-3
"""Largest cosine between two axes that count as orthogonal."""


@dataclass(frozen=True)
class Geometry:
    """A volume's position in SimpleITK's order (x, y, z) and coordinates (left, posterior, superior), in mm."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """The spacing in the order of the array's axes, in mm."""
        x, y, z = self.spacing
        return z, y, x

    @property
    def orthogonal(self) -> bool:
        """Whether the axes are at right angles to each other."""
        axes = np.reshape(self.direction, (3, 3))
        return bool(np.allclose(axes.T @ axes, np.eye(3), atol=ORTHOGONAL))


Stream = IO[bytes] | gzip.GzipFile
Check = Callable[[Geometry], Any]


@dataclass(frozen=True)
class VoxelBytes:
    """The voxels in an NRRD or MetaImage file.

    Attributes:
        start: their first byte.
        packed: zlib's ``wbits`` of their compression; None if they are not compressed.
    """

    start: int
    packed: int | None


def read_volume(path: Path, check: Check = lambda geometry: None) -> tuple[np.ndarray, Geometry]:
    """A volume's voxels (d, h, w), in the file's number type, and its position.

    Args:
        check: called before the voxels are read; it raises ValueError to refuse the volume.

    Raises:
        ValueError: the file cannot be read, is damaged or cut off, or holds no volume of numbers.
    """
    try:
        with _open(path) as file:
            start = file.read(8)
            file.seek(0)
            if start.startswith(b"NRRD0"):
                return _through_itk(path, file, reader_name="NrrdImageIO", locate=_nrrd_voxels, check=check)
            if path.name.lower().endswith((".nii", ".nii.gz")):
                packed = start.startswith(b"\x1f\x8b")
                return _read_nifti(path, gzip.GzipFile(fileobj=file) if packed else file, packed, check)
            if path.name.lower().endswith(".mha"):
                return _through_itk(path, file, reader_name="MetaImageIO", locate=_meta_voxels, check=check)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    raise ValueError(f"{path} cannot be read: it does not begin as a file of that name does")


def _open(path: Path) -> IO[bytes]:
    """Open a file. A FIFO or a device is refused, because it would be waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no file")
    return path.open("rb")


def _check_volume(path: Path, geometry: Geometry, itemsize: int, most: int) -> None:
    """Refuse a volume without three axes or a spacing, or with more bytes than the file can hold (`most`)."""
    size, spacing = geometry.size, geometry.spacing
    if len(size) != 3:
        raise ValueError(f"{path} has {len(size)} axes; a label map of a volume has three")
    if min(size) < 1:
        raise ValueError(f"{path} has {size} voxels (x, y, z): it is empty")
    if not all(1e-6 <= mm <= 1e5 for mm in spacing):
        raise ValueError(f"{path} has spacing {spacing} mm (x, y, z): it cannot be measured in mm")
    needed = math.prod(size) * itemsize
    if needed > most:
        raise ValueError(
            f"{path} is cut off or damaged: {size} voxels (x, y, z) are {needed} bytes, the file holds at most {most}"
        )
    if needed > LARGEST:
        raise ValueError(f"{path} has {size} voxels (x, y, z), {needed} bytes: at most {LARGEST} are read")


def _read_nifti(path: Path, stream: Stream, packed: bool, check: Check) -> tuple[np.ndarray, Geometry]:
    header = _nifti_header(path, stream)
    try:
        kind, offset, (slope, inter) = header.get_data_dtype(), header.get_data_offset(), header.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} has a NIfTI header that is not valid: {_last_line(error)}") from error
    if kind.kind not in "uif":
        raise ValueError(f"{path} holds {kind} (RGB or complex), not one number per voxel: it is no label map")
    geometry = _nifti_geometry(path, header)
    read, offset = header.sizeof_hdr, int(offset) or header.single_vox_offset
    status = path.stat()
    if not read <= offset <= read + HEADER * 16:
        raise ValueError(f"{path} has a NIfTI header that is not valid: voxels begin at byte {offset}")
    most = status.st_size * DEFLATE if packed else max(0, status.st_size - offset)
    _check_volume(path, geometry, kind.itemsize, most)
    check(geometry)
    stream.read(offset - read)
    array = np.empty(geometry.size[::-1], kind)
    _fill(path, stream, array)
    if packed:
        _finish(path, stream)
    if slope is not None and (slope, inter) != (1, 0):
        array = array * float(slope) + float(inter)
    return array, geometry


def _last_line(error: Exception) -> str:
    """The last line of an error, which says most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _nifti_header(path: Path, stream: Stream) -> Nifti1Header:
    start = stream.read(4)
    lengths = {int.from_bytes(start, order) for order in ("little", "big")} if len(start) == 4 else set()
    kind = Nifti1Header if 348 in lengths else Nifti2Header if 540 in lengths else None
    if kind is None:
        raise ValueError(f"{path} cannot be read: it does not begin as a NIfTI file does")
    block = start + stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise ValueError(f"{path} is cut off: it ends in its header")
    header = kind(block, check=False)
    magic = bytes(header["magic"])
    if not magic.startswith(b"n+"):
        raise ValueError(f"{path} holds no voxels itself (a NIfTI pair, or Analyze): save it as one NIfTI file")
    return header


def _nifti_geometry(path: Path, header: Nifti1Header) -> Geometry:
    """The position as ITK reads it: from the sform, or from the qform if the sform's axes are not orthogonal.

    NIfTI's coordinates are (right, anterior, superior), ITK's (left, posterior, superior).
    """
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise ValueError(f"{path} has a NIfTI header that is not valid: {axes} axes")
    size = [int(n) for n in header["dim"][1 : axes + 1]]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    try:
        unit = MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:
        unit = 1.0
    spacing = np.abs(header["pixdim"][1:4].astype(float)) * unit
    found = [m for m in (header.get_sform(coded=True)[0], _qform(header)) if m is not None]
    found = [m for m in found if np.isfinite(m).all() and np.linalg.norm(m[:3, :3], axis=0).all()]
    candidates = [
        Geometry(tuple(size), tuple(spacing.tolist()), tuple((m[:3, 3] * unit).tolist()), tuple(_cosines(m)))
        for m in (np.diag([-1.0, -1.0, 1.0, 1.0]) @ m for m in found)
    ]
    bare = Geometry(tuple(size), tuple(spacing.tolist()), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    return next((g for g in candidates if g.orthogonal), candidates[0] if candidates else bare)


def _qform(header: Nifti1Header) -> np.ndarray | None:
    try:
        return header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # no rotation
        return None


def _cosines(matrix: np.ndarray) -> list[float]:
    axes = matrix[:3, :3]
    return (axes / np.linalg.norm(axes, axis=0)).ravel().tolist()


def _fill(path: Path, stream: Stream, array: np.ndarray) -> None:
    """Fill an array with bytes of the stream. Too few are an error."""
    wanted = array.reshape(-1).view(np.uint8)
    done = 0
    while done < len(wanted):
        count = stream.readinto(memoryview(wanted[done : done + CHUNK]))  # type: ignore
        if not count:
            raise ValueError(f"{path} is cut off: {len(wanted)} bytes of voxels by its header, {done} are there")
        done += count


def _finish(path: Path, stream: Stream) -> None:
    """Read the stream to its end, where gzip checks its checksum."""
    left = 0
    while found := len(stream.read(CHUNK)):
        left += found
        if left > 4 * CHUNK:
            raise ValueError(f"{path} is damaged: it goes on for more than {left} bytes after its voxels")


def _through_itk(
    path: Path, file: IO[bytes], *, reader_name: str, locate: Callable[[Path, bytes], VoxelBytes], check: Check
) -> tuple[np.ndarray, Geometry]:
    """Read a volume with SimpleITK, after checking that the file is whole, which ITK does not do."""
    voxels = locate(path, file.read(HEADER))
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() != 1:
            raise ValueError(f"{path} holds {reader.GetNumberOfComponents()} numbers per voxel: it is no label map")
        pixel = sitk.Image([1] * max(2, reader.GetDimension()), reader.GetPixelID())
        kind = sitk.GetArrayViewFromImage(pixel).dtype
        if kind.kind not in "uif":
            raise ValueError(f"{path} holds {kind}, not one number per voxel: it is no label map")
        geometry = Geometry(
            tuple(reader.GetSize()), tuple(reader.GetSpacing()), tuple(reader.GetOrigin()), tuple(reader.GetDirection())
        )
        there = path.stat().st_size - voxels.start
        most = there * DEFLATE if voxels.packed else there
        _check_volume(path, geometry, kind.itemsize, most)
        check(geometry)
        if voxels.packed:
            _check_packed(path, file, voxels, math.prod(geometry.size) * kind.itemsize)
        image = reader.Execute()
    except (RuntimeError, TypeError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read, cut off or damaged: {_last_line(error)}") from error
    return sitk.GetArrayFromImage(image), geometry


def _nrrd_voxels(path: Path, start: bytes) -> VoxelBytes:
    header = re.match(rb".*?\r?\n\r?\n", start, re.DOTALL)
    if header is None:
        raise ValueError(f"{path} cannot be read: it is cut off in its header, or keeps its voxels in another file")
    if re.search(rb"^(data ?file|line ?skip|byte ?skip) *:", header[0], re.IGNORECASE | re.MULTILINE):
        raise ValueError(f"{path} keeps its voxels in another file, or not after its header: save it anew")
    encoding = re.search(rb"^encoding *: *(\S+)", header[0], re.IGNORECASE | re.MULTILINE)
    name = encoding[1].lower() if encoding else b""
    if name not in (b"raw", b"gzip", b"gz"):
        raise ValueError(f"{path} has encoding {name.decode(errors='replace')!r}: save it as raw or gzip")
    return VoxelBytes(header.end(), None if name == b"raw" else 31)


def _meta_voxels(path: Path, start: bytes) -> VoxelBytes:
    match = re.search(rb"^ElementDataFile *= *(\S+)[^\n]*\n", start, re.MULTILINE)
    header = start[: match.start()] if match else b""
    if match is None or not all(re.search(rb"^%s *=" % key, header, re.MULTILINE) for key in (b"NDims", b"DimSize")):
        raise ValueError(f"{path} cannot be read: it is cut off in its header, or no MetaImage file")
    if match[1].upper() != b"LOCAL":
        raise ValueError(f"{path} keeps its voxels in another file: save it as one file")
    packed = re.search(rb"^CompressedData *= *True", header, re.IGNORECASE | re.MULTILINE)
    return VoxelBytes(match.end(), 15 if packed else None)


def _check_packed(path: Path, file: IO[bytes], voxels: VoxelBytes, needed: int) -> None:
    """Refuse compressed voxels that are not whole by their checksum, or not as many as the header says."""
    unpack, there = zlib.decompressobj(voxels.packed or 0), 0
    file.seek(voxels.start)
    while there <= needed and not unpack.eof and (packed := unpack.unconsumed_tail or file.read(HEADER)):
        there += len(unpack.decompress(packed, CHUNK))
    if there != needed or not unpack.eof:
        raise ValueError(f"{path} is cut off or damaged: {needed} bytes of voxels by its header, {there} are there")
