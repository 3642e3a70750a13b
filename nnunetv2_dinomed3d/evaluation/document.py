"""A document of paragraphs, tables and pictures, written as Markdown and as one HTML file."""

import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.text import markdown, markdown_line
from nnunetv2_dinomed3d.text import printable

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.25 }
.lead { font-size: 1.15rem; font-weight: 600; margin: .5rem 0 }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top;
  font-variant-numeric: tabular-nums }
td:nth-child(-n+2) { min-width: 5rem }
td:nth-child(n+3), .number { white-space: nowrap }
th { overflow-wrap: normal }
img { max-width: 100% }
figure { margin: 1rem 0 }
figcaption { color: #555; font-size: 13px }
"""
"""Numbers and intervals stay on one line; names, which stand in the first two columns, may break anywhere."""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 6."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Lead:
    """A sentence that answers what the document is about."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: list[str]


@dataclass(frozen=True)
class Grid:
    """A table. Every row has as many cells as there are columns; the first two columns hold names."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file, and what it shows."""

    path: Path
    caption: str


Block = Heading | Lead | Paragraph | Bullets | Grid | Picture


def to_markdown(blocks: list[Block], folder: Path) -> str:
    """The document as Markdown, with links to pictures relative to `folder`. No text is taken for markup."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {markdown_line(text)}")
            case Lead(text) | Paragraph(text):
                parts.append(markdown_line(text))
            case Bullets(items):
                parts.append("\n".join(f"- {markdown_line(item)}" for item in items))
            case Grid(columns, rows):
                lines = [_cells(columns), ["---"] * len(columns), *map(_cells, rows)]
                parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
            case Picture(path, caption):
                link = f"![{markdown(caption)}]({path.relative_to(folder).as_posix()})"
                parts.append(f"{link}\n\n{markdown_line(caption)}")
    return "\n\n".join(parts) + "\n"


def _cells(texts: list[str]) -> list[str]:
    return [markdown(text).replace("|", "\\|") for text in texts]


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def to_html(blocks: list[Block], title: str) -> str:
    """The document as one HTML file that holds its pictures. No text is taken for markup."""
    body = "\n".join(_block_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_escaped(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block_html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Lead(text):
            kept = re.sub(r"\[[-+.,0-9 ]+\]", r'<span class="number">\g<0></span>', _escaped(text))
            return f'<p class="lead">{kept}</p>'
        case Paragraph(text):
            return f"<p>{_escaped(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_escaped(item)}</li>" for item in items) + "</ul>"
        case Grid(columns, rows):
            head = "".join(f"<th>{_escaped(cell)}</th>" for cell in columns)
            lines = ["<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows]
            return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            text = _escaped(caption)
            return (
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
            )
