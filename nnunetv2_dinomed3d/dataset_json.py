"""Reading and checking nnU-Net's ``dataset.json``, without nnU-Net and without PyTorch."""

import json
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_VALUE = 32_767
"""Largest value of a label: nnU-Net keeps segmentations in 16 bits with a sign."""
LARGEST_FILE = 256 * 2**20
"""Most bytes of a JSON file that is read."""
EXAMPLE = '"labels": {"background": 0, "tumor": 1}'


@dataclass(frozen=True)
class DatasetJson:
    """The content of a ``dataset.json`` that matters here.

    Attributes:
        labels: the values of each label or region, in the file's order, without background and ignore label.
        regions: whether some label is a list of values (nnU-Net's regions).
        values: every value that a label map may hold, with 0 and without that of the ignore label.
        ignore: value of the ignore label.
        channels: names of the channels in the order of their numbers; empty if the file has none.
        ending: file ending, such as ``.nii.gz``.
    """

    labels: dict[str, tuple[int, ...]]
    regions: bool
    values: frozenset[int]
    ignore: int | None
    channels: tuple[str, ...]
    ending: str


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file does not exist, is no file, is too large or holds no JSON. Two equal names in one object
            are refused too.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no file")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"{path} has {status.st_size} bytes, which is too large for a JSON file of nnU-Net")
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of two equal names, Python would silently keep one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {_shown(twice)} occurs twice in one object")
    return found


def read_dataset_json(path: Path) -> DatasetJson:
    """Read and check a ``dataset.json``.

    Raises:
        ValueError: it cannot be read or is malformed; the message names file, value and fix.
    """
    return parse_dataset_json(read_json(path), path)


def parse_dataset_json(content: Any, source: Path | str) -> DatasetJson:
    """Check the content of a ``dataset.json``.

    Args:
        source: origin of the content, for messages.

    Raises:
        ValueError: the content is malformed.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source} holds no JSON object {{...}}: nnU-Net's dataset.json is one, with {EXAMPLE}")
    labels, ignore = _labels(content.get("labels"), source)
    named = {name: values for name, values in labels.items() if name != "background"}
    everything = frozenset(value for values in labels.values() for value in values)
    regions = any(isinstance(value, list) for value in content["labels"].values())
    return DatasetJson(named, regions, everything, ignore, _channels(content, source), _ending(content, source))


def _shown(value: Any) -> str:
    """A value as JSON writes it, shortened to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_v1(labels: dict[str, Any], source: Path | str) -> None:
    """Refuse the labels of nnU-Net v1, such as ``{"0": "background", "1": "tumor"}``."""
    if labels and all(name.strip().isdigit() for name in labels) and all(isinstance(v, str) for v in labels.values()):
        raise ValueError(
            f"{source} has labels {_shown(labels)}, as nnU-Net v1 wrote them: in v2 names and values are the other way "
            f"round, {EXAMPLE}. nnUNetv2_convert_old_nnUNet_dataset converts a data set"
        )


def _labels(labels: Any, source: Path | str) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """The values of every label, background included, and the value of the ignore label."""
    if not isinstance(labels, dict):
        what = "there are no labels" if labels is None else f"labels are {_shown(labels)}, not names with values"
        raise ValueError(f"{source}: {what}; nnU-Net's dataset.json needs them, such as {EXAMPLE}")
    _refuse_v1(labels, source)
    if unnamed := [name for name in labels if not name.strip()]:
        raise ValueError(f"{source}: a label's name is empty ({_shown(unnamed[0])}): give it one")
    for name, value in labels.items():
        values = value if isinstance(value, list) and name not in ("background", "ignore") else [value]
        if not values:
            raise ValueError(
                f"{source}: region {_shown(name)} is an empty list: name the values in it, or leave it out"
            )
        for one in values:
            _check_value(name, one, value, source)
        if len(set(values)) < len(values):
            raise ValueError(f"{source}: region {_shown(name)} is {_shown(value)}: name each value once")
    if labels.get("background") != 0:
        there = f"is {_shown(labels['background'])}" if "background" in labels else "is not there"
        raise ValueError(f"{source}: the label background {there}; it must be there and be 0, such as {EXAMPLE}")
    found = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in labels.items()}
    ignore = found.pop("ignore", None)
    if ignore == (0,):
        raise ValueError(
            f"{source}: the ignore label is 0, which is the background: use the value after the last label"
        )
    names: dict[tuple[int, ...], str] = {}
    for name, group in found.items():
        if 0 in group and name != "background":
            raise ValueError(f"{source}: label {_shown(name)} is {_shown(labels[name])}, but 0 is the background's")
        if (other := names.setdefault(tuple(sorted(group)), name)) != name:
            raise ValueError(
                f"{source}: {_shown(other)} and {_shown(name)} are both {_shown(labels[name])}: give each its own value"
            )
        if ignore and ignore[0] in group:
            raise ValueError(f"{source}: {_shown(name)} and the ignore label both hold {ignore[0]}: give each its own")
    if set(found) == {"background"}:
        raise ValueError(f"{source} names no label but the background: there is nothing to segment, add one")
    return found, ignore[0] if ignore else None


def _check_value(name: str, value: Any, whole: Any, source: Path | str) -> None:
    """Refuse a label's value that is no integer or that a segmentation cannot hold."""
    where = f"{source}: label {_shown(name)} is {_shown(whole)}"
    if isinstance(value, bool) or not isinstance(value, int):
        fix = "an integer without quotes and point"
        if name not in ("background", "ignore"):
            fix += ", or a list of such for a region"
        raise ValueError(f"{where}: a label is {fix}, as in {EXAMPLE}")
    if not 0 <= value <= LARGEST_VALUE:
        raise ValueError(f"{where}: values go from 0 to {LARGEST_VALUE}, use 0, 1, 2, ...")


def _channels(content: dict[str, Any], source: Path | str) -> tuple[str, ...]:
    """The names of the channels, which nnU-Net also looks for under "modality"."""
    key = next((key for key in ("channel_names", "modality") if key in content), None)
    if key is None:
        return ()
    channels, example = content[key], '{"0": "CT"}'
    if not isinstance(channels, dict) or not channels:
        raise ValueError(f"{source}: {key} is {_shown(channels)}, not numbers with names, such as {example}")
    if set(channels) != {str(i) for i in range(len(channels))}:
        raise ValueError(f"{source}: {key} is {_shown(channels)}: number the channels 0, 1, 2, ..., such as {example}")
    if wrong := [name for name in channels.values() if not isinstance(name, str)]:
        raise ValueError(f"{source}: {key} names {_shown(wrong[0])}, which is no text: use names, such as {example}")
    return tuple(channels[str(i)] for i in range(len(channels)))


def _ending(content: dict[str, Any], source: Path | str) -> str:
    ending = content.get("file_ending")
    if not isinstance(ending, str) or len(ending) < 2 or not ending.startswith(".") or "/" in ending:
        what = "is not there" if ending is None else f"is {_shown(ending)}"
        raise ValueError(f'{source}: file_ending {what}; it is an ending with its point, such as ".nii.gz"')
    return ending
