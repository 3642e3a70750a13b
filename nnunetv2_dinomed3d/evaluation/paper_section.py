"""The part of a report that shows the paper's rules beside ours."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_dinomed3d.evaluation import document as doc
from nnunetv2_dinomed3d.evaluation.answers import formatted
from nnunetv2_dinomed3d.evaluation.dataset_labels import MEAN
from nnunetv2_dinomed3d.evaluation.measure import Measurement
from nnunetv2_dinomed3d.evaluation.paper_rules import IN_PLANE, PaperRow, PaperScores, grid_text, paper_row
from nnunetv2_dinomed3d.evaluation.result import Result
from nnunetv2_dinomed3d.evaluation.statistics import Summary

TITLE = "The paper's rules beside ours"
COLUMNS = [
    "label",
    "model",
    "ours: Dice",
    "cases",
    "ours: HD95 (mm)",
    "cases",
    "paper: DSC (%)",
    "cases",
    "paper: HD95 (voxels)",
    "cases",
]
ONLY_ONE_KIND = (
    "Compare a column with itself only. Everything else in this report is by our rules. The paper's Table 1 goes with "
    'the columns "paper", on the paper\'s data, test cases and grid.'
)


def paper_rows(measurements: Sequence[Measurement]) -> dict[str, PaperRow]:
    """The row of each model; empty if the paper's rules were not asked for."""
    scores: dict[str, dict[str, dict[str, PaperScores]]] = {}
    for m in measurements:
        if m.paper is not None:
            scores.setdefault(m.model, {}).setdefault(m.case, {})[m.label] = m.paper
    return {model: paper_row(of_cases) for model, of_cases in scores.items()}


def paper_entries(rows: dict[str, PaperRow]) -> list[dict[str, Any]]:
    """For summary.json: each model's means by the paper's rules, of every label and over the labels."""
    return [
        {
            "model": model,
            "label": label,
            "dsc_percent": dsc,
            "cases": len(row.cases),
            "hd95_voxels": None if np.isnan(distance) else distance,
            "hd95_cases": count,
        }
        for model, row in rows.items()
        for label, dsc, distance, count in _lines(row)
    ]


def paper_blocks(result: Result, rows: dict[str, PaperRow], summaries: Sequence[Summary]) -> list[doc.Block]:
    """A table with a row for each label and model; nothing if the paper's rules were not asked for."""
    if not rows:
        return []
    ours = {(s.metric, s.label, s.model): s for s in summaries}
    lines = {(label, model): values for model, row in rows.items() for label, *values in _lines(row)}
    cells = []
    for label in dict.fromkeys(label for label, _ in lines):
        for model, row in rows.items():
            dsc, distance, count = lines[label, model]
            known = [ours[metric, label, model] for metric in ("dice", "hd95_mm")]
            own = [formatted(known[0].mean, 3), str(known[0].n), formatted(known[1].mean, 2), str(known[1].n)]
            paper = [f"{dsc:.2f}", str(len(row.cases)), "" if np.isnan(distance) else f"{distance:.2f}", str(count)]
            cells.append([label, model, *own, *paper])
    grid = (
        f"A voxel is one of the label maps as they are in the files: {grid_text(result.sizes)}. The paper's grid has "
        f"{IN_PLANE[0]} x {IN_PLANE[1]}."
    )
    return [doc.Heading(TITLE), doc.Paragraph(ONLY_ONE_KIND), doc.Grid(COLUMNS, cells), doc.Paragraph(grid)]


def _lines(row: PaperRow) -> list[tuple[str, float, float, int]]:
    """Label, DSC in percent, HD95 in voxels, cases with an HD95; the mean over several labels comes last."""
    values = zip(row.labels, row.label_dsc.tolist(), row.label_hd95.tolist(), row.hd95_cases.tolist(), strict=True)
    if len(row.labels) == 1:
        return list(values)
    some = int(np.count_nonzero(~np.isnan(row.hd95_voxels).all(axis=1)))
    return [*values, (MEAN, row.dsc, row.hd95, some)]
