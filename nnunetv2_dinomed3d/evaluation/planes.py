"""One slice of every case, kept from when it was measured, so that no label map is read again for a picture."""

import zlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Plane:
    """A slice of a case's label maps, cut to what is in it; packed, as there may be thousands.

    Attributes:
        axis: across it, of (d, h, w).
        index: along that axis.
        box: what is cut out of the slice.
        shape: of the volume, (d, h, w).
        spacing: of the volume in mm, (z, y, x).
        packed: of "truth" and of each model, the cut's values, (h, w) int16, compressed; the truth comes first.
    """

    axis: int
    index: int
    box: tuple[slice, slice]
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    packed: list[tuple[str, bytes]]

    def maps(self) -> list[tuple[str, np.ndarray]]:
        """The cut of each label map, (h, w)."""
        size = [part.stop - part.start for part in self.box]
        return [(name, np.frombuffer(zlib.decompress(data), np.int16).reshape(size)) for name, data in self.packed]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The same place of another volume of that shape, (h, w)."""
        return np.take(volume, self.index, self.axis)[self.box]

    @property
    def aspect(self) -> float:
        """A voxel's height over its width."""
        height, width = (mm for axis, mm in enumerate(self.spacing) if axis != self.axis)
        return height / width


class PlaneChooser:
    """Chooses the slice of a case with most wrong voxels, of all predictions; if none is wrong, where the truth is.

    It keeps of every prediction the box that is not empty, not the whole.
    """

    def __init__(self, truth: np.ndarray, spacing: tuple[float, float, float]) -> None:
        self.spacing, self.shape = spacing, truth.shape
        self.axis = int(np.argmax(spacing))  # slices as they were acquired
        self.kept = [("truth", *_content(truth))]
        self.wrong = np.zeros(truth.shape[self.axis], np.int64)

    def add(self, model: str, truth: np.ndarray, prediction: np.ndarray) -> None:
        """A model's prediction, (d, h, w)."""
        self.wrong += np.count_nonzero(prediction != truth, axis=self._others)
        self.kept.append((model, *_content(prediction)))

    @property
    def _others(self) -> tuple[int, ...]:
        return tuple({0, 1, 2} - {self.axis})

    def plane(self) -> Plane:
        """The slice, of what was added."""
        index = int((self.wrong if self.wrong.any() else self._truth_counts()).argmax())
        slices = [(name, self._slice(box, part, index)) for name, box, part in self.kept]
        box = _surroundings(np.any([labels != 0 for _, labels in slices], axis=0))
        packed = [(name, zlib.compress(labels[box].tobytes(), 1)) for name, labels in slices]
        return Plane(self.axis, index, box, self.shape, self.spacing, packed)

    def _truth_counts(self) -> np.ndarray:
        _, box, part = self.kept[0]
        counts = np.zeros(self.shape[self.axis], np.int64)
        counts[box[self.axis]] = np.count_nonzero(part, axis=self._others)
        return counts

    def _slice(self, box: Box, part: np.ndarray, index: int) -> np.ndarray:
        """A slice of a volume of which only a box is kept, (h, w)."""
        size = [n for axis, n in enumerate(self.shape) if axis != self.axis]
        labels = np.zeros(size, np.int16)
        along = box[self.axis]
        if along.start <= index < along.stop:
            place = tuple(side for axis, side in enumerate(box) if axis != self.axis)
            labels[place] = np.take(part, index - along.start, self.axis)
        return labels


def _content(labels: np.ndarray) -> tuple[Box, np.ndarray]:
    """The box of what is not 0, and a copy of what is in it."""
    boxes = ndimage.find_objects((labels != 0).view(np.uint8))
    box = boxes[0] if boxes else (slice(0, 0),) * 3
    return box, labels[box].copy()


def _surroundings(there: np.ndarray) -> tuple[slice, slice]:
    """What is there in a slice, (h, w), with half as much again on every side, and at least a quarter of the slice."""
    slices = []
    for axis, size in enumerate(there.shape):
        line = np.flatnonzero(there.any(axis=1 - axis))
        first, last = (int(line[0]), int(line[-1]) + 1) if line.size else (0, size)
        margin = max((last - first) // 2, (size // 4 - (last - first)) // 2 + 1)
        slices.append(slice(max(0, first - margin), min(size, last + margin)))
    return slices[0], slices[1]
