"""Archives are unpacked whole or not at all, and nowhere else."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.datasets.archives import unpack
from nnunetv2_dinomed3d.datasets.conversion import unpacked
from nnunetv2_dinomed3d.datasets.download import files_below
from tests.made_up_downloads import acdc, msd

pytestmark = pytest.mark.own


def packed(folder: Path, archive: Path) -> Path:
    """An archive of a folder, of the kind its name says."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as tar:
            tar.add(folder, folder.name)
    return archive


@pytest.mark.parametrize("name", ["Task07_Pancreas.tar", "pancreas.tar.gz", "pancreas.tgz", "pancreas.zip"])
def test_what_a_data_set_is_made_of(tmp_path: Path, name: str) -> None:
    task = msd(tmp_path / "made")
    found = files_below(unpack(packed(task, tmp_path / name), tmp_path / "out"))
    assert {path.name for path in found} == {path.name for path in files_below(task)}  # without macOS's
    originals = {path.name: path.read_bytes() for path in files_below(task / "labelsTr")}
    assert {path.name: path.read_bytes() for path in found if path.parent.name == "labelsTr"} == originals


def test_films_are_left_in_the_archive(tmp_path: Path) -> None:
    root = acdc(tmp_path / "ACDC")
    found = files_below(unpack(packed(root, tmp_path / "ACDC.zip"), tmp_path / "out"))
    assert len(found) == 16
    assert not [path for path in found if "_4d" in path.name]


def test_an_unpacked_archive_is_not_unpacked_again(tmp_path: Path) -> None:
    archive = packed(msd(tmp_path / "made"), tmp_path / "Task07_Pancreas.tar")
    target = unpack(archive, tmp_path / "out")
    (target / "mark").write_text("")
    assert unpack(archive, tmp_path / "out") == target
    assert (target / "mark").exists()


@pytest.mark.parametrize("name", ["Task07_Pancreas.tar", "pancreas.tar.gz", "pancreas.zip"])
def test_half_an_archive(tmp_path: Path, name: str) -> None:
    archive = packed(msd(tmp_path / "made"), tmp_path / name)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 5])
    with pytest.raises(ValueError, match=r"is cut off or damaged .*download it again"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flipped_bits_in_a_zip_file(tmp_path: Path) -> None:
    archive = packed(msd(tmp_path / "made"), tmp_path / "pancreas.zip")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="is cut off or damaged"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("path", ["../evil.nii", "/tmp/evil.nii", "a/../../evil.nii"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_lead_out(tmp_path: Path, kind: str, path: str) -> None:
    archive = tmp_path / f"bad.{kind}"
    if kind == "tar":
        with tarfile.open(archive, "w") as tar:
            tar.addfile(tarfile.TarInfo(path), io.BytesIO())
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(path, b"")
    with pytest.raises(ValueError, match="leads out of its folder"):
        unpack(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        link = tarfile.TarInfo("a.nii")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert not files_below(unpack(tmp_path / "bad.tar", tmp_path / "out"))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_does_not_fit_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    archive = packed(msd(tmp_path / "made"), tmp_path / f"pancreas.{kind}")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"holds more than the 0 MB that are free in nnUNet_raw: make room"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_archives(tmp_path: Path) -> None:
    """AISD comes as several."""
    source = tmp_path / "source"
    source.mkdir()
    for number in (1, 2):
        packed(acdc(tmp_path / f"made{number}", (number,), ()), source / f"part{number}.tar.gz")
    before = sorted(source.iterdir())
    roots = unpacked(source, tmp_path / "out")
    assert {path.name[:10] for root in roots for path in files_below(root) if path.suffix == ".gz"} >= {
        "patient001",
        "patient002",
    }
    assert sorted(source.iterdir()) == before


@pytest.mark.parametrize(("name", "message"), [("gone", "does not exist"), ("file.txt", "neither a folder nor an")])
def test_a_source_that_is_none(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        unpacked(tmp_path / name, tmp_path / "out")
