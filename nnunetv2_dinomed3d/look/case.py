"""The case to look at, as the network gets it: preprocessed by nnU-Net, or a raw image that is preprocessed now.

No code in a file is run. nnU-Net's own reader of preprocessed cases unpickles a file beside them; this one reads the
arrays alone. The header of a raw image is compared with the file's size before anything else is read.
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_dinomed3d.evaluation.label_map import read_label_map
from nnunetv2_dinomed3d.evaluation.volume import Geometry, read_volume
from nnunetv2_dinomed3d.nnunet_files import ENDINGS, preprocessed_folder
from nnunetv2_dinomed3d.text import join_first
from nnunetv2_dinomed3d.weights.archive import open_regular

SHOWN_SLICES = 3
MAX_SLICES = 40
"""No program opens a picture with more slices."""

MAX_COMPRESSION = 1000
SMALL_ARRAY = 1 << 30
"""Bytes. A larger array is no preprocessed case if it is more than `MAX_COMPRESSION` times as large as its file."""


@dataclass(frozen=True)
class Case:
    """A preprocessed case.

    Attributes:
        name: identifier of the case.
        image: ``(C, d, h, w)``, float32.
        reference: labels ``(d, h, w)``; None if there are none.
    """

    name: str
    image: Tensor
    reference: np.ndarray | None


def load_case(
    case: str, dataset: str, plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> Case:
    """Load a preprocessed case, or preprocess a raw image.

    Args:
        case: identifier of a preprocessed case, or path of a raw image's first channel (``..._0000.nii.gz``).
        dataset: name of the data set.
        plans, configuration, dataset_json: those of the model.

    Raises:
        ValueError: the case does not exist, or a file of it is malformed.
    """
    ending = dataset_json["file_ending"]
    if os.sep in case or case.endswith(ending):
        return _raw_case(Path(case), ending, plans, configuration, dataset_json)
    folder = preprocessed_folder(dataset) / configuration.data_identifier
    if not folder.is_dir():
        raise ValueError(
            f"{folder} does not exist. Preprocess the data set (nnUNetv2_plan_and_preprocess), or name the file of a "
            f"raw image instead of {case!r}, such as imagesTs/{case}_0000{ending}."
        )
    names = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    files = {
        name.removesuffix(end): folder / name
        for end in (".npz", ".b2nd")
        for name in names
        if name.endswith(end) and not name.endswith(f"_seg{end}")
    }
    if case not in files:
        raise ValueError(
            f"There is no case {case!r} in {folder}. There are: {join_first(files) or 'none'}. Name one of them, or "
            f"the file of a raw image, such as imagesTs/{case}_0000{ending}."
        )
    data, seg = _read_arrays(files[case])
    if data.ndim != 4 or seg.shape[1:] != data.shape[1:] or {data.dtype.kind, seg.dtype.kind} - set("fiu"):
        raise ValueError(
            f"{files[case]} is no preprocessed case: its arrays are {data.shape} {data.dtype} and {seg.shape} "
            f"{seg.dtype}. Preprocess the data set again."
        )
    return Case(case, torch.from_numpy(np.array(data, np.float32)), _labels(seg))


def _read_arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read image and segmentation of a preprocessed case, without the pickle beside them."""
    try:
        if file.suffix == ".b2nd":
            return _read_b2nd(file), _read_b2nd(file.with_name(f"{file.stem}_seg.b2nd"))
        with open_regular(file) as opened:
            with zipfile.ZipFile(opened) as archive:
                _require_plausible(sum(entry.file_size for entry in archive.infolist()), opened.seek(0, os.SEEK_END))
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as arrays:
                return arrays["data"], arrays["seg"]
    except Exception as error:  # damaged files end in almost any class
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{file} cannot be read ({reason}). Preprocess the data set again.") from error


def _read_b2nd(file: Path) -> np.ndarray:
    with open_regular(file) as opened:
        content = opened.read()
    array = blosc2.ndarray_from_cframe(content)  # blosc2.open would also follow recipes and links
    _require_plausible(array.size * array.dtype.itemsize, len(content))
    return array[:]


def _require_plausible(size: int, packed: int) -> None:
    """Refuse an array of `size` bytes in `packed` bytes of a file, if it is meant to fill the memory."""
    if size > max(SMALL_ARRAY, MAX_COMPRESSION * packed):
        raise ValueError(f"{packed:,} bytes of the file claim to hold an array of {size:,} bytes")


def _labels(seg: np.ndarray) -> np.ndarray:
    """The labels ``(d, h, w)`` of nnU-Net's segmentation ``(1, d, h, w)``, where -1 lies outside of the content."""
    return np.maximum(seg[0], 0)


def _raw_case(
    first: Path, ending: str, plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> Case:
    """Preprocess a raw image. Its other channels lie beside the first one, its labels in ``labelsTr``."""
    if not first.name.endswith(f"_0000{ending}"):
        raise ValueError(f"{first} is no first channel. Name the file that ends with _0000{ending}.")
    name = first.name.removesuffix(f"_0000{ending}")
    count = determine_num_input_channels(plans, configuration, dataset_json)
    channels = [first.with_name(f"{name}_{i:04d}{ending}") for i in range(count)]
    for file in channels:
        if not os.path.exists(file):
            raise ValueError(f"{file} does not exist. The model needs {count} channels, each in a file.")
    geometry = _require_images(channels, ending)
    labels = _labels_of(first, f"{name}{ending}")
    if labels and geometry:
        read_label_map(labels, geometry)
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, seg, _ = preprocessor.run_case(
        [str(file) for file in channels], str(labels) if labels else None, plans, configuration, dataset_json
    )
    return Case(name, torch.from_numpy(np.asarray(data, np.float32)), _labels(seg) if labels else None)


def _labels_of(image: Path, name: str) -> Path | None:
    """The file of labels in the folder ``labelsX`` beside the image's folder ``imagesX``, or None."""
    folder = Path(os.path.abspath(image)).parent
    if not folder.name.startswith("images"):
        return None
    labels = folder.with_name(f"labels{folder.name.removeprefix('images')}") / name
    return labels if labels.is_file() else None


def _require_images(channels: list[Path], ending: str) -> Geometry | None:
    """Check that every channel can be read and that all have one size.

    Returns:
        Their geometry, or None if only nnU-Net can read such files.
    """
    if ending not in ENDINGS:
        for file in channels:
            open_regular(file).close()
        return None
    first, *others = [read_volume(file)[1] for file in channels]
    for file, found in zip(channels[1:], others, strict=True):
        if found.size != first.size or not np.allclose(found.spacing, first.spacing, rtol=1e-3, atol=0):
            raise ValueError(
                f"{file} has {found.size} voxels of {found.spacing} mm, {channels[0].name} {first.size} of "
                f"{first.spacing}. The channels of a case have one size."
            )
    return first


def choose_slices(wanted: list[int] | None, labels: np.ndarray) -> list[int]:
    """Choose the slices to show.

    Args:
        wanted: numbers of slices; None for three, spread over the slices with a label, or over all if none has one.
        labels: ``(d, h, w)``.

    Raises:
        ValueError: there is no such slice, or there are too many.
    """
    depth = len(labels)
    if wanted:
        if len(wanted) > MAX_SLICES:
            raise ValueError(f"--slices: {len(wanted)} slices are too many for one picture. Name {MAX_SLICES} at most.")
        wrong = [index for index in wanted if not 0 <= index < depth]
        if wrong:
            raise ValueError(
                f"--slices {wrong[0]}: the preprocessed case has {depth} slices, 0 to {depth - 1} along its first axis."
            )
        return wanted
    labelled = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    pool = labelled if len(labelled) else np.arange(depth)
    places = [(2 * i + 1) * len(pool) // (2 * SHOWN_SLICES) for i in range(SHOWN_SLICES)]
    return sorted({int(pool[place]) for place in places})
