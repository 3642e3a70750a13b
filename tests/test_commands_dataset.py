"""``dinomed3d dataset``: from a download to nnU-Net's raw format; what cannot be is named."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.evaluation import parallel
from tests.command_line import assert_one_line
from tests.made_up_downloads import acdc, aisd, brats, dataset, msd, nnunet_folders

NEXT = "nnUNetv2_plan_and_preprocess -d {} --verify_dataset_integrity"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """See `nnunet_folders`."""
    return nnunet_folders(tmp_path, monkeypatch)


@pytest.fixture
def quick(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same; cases are converted in a thread, where starting processes would take longest."""
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by its name from there on."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def volume(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


PAPER: dict[str, tuple[Callable[[Path], Path], str, dict[str, int]]] = {
    "aisd": (aisd, "Dataset501_AISDPaper", {"infarct": 1}),
    "msd-pancreas": (msd, "Dataset502_MSDPancreasPaper", {"pancreas": 1, "cancer": 2}),
    "brats2020": (brats, "Dataset504_BraTS2020Paper", {"whole tumor": 1}),
    "acdc": (acdc, "Dataset505_ACDCPaper", {"RV": 1, "MLV": 2, "LVC": 3}),
}


@pytest.mark.parametrize("name", PAPER)
def test_as_in_the_paper(quick: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    make, title, labels = PAPER[name]
    source = make(quick / "download")
    before = contents(source)
    assert dataset(name, source, "--incomplete", "--slices", "3") == 0
    told = capfd.readouterr()
    assert told.out.splitlines()[-1] == f"Next: {NEXT.format(title[7:10])}"
    assert contents(source) == before
    raw = quick / "nnUNet_raw" / title
    assert [path.name for path in (quick / "nnUNet_raw").iterdir()] == [title]
    assert sorted(path.name for path in raw.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "labelsTr",
        "labelsTs",
        "manifest.json",
    ]
    content = json.loads((raw / "dataset.json").read_text())
    assert content["labels"] == {"background": 0} | labels
    assert content["channel_names"] == {"0": "rescale_to_0_1"}
    for path in [*raw.glob("images*/*"), *raw.glob("labels*/*")]:
        assert sitk.ReadImage(str(path)).GetSize()[:2] == (512, 512)
    for path in raw.glob("labels*/*"):
        assert set(np.unique(volume(path))) == {0, *labels.values()}
    # three patients: one for each part
    (fold,) = json.loads((quick / "nnUNet_preprocessed" / title / "splits_final.json").read_text())
    parts = {
        **{case: "train" for case in fold["train"]},
        **{case: "val" for case in fold["val"]},
        **{path.name.removesuffix(".nii.gz"): "test" for path in (raw / "labelsTs").iterdir()},
    }
    patients = {case.partition("_frame")[0]: part for case, part in parts.items()}
    assert sorted(patients.values()) == ["test", "train", "val"]
    assert set(fold["train"] + fold["val"]) == {p.name.removesuffix(".nii.gz") for p in (raw / "labelsTr").iterdir()}
    manifest = json.loads((raw / "manifest.json").read_text())
    assert {case: record["part"] for case, record in manifest["cases"].items()} == parts
    for record in manifest["cases"].values():
        for file, digest in record["written"].items():
            assert hashlib.sha256((raw / file).read_bytes()).hexdigest() == digest
        for file, digest in record["read"].items():
            assert hashlib.sha256(before[file.removeprefix("download/")]).hexdigest() == digest
    assert str(quick) not in (raw / "manifest.json").read_text()


@pytest.mark.end_to_end
@pytest.mark.parametrize("how", ["--as-paper", "--plain"])
@pytest.mark.parametrize("name", PAPER)
def test_nnunet_accepts_it(folders: Path, name: str, how: str) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    assert dataset(name, PAPER[name][0](folders / "download"), "--incomplete", how) == 0
    verify_dataset_integrity(str(next((folders / "nnUNet_raw").iterdir())), 1)


def test_intensities_as_in_the_paper(quick: Path) -> None:
    dataset("msd-pancreas", msd(quick / "download"), "--incomplete", "--slices", "3")
    image = volume(next((quick / "nnUNet_raw" / "Dataset502_MSDPancreasPaper" / "imagesTr").iterdir()))
    assert (image.shape, image.min(), image.max()) == ((3, 512, 512), -78, 178)
    dataset("brats2020", brats(quick / "other"), "--incomplete")
    image = volume(next((quick / "nnUNet_raw" / "Dataset504_BraTS2020Paper" / "imagesTr").iterdir()))
    assert (image.shape, image.dtype) == ((8, 512, 512), np.float32)
    assert 0 == image.min() < 0.99 < image.max() <= 1


def test_plain_acdc_is_what_nnunet_makes_of_it(quick: Path) -> None:
    from nnunetv2.dataset_conversion.Dataset027_ACDC import copy_files, create_ACDC_split

    source = acdc(quick / "download", (1, 2, 3, 4, 5, 6))
    assert dataset("acdc", source, "--plain", "--incomplete") == 0
    ours = quick / "nnUNet_raw" / "Dataset515_ACDC"
    theirs = quick / "nnUNet_raw" / "Dataset027_ACDC"
    into = [theirs / kind for kind in ("imagesTr", "labelsTr", "imagesTs")]
    for folder in into:
        folder.mkdir(parents=True)
    count = copy_files(source, *into)
    assert volumes_of(ours) == volumes_of(theirs)
    content = json.loads((ours / "dataset.json").read_text())
    assert content["numTraining"] == count
    assert content["labels"] == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    assert content["channel_names"] == {"0": "cineMRI"}
    splits = json.loads((quick / "nnUNet_preprocessed" / "Dataset515_ACDC" / "splits_final.json").read_text())
    assert splits == create_ACDC_split(str(theirs / "labelsTr"))


@pytest.mark.parametrize("modality", [("CT",), ("FLAIR", "T1w")])
def test_plain_msd_is_what_nnunet_makes_of_it(quick: Path, modality: tuple[str, ...]) -> None:
    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset

    source = msd(quick / "download", "Task06_Lung", ("cancer",), modality)
    assert dataset("msd", source, "--plain") == 0
    convert_msd_dataset(str(source), 7, 1)
    ours, theirs = quick / "nnUNet_raw" / "Dataset516_MSDLung", quick / "nnUNet_raw" / "Dataset007_Lung"
    for name in volumes_of(theirs):
        a, b = (sitk.ReadImage(str(folder / name)) for folder in (ours, theirs))
        assert (sitk.GetArrayFromImage(a) == sitk.GetArrayFromImage(b)).all()
        assert a.GetOrigin() == pytest.approx(b.GetOrigin())
        assert a.GetDirection() == pytest.approx(b.GetDirection())
    assert set(volumes_of(ours)) == set(volumes_of(theirs))
    same_json(ours, theirs)
    assert not list((quick / "nnUNet_preprocessed").iterdir())  # nnU-Net splits it


def volumes_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".nii.gz")}


def same_json(ours: Path, theirs: Path) -> None:
    """What nnU-Net reads in it is the same."""
    a, b = (json.loads((folder / "dataset.json").read_text()) for folder in (ours, theirs))
    for key in ("channel_names", "labels", "numTraining", "file_ending"):
        assert a[key] == b[key], key


def test_plain_brats_has_nnunets_regions(quick: Path) -> None:
    dataset("brats2020", brats(quick / "download"), "--plain", "--incomplete")
    raw = quick / "nnUNet_raw" / "Dataset514_BraTS2020"
    original = volume(next((quick / "download").rglob("BraTS20_Training_001_seg.nii")))
    labels = volume(raw / "labelsTr" / "BraTS20_Training_001.nii.gz")
    assert all((labels[original == old] == new).all() for old, new in ((0, 0), (2, 1), (1, 2), (4, 3)))
    flair = volume(next((quick / "download").rglob("BraTS20_Training_001_flair.nii")))
    assert (volume(raw / "imagesTr" / "BraTS20_Training_001_0003.nii.gz") == flair).all()
    assert json.loads((raw / "dataset.json").read_text())["regions_class_order"] == [1, 2, 3]


def test_plain_aisd_keeps_hu_and_kinds_of_infarct(quick: Path) -> None:
    dataset("aisd", aisd(quick / "download"), "--plain", "--incomplete")
    raw = quick / "nnUNet_raw" / "Dataset511_AISD"
    image = sitk.ReadImage(str(raw / "imagesTr" / "0091465_0000.nii.gz"))
    assert image.GetSpacing() == pytest.approx((0.5, 0.5, 5.0))
    assert volume(raw / "imagesTr" / "0091465_0000.nii.gz").min() == -1000
    assert set(np.unique(volume(raw / "labelsTr" / "0226290.nii.gz"))) == {0, 3, 5}


def test_an_archive_leaves_nothing_behind(quick: Path, capfd: pytest.CaptureFixture[str]) -> None:
    msd(quick / "made", "Task06_Lung", ("cancer",))
    archive = quick / "Task06_Lung.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(quick / "made" / "Task06_Lung", "Task06_Lung")
    assert dataset("msd", archive, "--plain") == 0
    assert [path.name for path in (quick / "nnUNet_raw").iterdir()] == ["Dataset516_MSDLung"]
    archive.write_bytes(archive.read_bytes()[:20_000])
    assert dataset("msd", archive, "--plain", "--id", 601) == 1
    assert_one_line(1, capfd.readouterr().err, "Task06_Lung.tar is cut off or damaged")
    assert [path.name for path in (quick / "nnUNet_raw").iterdir()] == ["Dataset516_MSDLung"]


@pytest.mark.end_to_end
def test_real_hippocampi_as_msd_gives_them_out(quick: Path, shared: Path) -> None:
    """The archive is made of five real cases, with macOS's files between them."""
    real = shared / "data" / "Dataset004_Hippocampus"
    template = msd(quick / "made", "Task04_Hippocampus", ("Anterior", "Posterior"), ("MRI",))
    images = sorted((real / "imagesTr").iterdir())[:5]
    for kind in ("imagesTr", "labelsTr"):
        shutil.rmtree(template / kind)
        (template / kind).mkdir()
    names = [path.name.replace("_0000", "") for path in images]
    for path, name in zip(images, names, strict=True):
        shutil.copy(path, template / "imagesTr" / name)
        shutil.copy(real / "labelsTr" / name, template / "labelsTr" / name)
        (template / "imagesTr" / f"._{name}").write_bytes(b"\x00\x05\x16\x07")
    content = json.loads((template / "dataset.json").read_text()) | {"numTraining": 5}
    content["training"] = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (template / "dataset.json").write_text(json.dumps(content))
    archive = quick / "Task04_Hippocampus.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(template, template.name)
    assert dataset("msd", archive, "--plain") == dataset("msd", archive) == 0
    plain, paper = (quick / "nnUNet_raw" / f"Dataset{n}" for n in ("516_MSDHippocampus", "506_MSDHippocampusPaper"))
    for path, name in zip(images, names, strict=True):
        assert (plain / "imagesTr" / path.name).read_bytes() == path.read_bytes()
        original = sitk.ReadImage(str(real / "labelsTr" / name))
        found = next(file for kind in ("Tr", "Ts") if (file := paper / f"labels{kind}" / name).exists())
        for value in (1, 2):
            before, after = (shape_of(sitk.Equal(image, value)) for image in (original, sitk.ReadImage(str(found))))
            assert after.GetPhysicalSize(1) == pytest.approx(before.GetPhysicalSize(1), rel=0.05)
            assert np.abs(np.subtract(before.GetCentroid(1), after.GetCentroid(1))).max() < 0.2


def shape_of(mask: sitk.Image) -> sitk.LabelShapeStatisticsImageFilter:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(mask)
    return shape


# ---- refused ----


def refused(quick: Path, capfd: pytest.CaptureFixture[str], pattern: str, *words: object) -> None:
    """One line says why, and no data set is there."""
    code = dataset(*words)
    error = [line for line in capfd.readouterr().err.splitlines(keepends=True) if line.startswith("dinomed3d:")]
    assert_one_line(code, "".join(error), pattern)
    assert not list((quick / "nnUNet_raw").glob("Dataset*"))
    assert not list((quick / "nnUNet_preprocessed").glob("*/splits_final.json"))


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("acdc", "gone"), "gone does not exist"),
        (("acdc", "."), r"nnUNet_raw.* would be written into the download"),
        (("acdc", "download"), r"not whole: patient004 is not there, .*--incomplete"),
        (("acdc", "download", "--plain", "--crop", "centre"), "--crop is for data as in the paper"),
        (("acdc", "download", "--plain", "--seed", "0"), "--seed is for data as in the paper"),
        (("acdc", "download", "--first-slice", "head"), "--first-slice is for aisd"),
        (("acdc", "download", "--slices", "0"), "--slices 0: 1 or more"),
        (("acdc", "download", "--window", "nan", "0"), "--window nan 0: give a width above 0"),
        (("acdc", "download", "--incomplete", "--window", "9", "0"), "--window is for CT"),
        (("acdc", "download", "--incomplete", "--labels", "liver"), "--labels 'liver' is none"),
        (("acdc", "download", "--incomplete", "--leave-out", "patient001"), "8:1:1 needs three patients"),
        (("acdc", "download", "--id", "1000"), "--id 1000 is no number"),
        (("acdc", "download", "--id", "0"), "--id 0 is no number"),
        (("msd", "download"), "is not called as a task of MSD"),
        (("msd-colon", "download"), "No task of MSD is there"),
    ],
)
def test_what_cannot_be_converted(
    quick: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple, pattern: str
) -> None:
    acdc(quick / "download")
    monkeypatch.chdir(quick)
    refused(quick, capfd, pattern, *words)
    assert not list((quick / "nnUNet_raw").iterdir())


def test_every_damaged_case_is_named_and_the_others_are_kept(quick: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training = acdc(quick / "download") / "training"
    cut = training / "patient001" / "patient001_frame01.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-200])
    drawn = training / "patient003" / "patient003_frame09_gt.nii.gz"
    labels = sitk.ReadImage(str(drawn))
    labels[0, 0, 0] = 7
    sitk.WriteImage(labels, str(drawn))
    pattern = r"2 of 8 cases cannot be converted: patient001_frame01: .*cut off.*patient003_frame09: .* holds \[7\]"
    refused(quick, capfd, pattern, "acdc", quick / "download", "--plain", "--incomplete")
    partial = quick / "nnUNet_raw" / ".Dataset515_ACDC.partial"
    assert len(list((partial / ".records").iterdir())) == 6
    assert not [path for path in partial.glob("*Tr/*") if "001_frame01" in path.name or "003_frame09" in path.name]
    words = ("acdc", quick / "download", "--plain", "--incomplete", "--leave-out", "patient001_frame01", "patient003")
    assert dataset(*words) == 0
    raw = quick / "nnUNet_raw" / "Dataset515_ACDC"
    assert sorted(path.name for path in (raw / "labelsTr").iterdir()) == [
        "patient001_frame09.nii.gz",
        "patient002_frame01.nii.gz",
        "patient002_frame09.nii.gz",
    ]
    assert len(list((raw / "imagesTr").iterdir())) == 3


def test_a_number_that_is_taken(quick: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (quick / "nnUNet_results" / "Dataset505_Mine").mkdir()
    source = acdc(quick / "download")
    refused(quick, capfd, "The number 505 is Dataset505_Mine's.*--id", "acdc", source, "--incomplete")
    assert dataset("acdc", source, "--plain", "--incomplete", "--id", "604") == 0


def test_another_split_is_not_written_over(quick: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = quick / "nnUNet_preprocessed" / "Dataset505_ACDCPaper" / "splits_final.json"
    file.parent.mkdir()
    file.write_text('[{"train": ["mine"], "val": []}]')
    assert dataset("acdc", acdc(quick / "download"), "--incomplete") == 1
    assert_one_line(1, capfd.readouterr().err, r"splits_final\.json is another split")
    assert "mine" in file.read_text()


def test_a_folder_of_nnunets_that_is_not_set(
    quick: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = acdc(quick / "download")
    monkeypatch.delenv("nnUNet_preprocessed")
    refused(quick, capfd, "nnUNet_preprocessed is not set", "acdc", source)
    monkeypatch.delenv("nnUNet_raw")
    refused(quick, capfd, "nnUNet_raw is not set", "acdc", source)
