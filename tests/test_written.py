"""A file or folder that is written exists whole or not at all."""

from pathlib import Path

import pytest

from nnunetv2_dinomed3d.written import written_whole

pytestmark = pytest.mark.own


def test_the_target_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "picture.png"
    with written_whole(target) as path:
        path.write_bytes(b"whole")
        assert path.name == target.name, "its ending tells a library the format"
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_is_written_likewise(tmp_path: Path) -> None:
    with written_whole(tmp_path / "model") as path:
        path.mkdir()
        (path / "weights").write_bytes(b"w")
    assert (tmp_path / "model" / "weights").read_bytes() == b"w"


def write_half(target: Path) -> None:
    with written_whole(target) as path:
        path.write_text("half")
        raise KeyboardInterrupt


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("old")
    for target in (tmp_path / "new" / "file", kept):
        with pytest.raises(KeyboardInterrupt):
            write_half(target)
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_text() == "old"


@pytest.mark.parametrize("target", ["/proc/nothing/file", "file/below"])
def test_what_cannot_be_written_is_refused_before_the_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ValueError, match=r"cannot be written: .*\. Name another place with -o"):
        write_half(Path(target))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
