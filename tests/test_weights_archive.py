"""Files before anything in them is trusted: no pipe or device is opened, and an archive's checksums are right."""

import os
import socket
import zipfile

import pytest
import torch

from nnunetv2_dinomed3d.weights.archive import require_sound_archive
from nnunetv2_dinomed3d.weights.files import read_checkpoint, read_tensors, sha256

pytestmark = pytest.mark.own


@pytest.mark.parametrize("place", ["a tensor", "the description", "the directory"])
def test_flipped_bit(place, tmp_path):
    """PyTorch reads such a file without a word, and trains from a wrong number."""
    path = tmp_path / "file.pth"
    torch.save({"a": torch.randn(1000)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = {info.filename.split("/", 1)[1]: info.header_offset for info in archive.infolist()}
    marks = {"a tensor": offsets["data/0"] + 2000, "the description": offsets["data.pkl"] + 70, "the directory": -150}
    content[marks[place]] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file.pth (is damaged|holds)"):
        read_tensors(path)
    with pytest.raises(ValueError, match=r"file.pth (is damaged|holds)"):
        require_sound_archive(path)


def test_sound_archive(tmp_path):
    """A file of torch.save is sound; half of it, another program's archive, and another file are not."""
    path = tmp_path / "file.pth"
    torch.save({"a": torch.randn(1000), "b": torch.empty(0)}, path)
    require_sound_archive(path)
    content = path.read_bytes()
    for wrong in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        b"PK",
        b"x" + content,
        content + b"x",
        b"\x80\x02N.",
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"file.pth is damaged"):
            require_sound_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match=r"holds the compressed member 'x/data.pkl'"):
        require_sound_archive(path)


@pytest.mark.parametrize("read", [read_tensors, read_checkpoint, require_sound_archive, sha256])
def test_no_regular_file(read, tmp_path):
    """A pipe nobody writes to, a device without end: refused, not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, reason in (
            ("pipe", "is a pipe"),
            ("link", "is a pipe"),
            ("socket", "is a socket"),
            ("/dev/zero", "is a device"),
            ("/dev/null", "is a device"),
            ("nothing", "does not exist"),
            ("loop", "cannot be read"),
        ):
            with pytest.raises(ValueError, match=reason):
                read(tmp_path / name)
