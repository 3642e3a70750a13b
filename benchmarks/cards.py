"""``python -m benchmarks.cards``: an estimate of what fits GPUs at the paper's clip, and how the costs grow.

Nothing is run: FLOPs and bytes are counted on tensors without values, as if on CUDA and in bfloat16.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks.measure import flops, training_step
from benchmarks.networks import CLASSES, Size, shapes_only, to_shapes
from nnunetv2_dinomed3d.evaluation.document import Block, Grid, Heading, Paragraph, to_markdown
from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.network_architecture.token_grid import in_plane_scale
from nnunetv2_dinomed3d.planning.step_memory import Step, training_step_memory

GB = 10**9
CARDS = (24, 40, 80)
CLIP = (16, 512, 512)
SLABS = 24
"""Slabs in a batch of stage 1 in the recipe."""


@dataclass(frozen=True)
class Case:
    """A network in a stage, on patches; in stage 1 on slabs of three of their slices."""

    variant: str = "base"
    stage: Stage = 2
    patch: Size = (16, 256, 256)
    channels: int = 1
    checkpointed: bool = True

    def build(self) -> DINOMed3D:
        """The network, in its stage."""
        network = build_dinomed3d(self.variant, self.channels, CLASSES, self.patch)
        network.checkpoint_activations(self.checkpointed)
        network.set_stage(self.stage, single_slab_input=self.stage == 1)
        return network.train()

    def shape(self, batch: int) -> tuple[int, ...]:
        """``(b, C, d, h, w)``; in stage 1 the batch is one of slabs."""
        return (batch, self.channels, 3 if self.stage == 1 else self.patch[0], *self.patch[1:])

    def step_flops(self) -> int:
        """FLOPs of a training step with one patch or slab."""
        with torch.device("meta"):
            network = self.build()
        with shapes_only():
            return flops(training_step(to_shapes(network), torch.empty(self.shape(1))))


@cache
def memory(case: Case, batch: int) -> int:
    """Bytes that a training step takes on CUDA."""
    return training_step_memory(Step(f"stage {case.stage}", case.build, case.shape(batch))).total


def largest_batch(case: Case, nbytes: int) -> int:
    """Most patches that fit; from two on, each takes as much as the one before."""
    one, two, three = (memory(case, batch) for batch in (1, 2, 3))
    if nbytes < two:
        return int(nbytes >= one)
    return 2 + (nbytes - two) // (three - two)


def card_rows() -> Iterator[list[str]]:
    """Memory of a batch at the paper's clip; whether stage 1 fits each card, and the largest batch of stage 2."""
    batches: dict[Stage, int] = {1: SLABS, 2: 2}
    for variant in ("small", "base", "large"):
        for stage, batch in batches.items():
            for checkpointed in (True, False):
                case = Case(variant, stage, CLIP, 1, checkpointed)
                taken = memory(case, batch)
                if stage == 1:
                    fits = ["yes" if taken <= card * GB else "no" for card in CARDS]
                else:
                    fits = [f"batch {largest_batch(case, card * GB)}" for card in CARDS]
                what = f"{batch} slabs" if stage == 1 else str(batch)
                yield [variant, str(stage), "yes" if checkpointed else "no", what, f"{taken / GB:.1f}", *fits]


def growth_rows() -> Iterator[list[str]]:
    """One thing changed at a time, in stage 2."""
    start = Case()
    cases = {
        "": [start],
        "depth": [replace(start, patch=(depth, 256, 256)) for depth in (8, 32)],
        "in plane": [replace(start, patch=(16, side, side)) for side in (128, 384, 512)],
        "variant": [replace(start, variant=variant) for variant in ("nano", "small", "large")],
        "channels": [replace(start, channels=channels) for channels in (2, 4)],
        "recomputing": [replace(start, checkpointed=False)],
    }
    reference = start.step_flops()
    reference_bytes = memory(start, 2) - memory(start, 1)
    for changed, members in cases.items():
        for case in members:
            step, one, two = case.step_flops(), memory(case, 1), memory(case, 2)
            scale = str(in_plane_scale(case.patch))
            row = [changed, case.variant, "x".join(map(str, case.patch)), scale, str(case.channels)]
            row += [f"{step / 1e12:.2f}", f"{step / reference:.2f}", f"{one / GB:.1f}"]
            yield [*row, f"{(two - one) / GB:.2f}", f"{(two - one) / reference_bytes:.2f}"]


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")
    fits = [f"fits {card} GB" for card in CARDS]
    clip = " x ".join(map(str, CLIP))
    blocks: list[Block] = [
        Heading(f"Estimate: training at {clip}"),
        Grid(["variant", "stage", "recomputed", "batch", "GB", *fits], list(card_rows())),
        Heading("How the costs of a step grow (stage 2)"),
        Paragraph("One patch; recomputed but in the last row."),
        Grid(
            [
                *("changed", "variant", "patch", "S", "channels", "TFLOP", "of the first"),
                *("GB", "GB of one more patch", "of the first"),
            ],
            list(growth_rows()),
        ),
    ]
    print(to_markdown(blocks, Path()))


if __name__ == "__main__":
    main()
