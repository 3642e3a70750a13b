"""``python -m benchmarks``: the costs of the network as Markdown tables."""

import argparse
import os
import warnings
from pathlib import Path

import torch

from benchmarks import tables
from nnunetv2_dinomed3d.evaluation.document import Block, Grid, Heading, Paragraph, to_markdown
from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.network_architecture.token_grid import SCALES

TIMED = ("nano", "small")
"""Variants that are timed; of the others only FLOPs and bytes are counted."""

TARGET = "small"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["nano", "small", "base", "large"])
    parser.add_argument("--patch", nargs=3, type=int, default=(16, 128, 128), metavar=("D", "H", "W"))
    parser.add_argument(
        "--scale",
        type=int,
        choices=SCALES,
        default=1,
        help="in-plane scale S of all tables; of others only a step of stage 2 is counted and timed",
    )
    parser.add_argument("--rounds", type=int, default=2, help="timings of which the median is taken")
    parser.add_argument("--stage1", action="store_true", help="only the table of stage 1 in full and with LoRA")
    parser.add_argument("--quick", action="store_true", help="count only, no timing")
    return parser.parse_args()


def _print(*blocks: Block) -> None:
    print(to_markdown(list(blocks), Path()), flush=True)


def main() -> None:
    """Print every table as soon as it is there."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    arguments = _arguments()
    patch, rounds = tuple(arguments.patch), 0 if arguments.quick else arguments.rounds
    _print(
        Heading("Costs", 1),
        Paragraph(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, float32 on the "
            f"CPU; in-plane scale S = {arguments.scale}. Stage 1: {tables.SLABS} slabs of 3 x {patch[1]} x {patch[2]}; "
            f"stage 2: 1 x 1 x {patch[0]} x {patch[1]} x {patch[2]}. A step is a forward and a backward pass. Times "
            f"are medians of {rounds}, taken in turns; saved bytes are those that the forward pass leaves for the "
            "backward pass. Differences are relative to the largest value: of outputs in float32, of the worst "
            "gradient in float64, on half the extent in plane."
        ),
    )
    stage1 = tables.stage1_grid(("small", "base"), TIMED, tables.Setting(TARGET, 1, arguments.scale, patch), rounds)
    _print(Heading("Stage 1 in full and with LoRA (a step includes AdamW's)"), stage1)
    if arguments.stage1:
        return
    timed_target = None
    _print(Heading("Variants and stages"))
    for variant in dict.fromkeys([*arguments.variants, TARGET]):
        rows = []
        for stage in (1, 2):
            setting = tables.Setting(variant, stage, arguments.scale, patch)
            counted = tables.counts(setting)
            is_timed = rounds and variant in TIMED
            timed = (tables.times(setting, rounds), tables.largest_difference(setting)) if is_timed else None
            rows += tables.cost_rows(setting, counted, timed)
            if (variant, stage) == (TARGET, 2):
                timed_target = timed and timed[0]
        _print(Grid(tables.COST_COLUMNS, rows))
    target = tables.Setting(TARGET, 2, arguments.scale, patch)
    _print(Heading(f"Where the FLOPs are ({TARGET}, stage 2)"), tables.part_grid(target))

    depths = tables.depths(TARGET, arguments.scale, min(rounds, 1))
    side = tables.DEPTHS_SIDE
    title = f"Against the number of slices ({TARGET}, stage 2, {side} x {side}, checkpointed)"
    _print(Heading(title), tables.depth_grid(depths))

    case = tables.case_seconds(target, rounds) if rounds else None
    if case:
        names = ("plain", "ours, nnUNetv2_predict", "ours, validation (slabs encoded once)")
        rows = [[name, f"{taken:.1f}", f"{taken / case[0]:.2f}"] for name, taken in zip(names, case, strict=True)]
        title = f"A case of {tables.CASE_DEPTH} slices through nnU-Net's predictor ({TARGET})"
        _print(Heading(title), Grid(["network", "seconds", "of plain"], rows))

    at_scale = {scale: tables.Setting(TARGET, 2, scale, patch) for scale in SCALES}
    timed_at: dict[int, dict[str, tables.Seconds] | None] = {
        scale: timed_target if scale == arguments.scale else tables.times(setting, rounds) if rounds else None
        for scale, setting in at_scale.items()
    }
    if rounds:
        title = f"A step at each in-plane scale S ({TARGET}, stage 2)"
        _print(
            Heading(title), tables.scale_grid({at_scale[scale]: timed for scale, timed in timed_at.items() if timed})
        )
    targets = {}
    for scale, setting in at_scale.items():
        known = (case, depths) if scale == arguments.scale else (None, tables.depths(TARGET, scale, 0))
        targets[scale] = tables.count_targets(setting, timed_at[scale], *known)
    _print(Heading(f"Targets ({TARGET}, stage 2)"), tables.target_grid(targets))


if __name__ == "__main__":
    main()
