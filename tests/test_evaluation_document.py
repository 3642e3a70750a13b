"""The document that a report is: no text in it is markup, and numbers stay on one line."""

from pathlib import Path

import pytest

from nnunetv2_dinomed3d.evaluation.document import Block, Bullets, Grid, Heading, Lead, Paragraph, to_html, to_markdown

pytestmark = pytest.mark.own


def test_every_block_of_a_document_is_escaped() -> None:
    name = "<i>|\n# x"
    blocks: list[Block] = [Heading(name), Lead(name), Paragraph(name), Bullets([name]), Grid([name], [[name]])]
    text, page = to_markdown(blocks, Path()), to_html(blocks, name)
    assert text.count("\\<i>") == 6
    assert "\n# x" not in text
    assert text.count("| \\<i>\\|\\\\n# x |") == 2
    assert page.count("&lt;i&gt;|\\n# x") == 7
    assert "<i>" not in page


def test_an_interval_stays_on_one_line() -> None:
    page = to_html([Lead("B is worse than A by 0.042 Dice [0.032, 0.054] on 20 cases. [<b>]")], "x")
    assert '<span class="number">[0.032, 0.054]</span>' in page
    assert page.count('class="number"') == 1
    assert "[&lt;b&gt;]" in page
