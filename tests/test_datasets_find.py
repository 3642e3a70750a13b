"""Cases of a download, recognised by its content; what is missing, twice or another data set's is named."""

import json
import shutil
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.datasets.acdc import find_acdc
from nnunetv2_dinomed3d.datasets.aisd import find_aisd
from nnunetv2_dinomed3d.datasets.brats import find_brats
from nnunetv2_dinomed3d.datasets.catalogue import ENTRIES
from nnunetv2_dinomed3d.datasets.download import Download, complete, files_below
from nnunetv2_dinomed3d.datasets.msd import find_msd
from tests.made_up_downloads import acdc, aisd, brats, msd

pytestmark = pytest.mark.own


def names(download: Download) -> list[str]:
    return [case.name for case in download.cases]


# ---- ACDC ----


@pytest.mark.parametrize("inside", ["training", "database/training", "."])
def test_acdc_has_both_phases_of_a_patient_and_no_film(tmp_path: Path, inside: str) -> None:
    acdc(tmp_path / "download", tests=())
    (tmp_path / "there").mkdir()
    shutil.copytree(tmp_path / "download" / "training", tmp_path / "there" / inside, dirs_exist_ok=True)
    found = find_acdc(files_below(tmp_path / "there"))
    assert names(found)[:3] == ["patient001_frame01", "patient001_frame09", "patient002_frame01"]
    assert [case.patient for case in found.cases[:3]] == ["patient001", "patient001", "patient002"]
    assert not any("_4d" in path.name for case in found.cases for path in case.files)


def test_acdc_tests_are_not_trained_on(tmp_path: Path) -> None:
    found = find_acdc(files_below(acdc(tmp_path)))
    assert [case.name for case in found.unlabelled] == ["patient101_frame01", "patient101_frame09"]
    assert not any(case.labels for case in found.unlabelled)


@pytest.mark.parametrize("gone", ["patient002_frame09_gt.nii.gz", "patient002_frame09.nii.gz"])
def test_acdc_names_a_patient_that_lacks_a_file(tmp_path: Path, gone: str) -> None:
    (acdc(tmp_path) / "training" / "patient002" / gone).unlink()
    found = find_acdc(files_below(tmp_path))
    assert "patient002" in found.broken
    assert {case.patient for case in found.cases} == {"patient001", "patient003"}
    assert found.broken["patient004"] == "is not there"


def test_a_file_that_is_there_twice(tmp_path: Path) -> None:
    folder = acdc(tmp_path) / "training"
    shutil.copytree(folder / "patient001", tmp_path / "copy" / "patient001")
    with pytest.raises(ValueError, match=r"patient001_frame01 is there 2 times: .*Keep one"):
        find_acdc(files_below(tmp_path))


# ---- BraTS ----


def test_brats_with_the_labels_that_have_another_name(tmp_path: Path) -> None:
    found = find_brats(files_below(brats(tmp_path)))
    assert names(found) == ["BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_355"]
    case = found.cases[2]
    assert case.labels[0].name == "W39_1998.09.19_Segm.nii"
    assert [path.stem.rpartition("_")[2] for path in case.images] == ["t1", "t1ce", "t2", "flair"]
    assert found.broken["BraTS20_Training_003"] == "is not there"


def test_brats_names_modalities_that_a_patient_lacks(tmp_path: Path) -> None:
    for kind in ("flair", "seg"):
        folder = tmp_path / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
        if not folder.is_dir():
            brats(tmp_path)
        (folder / f"BraTS20_Training_001_{kind}.nii").unlink()
    found = find_brats(files_below(tmp_path))
    assert found.broken["BraTS20_Training_001"] == "lacks flair and seg"


def test_brats_with_a_file_packed_and_unpacked(tmp_path: Path) -> None:
    folder = brats(tmp_path) / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
    (folder / "BraTS20_Training_001_t2.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="BraTS20_Training_001 is there 2 times"):
        find_brats(files_below(tmp_path))


# ---- MSD ----


def test_msd_cases_are_those_of_its_json(tmp_path: Path) -> None:
    task = msd(tmp_path)
    shutil.copy(task / "imagesTr" / "pancreas_001.nii.gz", task / "imagesTr" / "pancreas_999.nii.gz")
    found = find_msd(files_below(tmp_path))
    assert names(found) == ["pancreas_001", "pancreas_004", "pancreas_005"]
    assert [case.name for case in found.unlabelled] == ["pancreas_002"]
    assert (found.channels, found.labels) == (("CT",), {"pancreas": 1, "cancer": 2})
    assert "pancreas_999" in found.notes[0]


def test_msd_names_the_cases_of_a_half_download(tmp_path: Path) -> None:
    task = msd(tmp_path)
    (task / "imagesTr" / "pancreas_004.nii.gz").unlink()
    (task / "labelsTr" / "pancreas_005.nii.gz").unlink()
    found = find_msd(files_below(tmp_path))
    assert found.broken == {"pancreas_004": "lacks its image", "pancreas_005": "lacks its labels"}
    with pytest.raises(ValueError, match=r"pancreas_004 lacks its image, pancreas_005 lacks its labels\. Download"):
        complete(found, [], incomplete=False)
    assert names(complete(found, [], incomplete=True)) == ["pancreas_001"]


def test_another_task_of_msd(tmp_path: Path) -> None:
    msd(tmp_path, "Task10_Colon", ("colon cancer primaries",))
    with pytest.raises(ValueError, match=r"is MSD's Colon .*, not pancreas"):
        ENTRIES["msd-pancreas"].find(files_below(tmp_path))
    assert len(ENTRIES["msd-colon"].find(files_below(tmp_path)).cases) == 3


def test_two_tasks_of_msd_at_once(tmp_path: Path) -> None:
    msd(tmp_path)
    msd(tmp_path, "Task10_Colon", ("colon cancer primaries",))
    with pytest.raises(ValueError, match="Several tasks"):
        find_msd(files_below(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}] * 2}, "lists a more than once"),
        ({"training": ["a.nii.gz"]}, "not {"),
        ({"labels": {"tumor": 1}}, "no labels as MSD"),
        ({"modality": "CT"}, "no modality as MSD"),
    ],
)
def test_a_malformed_json_of_msd(tmp_path: Path, change: dict, message: str) -> None:
    file = msd(tmp_path) / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        find_msd(files_below(tmp_path))


def test_paths_in_msds_json_lead_nowhere_else(tmp_path: Path) -> None:
    file = msd(tmp_path / "task") / "dataset.json"
    shutil.copy(file.parent / "imagesTr" / "pancreas_001.nii.gz", tmp_path / "secret.nii.gz")
    entry = {"image": "../../secret.nii.gz", "label": "../../secret.nii.gz"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"training": [entry]}))
    assert find_msd(files_below(tmp_path / "task")).broken == {"secret": "lacks its image and its labels"}


# ---- AISD ----


def test_aisd_pairs_ct_with_labels_and_pictures(tmp_path: Path) -> None:
    found = find_aisd(files_below(aisd(tmp_path)))
    assert names(found) == ["0072723", "0091465", "0226290"]
    for case in found.cases:
        assert {path.parent.name for path in case.images} == {"CT"}
        assert [path.name for path in case.labels] == [f"{n:03d}.png" for n in range(6)]
        assert [path.parts[-3] for path in case.labels + case.pictures] == ["mask"] * 6 + ["image"] * 6
    assert not found.notes


def test_aisd_without_pictures_says_what_is_not_known(tmp_path: Path) -> None:
    shutil.rmtree(aisd(tmp_path) / "image")
    found = find_aisd(files_below(tmp_path))
    assert len(found.cases) == 3
    assert "--first-slice" in found.notes[0]


def test_aisd_names_what_does_not_belong_together(tmp_path: Path) -> None:
    root = aisd(tmp_path, ("0091465", "0072723", "0226290", "0226134"))
    shutil.rmtree(root / "dicom-1" / "0072723" / "CT")
    shutil.rmtree(root / "mask" / "mask" / "0226290")
    shutil.copy(root / "mask/mask/0226134/000.png", root / "mask/mask/0226134/006.png")
    found = find_aisd(files_below(root))
    assert names(found) == ["0091465"]
    assert found.broken == {
        "0072723": "has labels and no CT",
        "0226134": "has 6 slices of CT and 7 of labels",
        "0226290": "has CT and no labels",
    }


def test_aisd_without_dicom(tmp_path: Path) -> None:
    for folder in aisd(tmp_path).glob("dicom-*"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"No CT .* of AISD is there.*neither HU nor mm"):
        find_aisd(files_below(tmp_path))


# ---- any ----


@pytest.mark.parametrize("name", ENTRIES)
def test_a_folder_with_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^No .* is there"):
        ENTRIES[name].find(files_below(tmp_path))


def test_the_number_of_patients(tmp_path: Path) -> None:
    msd(tmp_path)
    found = ENTRIES["msd-pancreas"].find(files_below(tmp_path))
    with pytest.raises(ValueError, match=r"has 3 patients of MSDPancreas, the publisher gives out 281"):
        complete(found, [], incomplete=False)
    assert "3 patients of 281." in complete(found, [], incomplete=True).notes


def test_cases_that_are_left_out(tmp_path: Path) -> None:
    found = find_acdc(files_below(acdc(tmp_path)))
    kept = complete(found, ["patient002"], incomplete=True)
    assert {case.patient for case in kept.cases} == {"patient001", "patient003"}
    with pytest.raises(ValueError, match="--leave-out patient999: there is no such case"):
        complete(found, ["patient999"], incomplete=True)
    with pytest.raises(ValueError, match="No case of ACDC is left"):
        complete(found, ["patient001", "patient002", "patient003"], incomplete=True)


def test_a_broken_case_that_is_left_out_needs_nothing_more(tmp_path: Path) -> None:
    task = msd(tmp_path)
    (task / "imagesTr" / "pancreas_004.nii.gz").unlink()
    content = json.loads((task / "dataset.json").read_text()) | {"numTraining": 2}
    (task / "dataset.json").write_text(json.dumps(content))
    kept = complete(find_msd(files_below(tmp_path)), ["pancreas_004"], incomplete=False)
    assert names(kept) == ["pancreas_001", "pancreas_005"]
