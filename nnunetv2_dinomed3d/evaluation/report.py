"""The files of a comparison: cases.csv, summary.json, report.md, report.html and figures/."""

import csv
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.evaluation import document as doc
from nnunetv2_dinomed3d.evaluation.answers import answer_note, answer_sentences, counted, formatted, interval_text
from nnunetv2_dinomed3d.evaluation.measure import Measurement, Scores
from nnunetv2_dinomed3d.evaluation.paper_rules import PaperScores
from nnunetv2_dinomed3d.evaluation.paper_section import paper_blocks, paper_entries, paper_rows
from nnunetv2_dinomed3d.evaluation.report_pictures import draw_answer, draw_details
from nnunetv2_dinomed3d.evaluation.result import Result
from nnunetv2_dinomed3d.evaluation.rules import rule_texts
from nnunetv2_dinomed3d.evaluation.statistics import (
    METRICS,
    Comparison,
    Metric,
    Summary,
    compare_with_first,
    count_states,
    summarise,
    tabulate,
)
from nnunetv2_dinomed3d.evaluation.text import csv_cell, public_path
from nnunetv2_dinomed3d.training_log import TrainingLog


@dataclass(frozen=True)
class Report:
    """A written report in short, for the console.

    Attributes:
        answers: a printable sentence per model.
        counts: such as "20 cases, 2 models".
        warnings: odd cases, what was left out, pictures that could not be drawn.
    """

    answers: list[str]
    counts: str
    warnings: list[str]


def write_report(result: Result, out: Path) -> Report:
    """Fill the folder `out`, which `output_folder` made: numbers first, then pictures."""
    tables = [tabulate(result.measurements, metric) for metric in METRICS]
    summaries = [summary for table in tables for summary in summarise(table)]
    comparisons = [comparison for table in tables if table.metric.better for comparison in compare_with_first(table)]
    write_cases(result, out / "cases.csv")
    write_summary(result, summaries, comparisons, out / "summary.json")
    answers = answer_sentences(tables[0], summaries, comparisons)
    counts = f"{counted(len(result.cases.references), 'case')}, {counted(len(result.cases.models), 'model')}"
    opening: list[doc.Block] = [
        doc.Heading(result.title, 1),
        *map(doc.Lead, answers),
        doc.Paragraph(answer_note(tables[0], answers)),
        *_overview(result, counts),
    ]
    numbers: list[doc.Block] = [
        *_results(summaries, comparisons, result.cases.models[0].name),
        *_states(result.measurements),
        *paper_blocks(result, paper_rows(result.measurements), summaries),
        *_trainings(result.logs),
    ]
    closing: list[doc.Block] = [
        doc.Heading("Rules"),
        doc.Bullets(rule_texts(result.rules, result.cases)),
        *_origin(result),
    ]
    _write_document([*opening, *numbers, *closing], result.title, out)  # in case that the pictures fail
    top, details = draw_answer(tables[0], out / "figures"), draw_details(result, tables, out / "figures")
    _write_document([*opening, *top.blocks, *numbers, *details.blocks, *closing], result.title, out)
    return Report(answers, counts, [*result.warnings, *top.lost, *details.lost])


def _write_document(blocks: list[doc.Block], title: str, out: Path) -> None:
    for name, text in (("report.md", doc.to_markdown(blocks, out)), ("report.html", doc.to_html(blocks, title))):
        (out / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _row(m: Measurement) -> dict[str, Any]:
    """A measurement for a file; None where a score is not defined."""
    scores = {**asdict(m.scores), "volume_difference_ml": m.scores.volume_difference_ml}
    if m.paper is not None:
        scores |= {f"paper_{name}": value for name, value in asdict(m.paper).items()}
    defined = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in scores.items()}
    return {"case": m.case, "model": m.model, "label": m.label, **defined}


def write_cases(result: Result, path: Path) -> None:
    """Write a row per case, model and label as CSV. What is not defined is blank, and no cell is a formula."""
    folds = {model.name: model.folds for model in result.cases.models}
    scores = [*(field.name for field in fields(Scores)), "volume_difference_ml"]
    if result.rules.paper:
        scores += [f"paper_{field.name}" for field in fields(PaperScores)]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "model", "label", *scores, "tolerance_mm", "fold"])
        for m in result.measurements:
            extra = [result.rules.tolerances[m.label], folds[m.model].get(m.case)]
            writer.writerow(map(csv_cell, [*_row(m).values(), *extra]))


def write_summary(result: Result, summaries: list[Summary], comparisons: list[Comparison], path: Path) -> None:
    """Write everything as JSON, with null for what is not defined."""
    trainings = {
        model: {
            fold: {
                "epochs": len(log.finished),
                "parameters": log.parameters,
                "trained_parameters": log.trained,
                "seconds_per_epoch": log.seconds(),
                "first_epoch_of_stage_2": log.switch,
            }
            for fold, log in folds.items()
        }
        for model, folds in result.logs.items()
    }
    states = [
        {"label": label, "model": model, **counts}
        for (label, model), counts in count_states(result.measurements).items()
    ]
    content = {
        "provenance": result.provenance,
        "rules": rule_texts(result.rules, result.cases),
        "warnings": result.warnings,
        "summary": [asdict(s) for s in summaries],
        "comparison": [asdict(c) for c in comparisons],
        "failures": states,
        **({"paper_rules": paper_entries(paper_rows(result.measurements))} if result.rules.paper else {}),
        "trainings": trainings,
        "cases": [_row(m) for m in result.measurements],
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")


def _overview(result: Result, counts: str) -> list[doc.Block]:
    """The number of cases and models, and the warnings."""
    models = result.cases.models
    text = f". Differences are to the first model, {models[0].name}." if len(models) > 1 else f": {models[0].name}."
    blocks: list[doc.Block] = [doc.Paragraph(counts + text)]
    if result.warnings:
        blocks += [doc.Heading("Warnings"), doc.Bullets(result.warnings)]
    return blocks


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _grid(columns: list[str], rows: list[list[str]]) -> doc.Grid:
    """A table without the columns that are blank in every row."""
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return doc.Grid([columns[i] for i in used], [[row[i] for i in used] for row in rows])


def _results(summaries: list[Summary], comparisons: list[Comparison], first: str) -> list[doc.Block]:
    """Two tables for each metric: every model's values, and the differences to the first model."""
    blocks: list[doc.Block] = []
    for metric in METRICS:
        values = [_summary_row(s, metric) for s in summaries if s.metric == metric.key]
        columns = ["label", "model", "cases", "mean", "95% interval", "median"]
        blocks += [doc.Heading(metric.title), _grid(columns, values)]
        if differences := [_comparison_row(c, metric) for c in comparisons if c.metric == metric.key]:
            columns = ["label", "model", "pairs", "difference", "95% interval", "p", "p (Holm)", "wins / ties / losses"]
            title = f"{metric.title}: model minus {first}, paired by case."
            blocks += [doc.Paragraph(title), _grid(columns, differences)]
    return blocks


def _summary_row(s: Summary, metric: Metric) -> list[str]:
    mean, median = formatted(s.mean, metric.digits), formatted(s.median, metric.digits)
    return [s.label, s.model, str(s.n), mean, interval_text(s.interval, metric.digits), median]


def _comparison_row(c: Comparison, metric: Metric) -> list[str]:
    difference, interval = formatted(c.difference, metric.digits, "+"), interval_text(c.interval, metric.digits, "+")
    counts = f"{c.wins} / {c.ties} / {c.losses}"
    return [c.label, c.model, str(c.n), difference, interval, _p(c.p), _p(c.p_holm), counts]


def _states(measurements: list[Measurement]) -> list[doc.Block]:
    """A table of false negative, false positive and absent structures."""
    rows = [
        [label, model, *(str(n[state]) for state in ("false negative", "false positive", "both empty", "measured"))]
        for (label, model), n in count_states(measurements).items()
    ]
    columns = ["label", "model", "false negative", "false positive", "both empty", "both there"]
    note = (
        "A structure is false negative in a case where only the reference has it, and false positive where only the "
        "prediction has it."
    )
    return [doc.Heading("False negative and false positive structures"), _grid(columns, rows), doc.Paragraph(note)]


def _trainings(logs: dict[str, dict[str, TrainingLog]]) -> list[doc.Block]:
    """A table with a row per model, fold and stage; nothing without logs."""
    rows = []
    for model, folds in logs.items():
        for fold, log in folds.items():
            if not log.finished:
                rows.append([model, fold, *[""] * 5])
            for stage, seconds in log.seconds().items():
                epochs = sum(e.stage == stage for e in log.finished.values())
                counts = [f"{known[stage]:,}" if stage in known else "" for known in (log.parameters, log.trained)]
                rows.append([model, fold, str(stage or ""), *counts, str(epochs), f"{seconds:.1f}"])
    if not rows:
        return []
    columns = ["model", "fold", "stage", "parameters", "trained parameters", "epochs", "seconds per epoch (median)"]
    note = (
        "These figures are from the training logs. A blank cell is something that the log does not say: nnU-Net's own "
        "trainers do not log their parameters."
    )
    return [doc.Heading("Trainings"), _grid(columns, rows), doc.Paragraph(note)]


def _origin(result: Result) -> list[doc.Block]:
    versions = ", ".join(f"{name} {version}" for name, version in result.provenance["versions"].items())
    models = [
        f"{model.name}: {public_path(model.folder)}"
        + (f", fold {', '.join(model.fold_names)}" if model.fold_names else "")
        for model in result.cases.models
    ]
    return [
        doc.Heading("Origin"),
        doc.Bullets([f"Command: {result.provenance['command']}", f"Versions: {versions}", *models]),
        doc.Paragraph("cases.csv holds every value; summary.json also holds the origin of each."),
    ]
