"""Text from outside, escaped for Markdown, spreadsheets and other people."""

from pathlib import Path

import pytest

from nnunetv2_dinomed3d.evaluation.text import csv_cell, markdown_line, public_path, public_word

pytestmark = pytest.mark.own


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("case_0", "case_0"),
        ("_x_ *y* `z`", "\\_x\\_ \\*y\\* \\`z\\`"),
        ("# a", "\\# a"),
        ("- a", "\\- a"),
        ("1. a", "1\\. a"),
        ("> a", "\\> a"),
        ("<img src=x>", "\\<img src=x>"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("a\nb\x1b", "a\\\\nb\\\\x1b"),
        ("$x$ ~~y~~", "\\$x\\$ \\~\\~y\\~\\~"),
        ("www.e.com https://e", "www\\.e.com https\\://e"),
        ("[0.1, 0.2] < 3", "[0.1, 0.2] < 3"),
    ],
)
def test_markdown_takes_no_text_for_markup(text: str, shown: str) -> None:
    assert markdown_line(text) == shown


def test_cells_are_no_formulas_and_numbers_stay_numbers() -> None:
    for text in ("=1+1", "+1", "-1", "@x", "  =1", "\uff1d1"):
        assert str(csv_cell(text)).startswith("'")
    assert [csv_cell(value) for value in (-0.5, 3, None, "case_0", "a\tb", "\t=1")] == [
        *(-0.5, 3, None, "case_0", "a\\tb", "\\t=1")
    ]


def test_places_name_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "alice"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("nnUNet_results", str(home / "results"))
    monkeypatch.chdir(home / "work")
    assert public_path(home / "results" / "D" / "x") == "nnUNet_results/D/x"
    assert public_path(Path("pr")) == public_path(home / "work" / "pr") == "pr"
    assert public_path(home / "elsewhere" / "pr") == ".../pr"
    assert public_path(home) == "~"
    assert public_word(f"m={home}/pr") == "m=.../pr"
    assert public_word(f"-o{home}/work/out") == "-oout"
    assert public_word("m=../../alice/pr") == "m=.../pr"
    assert public_word("m=pr") == "m=pr"
    monkeypatch.chdir(tmp_path)
    assert public_path(home / "pr") == ".../pr", "also where the current folder lies above the user's"
