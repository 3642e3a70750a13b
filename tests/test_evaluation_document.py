"""The document that a report is: no text in it is markup, and numbers stay on one line."""

from pathlib import Path

from nnunetv2_dinomed3d.evaluation.document import Bullets, Grid, Heading, Lead, Paragraph, to_html, to_markdown


def test_every_block_of_a_document_is_escaped() -> None:
    name = "<i>|\n# x"
    blocks = [Heading(name), Lead(name), Paragraph(name), Bullets([name]), Grid([name], [[name]])]
    text, page = to_markdown(blocks, Path()), to_html(blocks, name)
    assert text.count("\\<i>") == 6
    assert "\n# x" not in text
    assert text.count("| \\<i>\\|\\\\n# x |") == 2
    assert page.count("&lt;i&gt;|\\n# x") == 7
    assert "<i>" not in page
