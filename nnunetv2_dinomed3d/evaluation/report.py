"""The files of a comparison: cases.csv, summary.json, report.md, report.html and figures/."""

import csv
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.evaluation import document as doc
from nnunetv2_dinomed3d.evaluation.measure import Measurement
from nnunetv2_dinomed3d.evaluation.pictures import draw_pictures
from nnunetv2_dinomed3d.evaluation.result import Result
from nnunetv2_dinomed3d.evaluation.rules import rule_texts
from nnunetv2_dinomed3d.evaluation.statistics import (
    METRICS,
    Comparison,
    Summary,
    Table,
    compare_with_first,
    count_states,
    summarise,
    tabulate,
)
from nnunetv2_dinomed3d.evaluation.text import cell, place
from nnunetv2_dinomed3d.training_log import TrainingLog


def write_report(result: Result, out: Path) -> list[str]:
    """Fill the folder `out`, which is there with its ``figures``; numbers first, then pictures.

    Returns:
        What people should know: oddities of the cases, what was left out, pictures that could not be drawn.
    """
    tables = [tabulate(result.measurements, metric) for metric in METRICS]
    summaries = [summary for table in tables for summary in summarise(table)]
    comparisons = [comparison for table in tables if table.metric.better for comparison in compare_with_first(table)]
    write_cases(result, out / "cases.csv")
    write_summary(result, summaries, comparisons, out / "summary.json")
    before = [
        *_opening(result),
        *_results(tables, summaries, comparisons),
        *_failures(result.measurements),
        *_trainings(result.logs),
    ]
    after = [doc.Heading("Rules"), doc.Bullets(rule_texts(result.rules, result.cases)), *_origin(result)]
    _write_document([*before, *after], result.title, out)  # whatever becomes of the pictures
    pictures, lost = draw_pictures(result, tables, out / "figures")
    _write_document([*before, *pictures, *after], result.title, out)
    return [*result.warnings, *lost]


def _write_document(blocks: list[doc.Block], title: str, out: Path) -> None:
    for name, text in (("report.md", doc.to_markdown(blocks, out)), ("report.html", doc.to_html(blocks, title))):
        (out / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def write_cases(result: Result, path: Path) -> None:
    """A row per case, model and label; what is not defined is blank. No cell is a formula."""
    folds = {model.name: model.folds for model in result.cases.models}
    names = [field.name for field in fields(Measurement)]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "volume_difference_ml", "tolerance_mm", "fold"])
        for m in result.measurements:
            values = [_or_none(getattr(m, name)) for name in names]
            extra = [m.volume_difference_ml, result.rules.tolerances[m.label], folds[m.model].get(m.case)]
            writer.writerow(map(cell, [*values, *extra]))


def write_summary(result: Result, summaries: list[Summary], comparisons: list[Comparison], path: Path) -> None:
    """Everything as JSON, null where nothing is defined."""
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
    cases = [
        {**{k: _or_none(v) for k, v in asdict(m).items()}, "volume_difference_ml": m.volume_difference_ml}
        for m in result.measurements
    ]
    failures = [
        {"label": label, "model": model, **counts}
        for (label, model), counts in count_states(result.measurements).items()
    ]
    content = {
        "provenance": result.provenance,
        "rules": rule_texts(result.rules, result.cases),
        "warnings": result.warnings,
        "summary": [asdict(s) for s in summaries],
        "comparison": [asdict(c) for c in comparisons],
        "failures": failures,
        "trainings": trainings,
        "cases": cases,
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")


def _opening(result: Result) -> list[doc.Block]:
    models = result.cases.models
    count = len(result.cases.truths)
    text = f"{count} cases, {len(models)} models. Differences are to the first: {models[0].name}."
    if len(models) == 1:
        text = f"{count} cases, 1 model: {models[0].name}."
    folds = [f"{m.name}: fold {', '.join(sorted(set(m.folds.values())))}" for m in models if m.folds]
    blocks: list[doc.Block] = [doc.Heading(result.title, 1), doc.Paragraph(text)]
    if folds:
        blocks.append(doc.Bullets(folds))
    if result.warnings:
        blocks += [doc.Heading("Warnings"), doc.Bullets(result.warnings)]
    return blocks


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"


def _interval(interval: tuple[float, float] | None, digits: int, sign: str = "") -> str:
    return "" if interval is None else f"[{interval[0]:{sign}.{digits}f}, {interval[1]:{sign}.{digits}f}]"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _results(tables: list[Table], summaries: list[Summary], comparisons: list[Comparison]) -> list[doc.Block]:
    """Of each metric a table with a row per label and model."""
    compared = {(c.metric, c.label, c.model): c for c in comparisons}
    columns = ["label", "model", "cases", "mean", "95% interval", "median"]
    paired = ["pairs", "difference", "95% interval", "p", "p (Holm)", "wins / ties / losses"]
    blocks: list[doc.Block] = []
    for table in tables:
        metric, rows = table.metric, []
        for s in (s for s in summaries if s.metric == metric.key):
            row = [s.label, s.model, str(s.n), _number(s.mean, metric.digits), _interval(s.interval, metric.digits)]
            row.append(_number(s.median, metric.digits))
            if metric.better and comparisons:
                c = compared.get((s.metric, s.label, s.model))
                row += _paired_cells(c, metric.digits) if c else [""] * len(paired)
            rows.append(row)
        direction = {1: ", more is better", -1: ", less is better", 0: ""}[metric.better]
        blocks += [
            doc.Heading(metric.title + direction),
            doc.Grid(columns + (paired if metric.better and comparisons else []), rows),
        ]
    return blocks


def _paired_cells(c: Comparison, digits: int) -> list[str]:
    counts = f"{c.wins} / {c.ties} / {c.losses}"
    difference, interval = _number(c.difference, digits, "+"), _interval(c.interval, digits, "+")
    return [str(c.n), difference, interval, _p(c.p), _p(c.p_holm), counts]


def _failures(measurements: list[Measurement]) -> list[doc.Block]:
    rows = [
        [label, model, str(s["missed"]), str(s["invented"]), str(s["both empty"]), str(s["measured"])]
        for (label, model), s in count_states(measurements).items()
    ]
    missed = "missed (prediction empty, truth not)"
    columns = ["label", "model", missed, "invented (truth empty, prediction not)", "both empty", "both there"]
    return [doc.Heading("Failures"), doc.Grid(columns, rows)]


def _trainings(logs: dict[str, dict[str, TrainingLog]]) -> list[doc.Block]:
    """A row per model, fold and stage; nothing if there are no logs."""
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
    note = "From the training logs. Blank is what they do not say; nnU-Net's own trainers do not log their parameters."
    return [doc.Heading("Trainings"), doc.Grid(columns, rows), doc.Paragraph(note)]


def _origin(result: Result) -> list[doc.Block]:
    versions = ", ".join(f"{name} {version}" for name, version in result.provenance["versions"].items())
    folders = [f"{model.name}: {place(model.folder)}" for model in result.cases.models]
    text = "cases.csv holds every value; summary.json also where it comes from."
    return [
        doc.Heading("Where this comes from"),
        doc.Bullets([f"Command: {result.provenance['command']}", f"Versions: {versions}", *folders]),
        doc.Paragraph(text),
    ]
