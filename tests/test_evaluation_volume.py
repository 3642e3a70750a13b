"""Label maps are read whole and as integers, or refused in one line that names file and value."""

import gzip
import os
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.evaluation.cases import files_of
from nnunetv2_dinomed3d.evaluation.label_map import geometry_warning, read_label_map
from nnunetv2_dinomed3d.evaluation.volume import read_volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (9, 20, 31)).astype(np.uint8)


def write(path: Path, array: np.ndarray = LABELS, compress: bool = True) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.8, 0.9, 3.0))
    image.SetOrigin((-3.0, 4.0, 5.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path), compress)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=str(path)) as error:
        read_label_map(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_voxels_and_place_are_simpleitks(tmp_path: Path, ending: str, compress: bool) -> None:
    for kind in (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, "f4", "f8"):
        path = write(tmp_path / f"c{ending}", LABELS.astype(kind), compress)
        labels, geometry = read_label_map(path)
        image = sitk.ReadImage(str(path))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, LABELS)
        assert geometry.size == image.GetSize()
        for ours, theirs in ((geometry.spacing, image.GetSpacing()), (geometry.origin, image.GetOrigin())):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(geometry.direction, image.GetDirection(), atol=1e-5)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_cut_off_or_damaged_is_refused(
    tmp_path: Path, ending: str, compress: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / f"c{ending}", compress=compress)
    whole = path.read_bytes()
    for length in (0, 3, 200, len(whole) * 6 // 10, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)
    if ending == ".nii.gz" or (compress and ending != ".nii"):
        for place in (len(whole) // 2, len(whole) - 6):
            flipped = bytearray(whole)
            flipped[place] ^= 0x10
            path.write_bytes(flipped)
            refusal(path)
    assert capfd.readouterr().err == "", "the message is the only line"


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (-1, np.int8, "holds -1"),
        (-1, np.int16, "holds -1"),
        (-1.0, np.float32, "holds -1"),
        (0.5, np.float32, "holds 0.5"),
        (1.0000001, np.float64, "holds 1.0000001"),
        (np.nan, np.float32, "holds nan"),
        (np.inf, np.float32, "holds inf"),
        (-np.inf, np.float64, "holds -inf"),
        (4e9, np.float64, "holds 4000000000.0"),
        (2**64 - 1, np.uint64, "holds 18446744073709551615"),
        (2**62, np.int64, "holds 4611686018427387904"),
        (-(2**62), np.int64, "holds -4.61169e+18"),
        (2**31 - 1, np.int32, "holds 2147483647"),
        (65535, np.uint16, "holds 65535"),
    ],
)
def test_a_value_that_is_no_label_is_named(tmp_path: Path, value: float, kind: type, shown: str) -> None:
    array: np.ndarray = np.zeros((3, 4, 5), kind)
    array[1, 2, 3] = value
    assert shown in refusal(write(tmp_path / "c.nii.gz", array))


def test_what_is_no_volume_of_numbers_is_refused(tmp_path: Path) -> None:
    assert "2 axes" in refusal(write_plain(tmp_path / "flat.nrrd", np.zeros((4, 5), np.uint8)))
    assert "4 axes" in refusal(write_nifti(tmp_path / "series.nii.gz", np.zeros((3, 4, 5, 2), np.uint8)))
    assert read_label_map(write_nifti(tmp_path / "one.nii.gz", np.zeros((3, 4, 5, 1), np.uint8)))[0].shape == (5, 4, 3)
    colours = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    for ending, words in ((".nrrd", "3 numbers per voxel"), (".mha", "3 numbers per voxel"), (".nii.gz", "5 axes")):
        sitk.WriteImage(colours, str(tmp_path / f"colours{ending}"))
        assert words in refusal(tmp_path / f"colours{ending}")
    write_nifti(tmp_path / "complex.nii", np.zeros((3, 4, 5), np.complex64))
    assert "complex" in refusal(tmp_path / "complex.nii")


def write_plain(path: Path, array: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def changed(path: Path, place: int, form: str, *values: float) -> Path:
    """A NIfTI file with other values in its header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, content, place, *values)
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize(
    ("place", "form", "values", "reason"),
    [
        (40, "<4h", (3, 30000, 30000, 30000), "27000000000000 bytes"),
        (40, "<4h", (3, 0, 4, 5), "empty"),
        (40, "<4h", (3, -4, 4, 5), "empty"),
        (40, "<h", (9,), "not valid"),
        (70, "<h", (999,), "not valid"),
        (70, "<h", (1,), ""),  # single bits
        (80, "<f", (0.0,), "spacing"),
        (80, "<f", (float("nan"),), "spacing"),
        (80, "<f", (1e30,), "spacing"),
        (108, "<f", (float("nan"),), "not valid"),
        (108, "<f", (1e9,), "not valid"),
        (344, "<4s", (b"ni1\0",), "holds no voxels itself"),
        (344, "<4s", (b"\0\0\0\0",), "holds no voxels itself"),
        (0, "<i", (77,), "does not begin as a NIfTI file"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    tmp_path: Path, place: int, form: str, values: tuple[float, ...], reason: str
) -> None:
    assert reason in refusal(changed(write(tmp_path / "c.nii.gz"), place, form, *values))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_a_header_that_claims_more_than_the_file_holds_costs_no_memory(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"c{ending}", compress=False)
    content = path.read_bytes()
    if ending == ".nii":
        content = content[:40] + struct.pack("<4h", 3, 30000, 30000, 30000) + content[48:]
    content = content.replace(b"31 20 9", b"30000 30000 30000", 1)
    path.write_bytes(content)
    assert "cut off" in refusal(path)


def test_a_scaled_map_has_the_values_that_are_meant(tmp_path: Path) -> None:
    path = changed(write(tmp_path / "c.nii.gz"), 112, "<2f", 2.0, 1.0)
    np.testing.assert_array_equal(read_label_map(path)[0], LABELS * 2 + 1)
    assert "1.5" in refusal(changed(path, 112, "<2f", 0.5, 1.0))


def test_other_byte_orders_and_nifti_2_are_read(tmp_path: Path) -> None:
    for i, kind in enumerate((nibabel.Nifti1Image, nibabel.Nifti2Image)):
        header = kind.header_class(endianness=">")
        header.set_data_dtype(np.int16)
        nibabel.save(kind(LABELS.T.astype(np.int16), np.eye(4), header), tmp_path / f"{i}.nii")
        np.testing.assert_array_equal(read_label_map(tmp_path / f"{i}.nii")[0], LABELS)
    (tmp_path / "plain.nii.gz").write_bytes((tmp_path / "0.nii").read_bytes())
    np.testing.assert_array_equal(read_label_map(tmp_path / "plain.nii.gz")[0], LABELS)


def test_axes_not_quite_orthogonal_are_read(tmp_path: Path) -> None:
    """nnU-Net reads such files through nibabel, ITK refuses them."""
    affine = np.array([[0.8, 0.03, 0, 1], [0, 0.9, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1.0]])
    path = write_nifti(tmp_path / "c.nii.gz", LABELS.T, affine)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
    labels, geometry = read_label_map(path)
    np.testing.assert_array_equal(labels, LABELS)
    assert not geometry.orthogonal
    np.testing.assert_allclose(geometry.spacing_zyx, (3, np.hypot(0.03, 0.9), 0.8), rtol=1e-5)
    straight = read_label_map(write_nifti(tmp_path / "d.nii.gz", LABELS.T, np.diag([0.8, 0.9005, 3, 1])))[1]
    assert straight.orthogonal
    assert "point elsewhere" in geometry_warning(geometry, straight)
    assert geometry_warning(geometry, geometry) == ""


@pytest.mark.parametrize("forms", [(0, 0), (1, 0), (0, 1), (2, 1)])
@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_nifti_lies_where_itk_says(tmp_path: Path, forms: tuple[int, int], unit: str) -> None:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1.0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([0.7, 0.9, 2.5]), (-20, 3, 7)
    image = nibabel.Nifti1Image(LABELS.T, affine)
    image.header["pixdim"][1:4] = (0.7, 0.9, 2.5)
    image.set_qform(affine if forms[0] else None, forms[0])
    image.set_sform(affine if forms[1] else None, forms[1])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "c.nii.gz")
    theirs = sitk.ReadImage(str(tmp_path / "c.nii.gz"))
    _, ours = read_label_map(tmp_path / "c.nii.gz")
    np.testing.assert_allclose(ours.spacing, theirs.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(ours.origin, theirs.GetOrigin(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.direction, theirs.GetDirection(), atol=1e-5)


def test_another_size_is_refused_before_voxels_are_read(tmp_path: Path) -> None:
    reference = read_label_map(write(tmp_path / "reference.nii.gz"))[1]
    path = write(tmp_path / "c.nii.gz", np.zeros((4, 5, 6), np.uint8))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:352]))
    with pytest.raises(ValueError, match=r"has \(6, 5, 4\) voxels, its reference \(31, 20, 9\)"):
        read_label_map(path, reference)


@pytest.mark.parametrize("text", [b"ElementDataFile = other.raw", b"ElementDataFile = LIST"])
def test_voxels_in_another_file_are_not_looked_for(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path / "c.mha", compress=False)
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL", text))
    assert "another file" in refusal(path)
    path = write(tmp_path / "c.nrrd", compress=False)
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\ndata file: /etc/hostname\n\n", 1))
    assert "another file" in refusal(path)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    os.mkfifo(tmp_path / "fifo.nii.gz")
    (tmp_path / "device.nii.gz").symlink_to("/dev/zero")
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "fifo", "device", "gone"):
        refusal(tmp_path / f"{name}.nii.gz")
    with pytest.raises(ValueError, match="is no file"):
        files_of(tmp_path, ".nii.gz")


@pytest.mark.parametrize("other", ["c.nii", "c.mha", "c.NII.GZ", "c.img"])
def test_two_files_of_one_case_are_refused(tmp_path: Path, other: str) -> None:
    for name in ("c.nii.gz", "d.nii.gz", other):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="which one is c") as error:
        files_of(tmp_path, ".nii.gz")
    assert "c.nii.gz" in str(error.value)
    assert other in str(error.value)


def test_files_that_are_nobodys_case_are_left_alone(tmp_path: Path) -> None:
    """A Mac's, nnU-Net's probabilities and summary, and what begins with a dot."""
    for name in ("c.nii.gz", "._c.nii.gz", ".DS_Store", ".nii.gz", "._c.nii", "c.npz", "c.pkl", "summary.json"):
        (tmp_path / name).touch()
    assert list(files_of(tmp_path, ".nii.gz")) == ["c"]


def test_a_volume_of_any_numbers_is_read_for_a_picture(tmp_path: Path) -> None:
    image = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(read_volume(write(tmp_path / "c_0000.nii.gz", image))[0], image)
