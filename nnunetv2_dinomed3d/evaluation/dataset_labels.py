"""The structures that a comparison measures: labels and regions of a ``dataset.json``."""

from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.dataset_json import read_dataset_json
from nnunetv2_dinomed3d.nnunet_files import ENDINGS

MEAN = "mean of labels"
"""Name of the report's row that stands beside those of the labels."""


@dataclass(frozen=True)
class DatasetLabels:
    """Labels of a data set.

    Attributes:
        labels: the values that belong to each structure, by its name; a region has several.
        values: every value that a label map may hold, except that of the ignore label.
        ignore: value of the ignore label, or None.
        ending: file ending, such as ``.nii.gz``.
    """

    labels: dict[str, tuple[int, ...]]
    values: frozenset[int]
    ignore: int | None
    ending: str


def read_dataset_labels(path: Path) -> DatasetLabels:
    """Labels, regions, ignore label and file ending of a ``dataset.json``.

    Raises:
        ValueError: the file is malformed, or describes something that cannot be measured.
    """
    found = read_dataset_json(path)
    if found.ending not in ENDINGS:
        raise ValueError(
            f"{path}: files that end with {found.ending!r} do not hold their spacing in mm, which distances and "
            f"volumes need. Only {', '.join(ENDINGS)} can be measured"
        )
    if MEAN in found.labels:
        raise ValueError(f"{path}: the report has a row {MEAN!r} of its own: rename the label {MEAN!r}")
    return DatasetLabels(found.labels, found.values, found.ignore, found.ending)
