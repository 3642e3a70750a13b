"""One slice of every case, kept while it is measured, so that no label map is read again for a picture."""

import zlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Plane:
    """A slice of a case's label maps, cut to what is in it. It is compressed, because there may be thousands.

    Attributes:
        axis: the axis of (d, h, w) that the slice lies across.
        index: its place along that axis.
        box: the part of the slice that is shown.
        shape: of the volume, (d, h, w).
        spacing: of the volume in mm, (z, y, x).
        packed: name and compressed part, (h, w) int16, of "reference" first and of each model.
    """

    axis: int
    index: int
    box: tuple[slice, slice]
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    packed: list[tuple[str, bytes]]

    def maps(self) -> list[tuple[str, np.ndarray]]:
        """Name and part of each label map, (h, w)."""
        size = [part.stop - part.start for part in self.box]
        return [(name, np.frombuffer(zlib.decompress(data), np.int16).reshape(size)) for name, data in self.packed]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The same part of another volume of that shape, (h, w)."""
        return np.take(volume, self.index, self.axis)[self.box]

    @property
    def aspect(self) -> float:
        """A voxel's height over its width."""
        height, width = (mm for axis, mm in enumerate(self.spacing) if axis != self.axis)
        return height / width


class PlaneChooser:
    """Chooses a case's slice: the one with most wrong voxels in all predictions, else with most of the reference.

    It keeps the non-empty box of every label map, not the whole.
    """

    def __init__(self, reference: np.ndarray, spacing: tuple[float, float, float]) -> None:
        self.spacing, self.shape = spacing, reference.shape
        self.axis = int(np.argmax(spacing))  # across it lie the slices as they were acquired
        self.kept = [("reference", *_content(reference))]
        self.wrong = np.zeros(reference.shape[self.axis], np.int64)

    def add(self, model: str, reference: np.ndarray, prediction: np.ndarray) -> None:
        """Add a model's prediction, (d, h, w); voxels that do not count are equal in both."""
        self.wrong += np.count_nonzero(prediction != reference, axis=self._others)
        self.kept.append((model, *_content(prediction)))

    @property
    def _others(self) -> tuple[int, ...]:
        return tuple({0, 1, 2} - {self.axis})

    def plane(self) -> Plane:
        """The slice of all label maps that were added."""
        index = int((self.wrong if self.wrong.any() else self._reference_counts()).argmax())
        slices = [(name, self._slice(box, part, index)) for name, box, part in self.kept]
        box = _surroundings(np.any([labels != 0 for _, labels in slices], axis=0))
        packed = [(name, zlib.compress(labels[box].tobytes(), 1)) for name, labels in slices]
        return Plane(self.axis, index, box, self.shape, self.spacing, packed)

    def _reference_counts(self) -> np.ndarray:
        _, box, part = self.kept[0]
        counts = np.zeros(self.shape[self.axis], np.int64)
        counts[box[self.axis]] = np.count_nonzero(part, axis=self._others)
        return counts

    def _slice(self, box: Box, part: np.ndarray, index: int) -> np.ndarray:
        """A slice, (h, w), of a volume of which only a box is kept."""
        size = [n for axis, n in enumerate(self.shape) if axis != self.axis]
        labels = np.zeros(size, np.int16)
        along = box[self.axis]
        if along.start <= index < along.stop:
            place = tuple(side for axis, side in enumerate(box) if axis != self.axis)
            labels[place] = np.take(part, index - along.start, self.axis)
        return labels


def _content(labels: np.ndarray) -> tuple[Box, np.ndarray]:
    """The box around everything that is not 0, and a copy of its content."""
    boxes = ndimage.find_objects((labels != 0).view(np.uint8))
    box = boxes[0] if boxes else (slice(0, 0),) * 3
    return box, labels[box].copy()


def _surroundings(there: np.ndarray) -> tuple[slice, slice]:
    """The box to show of a slice, (h, w): its content with half its size on every side, at least a quarter of all."""
    slices = []
    for axis, size in enumerate(there.shape):
        line = np.flatnonzero(there.any(axis=1 - axis))
        first, last = (int(line[0]), int(line[-1]) + 1) if line.size else (0, size)
        margin = max((last - first) // 2, (size // 4 - (last - first)) // 2 + 1)
        slices.append(slice(max(0, first - margin), min(size, last + margin)))
    return slices[0], slices[1]
