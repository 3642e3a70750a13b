"""What is wrong with preprocessed cases, their segmentations and the split is named before a training starts."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_dinomed3d.trainers.harness.case_checks import Expected, check_cases, largest_raw_value
from nnunetv2_dinomed3d.trainers.harness.input_checks import check_dataset_json, check_folder, check_split

pytestmark = pytest.mark.own

SHAPE = (2, 6, 12, 10)
LABELS = {"background": 0, "organ": 1, "tumour": 2}
LOCATIONS = {1: np.argwhere(np.ones((1, 3, 12, 10), np.int16)), 2: np.array([[0, 5, 11, 9]])}
Change = Callable[[np.ndarray, np.ndarray, dict], Any]


def sound() -> tuple[np.ndarray, np.ndarray, dict]:
    data = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    seg = np.zeros((1, *SHAPE[1:]), np.int16)
    seg[:, :3], seg[0, 5, 11, 9], seg[0, 4] = 1, 2, -1
    return data, seg, {"class_locations": dict(LOCATIONS)}


class Folder:
    """Three preprocessed cases in nnU-Net's format of today, or its former one."""

    def __init__(self, path: Path, kind: Any = nnUNetDatasetBlosc2) -> None:
        self.path, self.kind = path, kind
        self.labels: dict[str, Any] = dict(LABELS)
        self.regions_class_order: list[int] | None = None
        for case in "abc":
            self.write(case)

    def write(self, case: str, change: Change = lambda data, seg, properties: None) -> None:
        for path in self.path.glob(f"{case}[._]*"):
            path.unlink()
        data, seg, properties = sound()
        changed = change(data, seg, properties)
        data, seg, properties = changed if isinstance(changed, tuple) else (data, seg, properties)
        chunks = (1, 2, 12, 10) if data.ndim == 4 else (1, 12, 10)
        extra = {} if self.kind is nnUNetDatasetNumpy else {"chunks": chunks, "blocks": (1, *chunks[1:])}
        self.kind.save_case(data, seg, properties, str(self.path / case), **extra)

    def check(self, raw: float | None = None, previous: Path | None = None) -> list[str]:
        manager = LabelManager(self.labels, self.regions_class_order)
        expected = Expected.of({"channel_names": {"0": "T1", "1": "T2"}}, manager)
        train, val = (self.kind(str(self.path), cases, previous and str(previous)) for cases in (["a", "b"], ["c"]))
        return check_cases(train, val, expected, lambda case: raw)

    def fault(self, **arguments: Any) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at by the caller
            self.check(**arguments)
        message = str(caught.value)
        assert "\n" not in message
        return message


@pytest.fixture(params=[nnUNetDatasetBlosc2, nnUNetDatasetNumpy])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Folder:
    return Folder(tmp_path, request.param)


def set_at(array: int, value: float) -> Change:
    def change(*case: Any) -> None:
        case[array][0, 5, 3, 2] = value

    return change


def locations(**changed: Any) -> Change:
    return lambda data, seg, properties: properties.update(changed)


def test_sound_cases(folder: Folder) -> None:
    assert folder.check() == []


FAULTS: dict[str, tuple[Change, str]] = {
    "a label too many": (
        set_at(1, 7),
        "segmentation has the value 7, which dataset.json does not name (it names 0, 1, 2)",
    ),
    "below nnU-Net's -1": (set_at(1, -2), "segmentation has the value -2"),
    "no integer": (lambda d, s, p: (d, s + np.float32(0.5), p), "segmentation has the value -0.5, 0.5, 1.5, 2.5"),
    "a larger segmentation": (lambda d, s, p: (d, s[:, :, :, 1:], p), "segmentation 1 x 6 x 12 x 9"),
    "a channel too few": (lambda d, s, p: (d[:1], s, p), "1 channels, dataset.json names 2"),
    "a flat image": (lambda d, s, p: (d[:, 0], s[:, 0], p), "shape 2 x 12 x 10"),
    "NaN": (set_at(0, np.nan), "not finite"),
    "an outlier": (set_at(0, -1e38), "too large for float32 arithmetic (up to 1e+38)"),
    "constant": (lambda d, s, p: d.fill(3), "same intensity everywhere"),
    "no locations": (lambda d, s, p: p.pop("class_locations"), "no class_locations."),
    "no properties": (lambda d, s, p: (d, s, [1]), "no class_locations."),
    "a label without locations": (locations(class_locations={1: LOCATIONS[1]}), "no class_locations of label 2"),
    "locations outside": (locations(class_locations=LOCATIONS | {1: [[0, 6, 0, 0]]}), "of label 1 outside the image"),
    "locations before": (locations(class_locations=LOCATIONS | {1: [[0, -1, 0, 0]]}), "of label 1 outside the image"),
    "locations in a plane": (locations(class_locations=LOCATIONS | {2: [[0, 1, 1]]}), "of label 2 outside the image"),
    "locations between": (locations(class_locations=LOCATIONS | {2: [[0, 1, 1, 0.5]]}), "of label 2 outside"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_case_that_cannot_be_trained_on_is_named(name: str, tmp_path: Path) -> None:
    change, message = FAULTS[name]
    folder = Folder(tmp_path)
    folder.write("b", change)
    fault = folder.fault()
    assert fault.startswith("b: ")
    assert message in fault
    assert "reprocess again" in fault


def test_cases_of_one_fault_are_named_together_and_others_counted(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a", set_at(1, 9))
    folder.write("c", set_at(1, 9))
    folder.write("b", set_at(0, np.inf))
    assert folder.fault().startswith("a, c: the segmentation has the value 9")
    assert folder.fault().endswith("Faults of other kinds: b.")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), 7):
        content[place] ^= 0xA5
    path.write_bytes(content)


DAMAGE = {"cut": cut, "flipped": flip, "empty": lambda path: path.write_bytes(b""), "missing": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(folder: Folder, damage: str) -> None:
    suffixes = [".npz", ".pkl"] if folder.kind is nnUNetDatasetNumpy else [".b2nd", "_seg.b2nd", ".pkl"]
    for suffix in suffixes:
        folder.write("a")
        DAMAGE[damage](folder.path / f"a{suffix}")
        fault = folder.fault()
        assert fault.startswith("a: "), (suffix, fault)
        assert "reprocess again" in fault


def test_a_damaged_shape_is_not_believed(tmp_path: Path) -> None:
    """A flipped bit can make an image of a terabyte."""
    folder = Folder(tmp_path)
    case: Any = SimpleNamespace(shape=(2, 10**9, 12, 10)), SimpleNamespace(shape=(1, *SHAPE[1:])), None, {}
    folder.kind = type("Huge", (nnUNetDatasetBlosc2,), {"load_case": lambda self, case_: case})
    assert "image has the shape 1000000000 x 12 x 10, the segmentation 1 x 6 x 12 x 10" in folder.fault()


def test_a_cut_pickle_of_another_kind(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(["\n"]))
    assert folder.fault().startswith("a: its .pkl has no class_locations")


def test_a_checksum_of_the_former_format_is_looked_at(tmp_path: Path) -> None:
    folder = Folder(tmp_path, nnUNetDatasetNumpy)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        start = archive.getinfo("data.npy").header_offset
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[start + 200] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    assert folder.fault().startswith("a: its preprocessed files are missing, or cut or damaged")


def test_a_name_cannot_break_the_line(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("b\n2026-01-01 00:00:00.0: Epoch 7", set_at(1, 7))
    expected = Expected.of({"channel_names": {"0": "T1", "1": "T2"}}, LabelManager(LABELS, None))
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    with pytest.raises(ValueError, match=r"^b\\n2026-01-01 00:00:00.0: Epoch 7: the seg"):
        check_cases(dataset, dataset, expected, lambda case: None)


def test_regions_and_ignore_label(tmp_path: Path) -> None:
    """As nnU-Net encodes them: the values stay, and voxels of all annotated ones together are sampled too."""
    folder = Folder(tmp_path)
    folder.labels = {"background": 0, "whole": [1, 2], "tumour": [2], "ignore": 3}
    folder.regions_class_order = [1, 2]
    sampled = {(1, 2): LOCATIONS[1], (2,): LOCATIONS[2], (-1, 0, 1, 2): LOCATIONS[1]}

    def encode(data: np.ndarray, seg: np.ndarray, properties: dict) -> None:
        seg[0, 3] = 3
        properties["class_locations"] = dict(sampled)

    for case in "abc":
        folder.write(case, encode)
    assert folder.check() == []
    sampled.pop((-1, 0, 1, 2))
    folder.write("b", encode)
    assert folder.fault().startswith("b: its .pkl has no class_locations of label (-1, 0, 1, 2)")
    sampled[-1, 0, 1, 2] = LOCATIONS[1]
    folder.write("b", lambda d, s, p: (d, np.where(s == 1, 4, s), {"class_locations": sampled}))
    assert "value 4, which dataset.json does not name (it names 0, 1, 2, 3)" in folder.fault()


def test_the_cascade_needs_the_stage_before(tmp_path: Path) -> None:
    data, before = tmp_path / "data", tmp_path / "before"
    data.mkdir(), before.mkdir()
    folder = Folder(data)
    seg = np.ascontiguousarray(np.clip(sound()[1][0], 0, 1))
    for case in "ab":
        nnUNetDatasetBlosc2.save_seg(seg, str(before / case))
    assert f"c: {before} has no prediction of the previous stage" in folder.fault(previous=before)
    nnUNetDatasetBlosc2.save_seg(seg, str(before / "c"))
    assert folder.check(previous=before) == []
    nnUNetDatasetBlosc2.save_seg(seg + np.int16(6), str(before / "c"))
    assert "c: the prediction of the previous stage has the value 6, 7" in folder.fault(previous=before)
    nnUNetDatasetBlosc2.save_seg(np.ascontiguousarray(seg[1:]), str(before / "c"))
    assert "previous stage has the shape 5 x 12 x 10, the image 6 x 12 x 10" in folder.fault(previous=before)


def test_one_constant_channel_is_worth_a_warning(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("b", lambda d, s, p: d[1].fill(0))
    (warning,) = folder.check()
    assert warning.startswith("b: channel 1 has the same intensity everywhere")


def test_a_raw_outlier_that_normalisation_flattens(tmp_path: Path) -> None:
    """nnU-Net divides by a standard deviation that is infinite in float32: all becomes 0."""
    raw = tmp_path / "raw"
    (raw / "imagesTr").mkdir(parents=True)
    image = np.random.default_rng(0).normal(0, 1, (4, 5, 6)).astype(np.float32)
    image[1, 2, 3] = 1e38
    for channel in "01":
        sitk.WriteImage(sitk.GetImageFromArray(image), str(raw / "imagesTr" / f"b_000{channel}.nii.gz"))
    description = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}
    largest = largest_raw_value(raw, description, SimpleITKIO(), "b")
    assert largest == pytest.approx(1e38)
    assert largest_raw_value(raw, description, SimpleITKIO(), "a") is None
    (tmp_path / "cases").mkdir()
    folder = Folder(tmp_path / "cases")
    folder.write("b", lambda d, s, p: d.fill(0))
    fault = folder.fault(raw=largest)
    assert fault.startswith("b: the raw image has values too large for float32 arithmetic (up to 1e+38)")
    assert "same intensity" not in fault


# ---- the split and the folder ----


SPLITS: dict[str, tuple[Any, int, str]] = {
    "unknown": ([{"train": ["a", "d"], "val": ["c"]}], 0, r"^d: not preprocessed, but named by .*\(fold 0, 'train'\)"),
    "unknown in val": ([{"train": ["a"], "val": ["c", "x"]}], 0, r"^x: not preprocessed.*'val'"),
    "nothing to validate on": ([{"train": ["a"], "val": []}], 0, "fold 0 has no validation case"),
    "nothing to train on": ([{"train": [], "val": ["a"]}], 0, "fold 0 has no training case"),
    "no list": ({"train": ["a"], "val": ["b"]}, 0, "is not a list with"),
    "an empty list": ([], 0, "is not a list with"),
    "no folds in it": (["a", "b"], 1, "fold 1 has no list 'train' of names"),
    "a key is missing": ([{"train": ["a"]}], 0, "fold 0 has no list 'val' of names"),
    "a name alone": ([{"train": "a", "val": ["b"]}], 0, "fold 0 has no list 'train' of names"),
    "a number": ([{"train": ["a"], "val": [3]}], 0, "fold 0 has no list 'val' of names"),
    "fold -1": ([{"train": ["a"], "val": ["b"]}], -1, "There is no fold -1"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_cannot_be_trained_on(name: str, tmp_path: Path) -> None:
    splits, fold, message = SPLITS[name]
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=message):
        check_split(file, fold, ["a", "b", "c"])


def test_a_split_that_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text('[{"train": ["a"')
    with pytest.raises(ValueError, match=r"splits_final.json is no valid JSON"):
        check_split(file, 0, ["a"])


def test_splits_that_are_worth_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    assert check_split(file, 4, ["a", "b"]) == [], "nnU-Net makes one"
    file.write_text(json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["a", "b"], "val": ["b"]}]))
    assert check_split(file, 0, ["a", "b"]) == []
    (shared,) = check_split(file, 1, ["a", "b"])
    assert shared.startswith("b: in the training and the validation cases of fold 1")
    (beyond,) = check_split(file, 2, ["a", "b"])
    assert beyond.startswith("splits_final.json has only folds 0 to 1: for fold 2 nnU-Net draws a random fifth")


def test_the_folder_of_cases(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no preprocessed case: preprocess first"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no preprocessed case"):
        check_folder(tmp_path)
    Folder(tmp_path)
    check_folder(tmp_path)
    for name in ("._a.b2nd", ".DS_Store", "notes.txt", "a.npz"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"holds '{name}'.*Move it away"):
            check_folder(tmp_path)
        (tmp_path / name).unlink()


# ---- dataset.json ----


DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
DATASETS: dict[str, tuple[dict, str]] = {
    "of nnU-Net v1": ({"labels": {"0": "background", "1": "a"}}, "v1.*other way round"),
    "a gap": ({"labels": {"background": 0, "a": 1, "b": 3}}, r"values 0, 1, 3, without 2.*Renumber"),
    "an ignore label in between": ({"labels": {"background": 0, "a": 1, "ignore": 9}}, "must follow the last label: 2"),
    "regions without order": ({"labels": {"background": 0, "a": [1, 2]}}, "regions_class_order must be a list"),
    "channels": ({"channel_names": {"0": "T1", "1": "T2"}}, r"names 2 channels \(T1, T2\), the plans have 1"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_json_that_cannot_be_trained_on(name: str) -> None:
    changed, message = DATASETS[name]
    with pytest.raises(ValueError, match=message):
        check_dataset_json(DATASET | changed, SimpleNamespace(normalization_schemes=["CTNormalization"]))


def test_sound_dataset_json() -> None:
    configuration = SimpleNamespace(normalization_schemes=["CTNormalization"])
    regions = {"labels": {"background": 0, "a": [1, 2], "b": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    for content in (DATASET, DATASET | regions, DATASET | {"labels": {"background": 0, "a": [1]}}):
        check_dataset_json(content, configuration)
