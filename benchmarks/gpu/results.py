"""Results of the GPU benchmark: rows, written as JSON and as Markdown after each of them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunetv2_dinomed3d.evaluation.document import Block, Grid, Heading, Paragraph, to_markdown

JSON_NAME, MARKDOWN_NAME = "results.json", "results.md"

Status = Literal["done", "out of memory", "skipped", "failed"]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        section: heading of the table that it stands in.
        what: the setting, by column.
        status: "done", or why there are no values.
        values: the measured, by column; empty but for "done".
        reason: of a row without values, in words.
        seconds: that it took, with all preparation.
    """

    section: str
    what: Values
    status: Status = "done"
    values: Values = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


def cell(value: Any) -> str:
    """A value as the tables show it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


class Results:
    """All rows so far. Whatever stops the benchmark, the files hold every row that was added.

    Args:
        folder: where both files are written; made if it is not there.
        about: the machine and the versions.

    Raises:
        ValueError: it holds results already, or cannot be written.
    """

    def __init__(self, folder: Path, about: Values) -> None:
        self.folder, self.about = folder, about
        self.rows: list[Row] = []
        if (folder / JSON_NAME).exists():
            raise ValueError(f"{folder / JSON_NAME} is there already. Name another folder with -o, or remove it.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise ValueError(f"{folder} cannot be written: {error.strerror}. Name another folder with -o.") from error

    def add(self, row: Row) -> None:
        """Take a row and write both files anew."""
        self.rows.append(row)
        self._write()

    def values(self, section: str, what: Values) -> Values | None:
        """The values of a row that is done; None where there is none."""
        done = (row for row in self.rows if row.status == "done" and row.section == section)
        return next((row.values for row in done if row.what == what), None)

    def markdown(self) -> str:
        """The rows as tables, one for each section."""
        blocks: list[Block] = [Heading("GPU benchmark", 1)]
        blocks.append(Paragraph("; ".join(f"{name}: {cell(value)}" for name, value in self.about.items()) + "."))
        for section in dict.fromkeys(row.section for row in self.rows):
            rows = [row for row in self.rows if row.section == section]
            settings = list(dict.fromkeys(name for row in rows for name in row.what))
            columns = list(dict.fromkeys(name for row in rows for name in row.values))
            cells = [
                [
                    *(cell(row.what.get(name)) for name in settings),
                    *(cell(row.values.get(name)) for name in columns),
                    ": ".join(filter(None, [row.status, row.reason])),
                ]
                for row in rows
            ]
            blocks += [Heading(section), Grid([*settings, *columns, "result"], cells)]
        return to_markdown(blocks, self.folder)

    def _write(self) -> None:
        everything = {"about": dict(self.about), "rows": [asdict(row) for row in self.rows]}
        self._replace(JSON_NAME, json.dumps(everything, indent=1))
        self._replace(MARKDOWN_NAME, self.markdown())

    def _replace(self, name: str, text: str) -> None:
        """Under another name first: a kill leaves the old file or the new one."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.folder / name)
