"""What ``dataset.json`` may say, and the one line for each thing that it may not."""

import json
import os
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.dataset_json import DatasetJson, parse_dataset_json, read_dataset_json

pytestmark = pytest.mark.own


def test_labels_regions_and_ignore_label_are_read() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    content = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"1": "T2", "0": "T1"}}
    found = parse_dataset_json(content, "x")
    expected = {"whole": (1, 2), "core": (2,)}
    assert found == DatasetJson(expected, True, frozenset({0, 1, 2}), 3, ("T1", "T2"), ".nii.gz")
    plain = parse_dataset_json({"labels": {"background": 0, "b": 7}, "file_ending": ".nrrd"}, "x")
    assert plain == DatasetJson({"b": (7,)}, False, frozenset({0, 7}), None, (), ".nrrd")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"0": "background", "1": "tumour"}, "names and values are the other way round"),
        ({"background": 0, "a": True}, 'label "a" is true: a label is an integer'),
        ({"background": 0, "a": 1.0}, 'label "a" is 1.0: a label is an integer'),
        ({"background": 0, "a": "1"}, 'label "a" is "1": a label is an integer'),
        ({"background": 0, "a": None}, 'label "a" is null'),
        ({"background": 0, "a": float("nan")}, 'label "a" is NaN'),
        ({"background": 0, "a": [[1, 2]]}, 'label "a" is [[1, 2]]'),
        ({"background": 0, "a": {"b": 1}}, 'label "a" is {"b": 1}'),
        ({"background": 0, "a": [1, True]}, 'label "a" is [1, true]'),
        ({"background": 0, "a": -1}, 'label "a" is -1: values go from 0'),
        ({"background": 0, "a": 10**30}, f'label "a" is {10**30}: values go from 0'),
        ({"background": 0, "a": 1, "b": 1}, '"a" and "b" are both 1'),
        ({"background": 0, "a": 1, "b": 0}, 'label "b" is 0, but 0 is the background'),
        ({"background": 0, "a": [0, 1]}, 'label "a" is [0, 1], but 0 is the background'),
        ({"background": 0, "a": [1, 2], "b": [2, 1]}, '"a" and "b" are both [2, 1]'),
        ({"background": 0, "a": [1, 1]}, "name each value once"),
        ({"background": 0, "a": []}, 'region "a" is an empty list'),
        ({"a": 1}, "the label background is not there"),
        ({"background": 1, "a": 2}, "the label background is 1"),
        ({"background": [0], "a": 2}, 'label "background" is [0]'),
        ({"background": 0}, "names no label but the background"),
        ({"background": 0, "ignore": 1}, "names no label but the background"),
        ({"background": 0, "a": 1, "ignore": 1}, '"a" and the ignore label both hold 1'),
        ({"background": 0, "a": 1, "ignore": 0}, "the ignore label is 0"),
        ({"background": 0, "a": 1, "ignore": -1}, 'label "ignore" is -1'),
        ({"background": 0, "a": 1, "ignore": [2]}, 'label "ignore" is [2]'),
        ({"background": 0, " ": 1}, "a label's name is empty"),
        ({}, "the label background is not there"),
        (["background", "a"], 'labels are ["background", "a"], not names with values'),
        (None, "there are no labels"),
    ],
)
def test_malformed_labels_are_named(labels: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^folder/dataset.json") as error:
        parse_dataset_json({"labels": labels, "file_ending": ".nii.gz"}, "folder/dataset.json")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_ending": None}, "file_ending is not there"),
        ({"file_ending": 3}, "file_ending is 3"),
        ({"file_ending": "nii.gz"}, 'file_ending is "nii.gz"'),
        ({"file_ending": "."}, 'file_ending is "."'),
        ({"file_ending": "./../x"}, "file_ending is"),
        ({"channel_names": ["CT"]}, 'channel_names is ["CT"]'),
        ({"channel_names": {}}, "channel_names is {}"),
        ({"channel_names": {"1": "CT"}}, "number the channels 0, 1, 2"),
        ({"channel_names": {"0": 5}}, "channel_names names 5"),
    ],
)
def test_malformed_endings_and_channels_are_named(changes: dict[str, object], reason: str) -> None:
    content = {"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz", **changes}
    with pytest.raises(ValueError, match=r"^x: ") as error:
        parse_dataset_json(content, "x")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no valid JSON"),
        (b'{"labels": ', "is no valid JSON"),
        (b'{"labels": {"background": 0, "L\xe6sion": 1}}', "is not UTF-8 (byte"),
        ("\ufeff{}".encode(), "is no valid JSON"),
        (b"[" * 100_000, "is no valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no valid JSON"),
        (b'{"labels": {"background": 0, "a": 1, "a": 2}, "file_ending": ".nii.gz"}', 'name "a" occurs twice'),
        (b"[1]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b'{"file_ending": ".nii.gz"}', "there are no labels"),
        (b'{"labels": {"background": 0, "a": 1}}', "file_ending is not there"),
    ],
)
def test_files_that_are_no_dataset_json_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}") as error:
        read_dataset_json(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A FIFO would be waited for for ever."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    for name, reason in (("", "is no file"), ("fifo", "is no file"), ("no", "does not exist"), ("large", "bytes")):
        with pytest.raises(ValueError, match=reason):
            read_dataset_json(tmp_path / name)
    with pytest.raises(ValueError, match="is no file"):
        read_dataset_json(Path("/dev/zero"))


def test_an_own_dataset_json_is_read(shared: Path) -> None:
    path = shared / "data" / "Dataset004_Hippocampus" / "dataset.json"
    found = read_dataset_json(path)
    assert found.values == frozenset({0, 1, 2})
    assert len(found.channels) == len(json.loads(path.read_text())["channel_names"])
