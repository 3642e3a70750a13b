"""The paper's table, ours beside it, as a document and as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.document import Block, Bullets, Grid, Heading, Paragraph, to_html, to_markdown
from nnunetv2_dinomed3d.evaluation.paper_tables import DATASETS
from nnunetv2_dinomed3d.evaluation.reproduction import Cell, Column, Row

SOURCE = "DINO-Med3D (MICCAI 2026)"
METRICS = (("dsc", "DSC", 2), ("hd95", "HD95", 2))

RULES = (
    "All figures follow the paper's rules: Dice in percent, HD95 in voxels of the data's grid, both empty count as 100 "
    "and 0. They can stand beside the paper's only on data that was made with --as-paper. A difference is ours minus "
    "the paper's, with the 95% bootstrap interval of our mean over the cases; the paper gives no interval of its own. "
    "An empty cell is missing."
)


def title_of(table: str) -> str:
    """The heading of the report."""
    return f"{table.capitalize().replace('table', 'Table ')} of {SOURCE}"


def report_blocks(table: str, columns: Sequence[Column], rows: Sequence[Row]) -> list[Block]:
    """The report: a table for each data set, and what is missing."""
    blocks: list[Block] = [Heading(title_of(table), 1), Paragraph(RULES)]
    for column in columns:
        known = DATASETS.get(column.paper_name or "")
        blocks.append(Heading(f"{column.dataset}" + (f", the paper's {known}" if known else ", not in the paper")))
        blocks.append(Grid(_titles(table), [_line(table, row, row.cells[column.dataset]) for row in rows]))
    missing = [
        f"{row.trainer} on {column.dataset}: {cell.missing}"
        for column in columns
        for row in rows
        if (cell := row.cells[column.dataset]).missing
    ]
    blocks.append(Heading("What is missing"))
    blocks.append(Bullets(missing) if missing else Paragraph("Nothing."))
    return blocks


def _titles(table: str) -> list[str]:
    of_metrics = [name for _, title, _ in METRICS for name in (title, f"{title}, paper", f"{title}, difference")]
    parameters = ["M parameters", "M parameters, paper"] if table == "TABLE1" else []
    return ["method", "trainer", "cases", *of_metrics, *parameters]


def _line(table: str, row: Row, cell: Cell) -> list[str]:
    cases = f"{len(cell.measured.cases)} {cell.part}" if cell.measured else ""
    values = []
    for metric, _, digits in METRICS:
        paper = None if cell.paper is None else getattr(cell.paper, metric)
        ours = None if cell.measured is None else getattr(cell.measured, metric)
        values += [_number(ours, digits), _number(paper, digits), _difference(cell, metric, digits)]
    parameters = []
    if table == "TABLE1":
        ours = None if row.parameters is None else row.parameters / 1e6
        parameters = [_number(ours, 1), _number(row.paper_parameters, 0)]
    return [row.method, row.trainer, cases, *values, *parameters]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def _difference(cell: Cell, metric: str, digits: int) -> str:
    found = cell.difference(metric)
    if found is None:
        return ""
    difference, interval = found
    shown = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    return f"{difference:+.{digits}f}{shown}"


def write_reproduction(table: str, columns: Sequence[Column], rows: Sequence[Row], out: Path) -> list[Block]:
    """Write ``report.md``, ``report.html`` and ``cells.csv``; return the report."""
    blocks = report_blocks(table, columns, rows)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(to_markdown(blocks, out), encoding="utf-8")
    (out / "report.html").write_text(to_html(blocks, title_of(table)), encoding="utf-8")
    with (out / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", *_titles(table), "missing"])
        for column in columns:
            for row in rows:
                cell = row.cells[column.dataset]
                writer.writerow([column.dataset, *_line(table, row, cell), cell.missing])
    return blocks
