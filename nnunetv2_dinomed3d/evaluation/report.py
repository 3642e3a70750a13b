"""The files of a comparison: cases.csv, summary.json, report.md, report.html and figures/."""

import csv
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnunetv2_dinomed3d.evaluation import document as doc
from nnunetv2_dinomed3d.evaluation.cases import Cases
from nnunetv2_dinomed3d.evaluation.dataset import find_image
from nnunetv2_dinomed3d.evaluation.figures import draw_boxes, draw_dice_over_volume, draw_differences, draw_training
from nnunetv2_dinomed3d.evaluation.measure import Measurement, Rules
from nnunetv2_dinomed3d.evaluation.rules import rule_texts
from nnunetv2_dinomed3d.evaluation.slices import choose, draw_case
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
from nnunetv2_dinomed3d.evaluation.training_log import TrainingLog


@dataclass(frozen=True)
class Result:
    """All that is known at the end.

    Attributes:
        logs: of each model and fold; empty for given predictions.
        warnings: of cases whose geometry is odd.
        provenance: for summary.json.
    """

    title: str
    dataset: str | None
    cases: Cases
    rules: Rules
    measurements: list[Measurement]
    logs: dict[str, dict[str, TrainingLog]]
    warnings: list[str]
    provenance: dict[str, Any]


def write_report(result: Result, out: Path) -> None:
    """Fill the folder `out`."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    tables = [tabulate(result.measurements, metric) for metric in METRICS]
    summaries = [summary for table in tables for summary in summarise(table)]
    comparisons = [comparison for table in tables if table.metric.better for comparison in compare_with_first(table)]
    write_cases(result, out / "cases.csv")
    write_summary(result, summaries, comparisons, out / "summary.json")
    blocks = [
        *_opening(result),
        *_results(tables, summaries, comparisons),
        *_failures(result.measurements),
        *_trainings(result.logs),
        *_pictures(result, tables, out / "figures"),
        doc.Heading("Rules"),
        doc.Bullets(rule_texts(result.rules, result.cases)),
        *_origin(result),
    ]
    (out / "report.md").write_text(doc.to_markdown(blocks, out), encoding="utf-8")
    (out / "report.html").write_text(doc.to_html(blocks, result.title), encoding="utf-8")


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def write_cases(result: Result, path: Path) -> None:
    """A row per case, model and label; what is not defined is blank."""
    folds = {model.name: model.folds for model in result.cases.models}
    names = [field.name for field in fields(Measurement)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "volume_difference_ml", "tolerance_mm", "fold"])
        for m in result.measurements:
            values = [_or_none(getattr(m, name)) for name in names]
            extra = [m.volume_difference_ml, result.rules.tolerances[m.label], folds[m.model].get(m.case)]
            writer.writerow([*values, *extra])


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
    text = f"{len(result.cases.truths)} cases, {len(models)} models. Differences are to the first: {models[0].name}."
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
            if metric.better:
                c = compared.get((s.metric, s.label, s.model))
                row += _paired_cells(c, metric.digits) if c else [""] * len(paired)
            rows.append(row)
        direction = {1: ", more is better", -1: ", less is better", 0: ""}[metric.better]
        blocks += [doc.Heading(metric.title + direction), doc.Grid(columns + (paired if metric.better else []), rows)]
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


def _pictures(result: Result, tables: list[Table], folder: Path) -> list[doc.Block]:
    dice, distance = tables[0], tables[1]
    trained = {m: used for m, folds in result.logs.items() if (used := {f: g for f, g in folds.items() if g.finished})}
    plots: list[tuple[str, Figure, str]] = [
        ("dice", draw_boxes(dice), "Dice; a grey line joins a case's values."),
        ("hd95", draw_boxes(distance), "HD95 in mm; a grey line joins a case's values."),
    ]
    if len(dice.models) > 1:
        caption = "Differences of Dice by case (Bland-Altman): mean, and mean -+ 1.96 standard deviations."
        plots.append(("differences", draw_differences(dice), caption))
    plots.append(("volume", draw_dice_over_volume(result.measurements), "Dice over the structure's true volume."))
    if trained:
        caption = (
            "Training curves; a dotted line marks the start of stage 2. Stage 1's pseudo Dice is of single slices."
        )
        plots.append(("training", draw_training(trained), caption))
    blocks: list[doc.Block] = [doc.Heading("Figures")]
    blocks += [_picture(figure, folder / f"{name}.png", caption) for name, figure, caption in plots]
    return blocks + _case_pictures(result, dice, folder)


def _picture(figure: Figure, path: Path, caption: str) -> doc.Picture:
    figure.savefig(path, dpi=110)
    return doc.Picture(path, caption)


def _case_pictures(result: Result, dice: Table, folder: Path) -> list[doc.Block]:
    blocks: list[doc.Block] = [doc.Heading("Cases")]
    for kind, chosen in zip(("worst", "different"), choose(dice), strict=True):
        for rank, case in enumerate(chosen, 1):
            image = find_image(result.dataset, case, result.rules.description.ending)
            predictions = {model.name: model.predictions[case] for model in result.cases.models}
            truth = result.cases.truths[case]
            figure = draw_case(f"{kind} {rank}: {case}", image, truth, predictions, result.rules.description)
            caption = f"{case}, number {rank} of the {'worst' if kind == 'worst' else 'most different'} by Dice."
            blocks.append(_picture(figure, folder / f"{kind}_{rank}.png", caption))
    return blocks


def _origin(result: Result) -> list[doc.Block]:
    versions = ", ".join(f"{name} {version}" for name, version in result.provenance["versions"].items())
    folders = [f"{model.name}: {model.folder}" for model in result.cases.models]
    text = "cases.csv holds every value; summary.json also where it comes from."
    return [
        doc.Heading("Where this comes from"),
        doc.Bullets([f"Command: {result.provenance['command']}", f"Versions: {versions}", *folders]),
        doc.Paragraph(text),
    ]
