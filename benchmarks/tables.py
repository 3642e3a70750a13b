"""The tables of ``python -m benchmarks``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from benchmarks.inference import case_prediction
from benchmarks.measure import (
    Call,
    Difference,
    difference,
    flops,
    flops_by_module,
    inference,
    saved_bytes,
    seconds,
    training_step,
)
from benchmarks.networks import Size, build, checkpointed, shapes_only, stock, to_shapes
from benchmarks.plain import PlainDINOMed3D
from nnunetv2_dinomed3d.evaluation.document import Grid
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.efficiency.winograd import counted_as_on_the_cpu
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage

SLABS = 8
"""Slabs in a batch of stage 1 here (the recipe has 24): what is counted grows in proportion."""

CASE_DEPTH = 64
DEPTHS = (8, 16, 32, 64)
DEPTHS_SIDE = 64
"""In-plane side of the patches whose depth is varied."""

SMALLEST_PART = 0.003
"""Least share of the FLOPs of the whole network for a module to be listed."""

NAMES = ("plain", "ours", "ours, checkpointed", "stock nnU-Net")


@dataclass(frozen=True)
class Setting:
    """A variant in a stage at an in-plane scale, on a patch (in stage 1 on slabs of its slices)."""

    variant: str
    stage: Stage
    scale: int
    patch: Size

    @property
    def shape(self) -> tuple[int, ...]:
        """``(b, C, d, h, w)`` of the input."""
        return (1, 1, *self.patch) if self.stage == 2 else (SLABS, 1, 3, *self.patch[1:])

    def network(self, plain: bool = False, released: bool = False) -> DINOMed3D:
        """Ours or the plain one, in the stage; ``released`` with the released code's depth alignment."""
        network_class = PlainDINOMed3D if plain else DINOMed3D
        network = build(network_class, self.variant, self.scale, depth_alignment="released" if released else "exact")
        network.set_stage(self.stage, single_slab_input=self.stage == 1)
        return network


@dataclass(frozen=True)
class Count:
    """FLOPs of a forward pass in inference and of a training step, and bytes kept for the backward pass."""

    inference: int
    step: int
    saved: int


@dataclass(frozen=True)
class Seconds:
    """Seconds of a forward pass in inference and of a training step."""

    inference: float
    step: float


def count(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Count:
    """Counted from shapes alone."""
    with torch.device("meta"):
        network = make()
    with shapes_only(), counted_as_on_the_cpu():
        network, x = to_shapes(network), torch.empty(shape)
        return Count(flops(inference(network, x)), flops(training_step(network, x)), saved_bytes(lambda: network(x)))


@cache
def counts(setting: Setting) -> dict[str, Count]:
    """For the plain network, ours, ours with checkpointing and, in stage 2, stock nnU-Net's."""
    makers: list[Callable[[], nn.Module]] = [
        lambda: setting.network(plain=True),
        setting.network,
        lambda: checkpointed(setting.network(), True),
    ]
    if setting.stage == 2:
        makers.append(lambda: stock(setting.patch))
    return {name: count(make, setting.shape) for name, make in zip(NAMES, makers, strict=False)}


def _ours_and_plain(setting: Setting) -> tuple[DINOMed3D, DINOMed3D]:
    """With the same weights."""
    ours, plain = setting.network().to("cpu"), setting.network(plain=True)
    plain.load_state_dict(ours.state_dict())
    plain.set_stage(setting.stage, single_slab_input=setting.stage == 1)
    return ours, plain


def largest_difference(setting: Setting) -> Difference:
    """How far ours is from the plain one, on half the extent in plane, since float64 takes long."""
    x = torch.randn(setting.shape)
    return difference(*_ours_and_plain(setting), x[..., : x.shape[-2] // 2, : x.shape[-1] // 2])


def times(setting: Setting, rounds: int) -> dict[str, Seconds]:
    """The networks of `counts`, timed in turns in this process."""
    (ours, plain), x = _ours_and_plain(setting), torch.randn(setting.shape)

    def step_of_ours(checkpoint: bool) -> None:
        training_step(checkpointed(ours, checkpoint), x)()

    steps = [training_step(plain, x), lambda: step_of_ours(False), lambda: step_of_ours(True)]
    predictions = [inference(plain, x), inference(ours, x)]
    if setting.stage == 2:
        other = stock(setting.patch)
        steps.append(training_step(other, x))
        predictions.append(inference(other, x))
    of_steps, of_predictions = seconds(steps, rounds), seconds(predictions, rounds)
    of_predictions.insert(2, of_predictions[1])  # nothing is recomputed without a backward pass
    taken = [Seconds(a, b) for a, b in zip(of_predictions, of_steps, strict=True)]
    return dict(zip(NAMES, taken, strict=False))


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}"


COST_COLUMNS = [
    *("variant", "stage", "network", "inference GFLOP", "step GFLOP", "of plain", "saved MB", "of plain"),
    *("inference s", "of plain", "step s", "of plain", "largest difference: outputs", "gradients"),
]


def cost_rows(
    setting: Setting, counted: dict[str, Count], timed: tuple[dict[str, Seconds], Difference] | None
) -> list[list[str]]:
    """A row for each network of a setting."""
    rows = []
    reference = counted["plain"]
    for name, c in counted.items():
        row = [setting.variant, str(setting.stage), name, f"{c.inference / 1e9:.1f}", f"{c.step / 1e9:.1f}"]
        row += [_ratio(c.step, reference.step), f"{c.saved / 1e6:.1f}", _ratio(c.saved, reference.saved)]
        if timed is None:
            row += [""] * 6
        else:
            taken, first = timed[0][name], timed[0]["plain"]
            row += [f"{taken.inference:.2f}", _ratio(taken.inference, first.inference)]
            row += [f"{taken.step:.2f}", _ratio(taken.step, first.step)]
            of_ours = name == "ours"
            row += [f"{timed[1].outputs:.1e}" if of_ours else "", f"{timed[1].gradients:.1e}" if of_ours else ""]
        rows.append(row)
    return rows


def scale_grid(timed: dict[Setting, dict[str, Seconds]]) -> Grid:
    """A step of stage 2 at each in-plane scale S: operations and seconds."""
    rows = []
    for setting, taken in timed.items():
        plain, other = taken["plain"].step, taken["stock nnU-Net"].step
        for name, c in counts(setting).items():
            step = taken[name].step
            row = [str(setting.scale), name, f"{c.step / 1e9:.1f}", f"{step:.2f}"]
            rows.append([*row, _ratio(step, plain), _ratio(step, other)])
    return Grid(["S", "network", "step GFLOP", "step s", "of plain", "of stock nnU-Net"], rows)


def part_grid(setting: Setting) -> Grid:
    """Parts of our forward pass in training with their FLOPs; torch cannot tell for the backward pass.

    Trained parts cost about three times this in a step, frozen ones that gradients pass through about twice.
    """
    with torch.device("meta"):
        network: nn.Module = setting.network()
    with shapes_only(), counted_as_on_the_cpu():
        network, x = to_shapes(network), torch.empty(setting.shape)
        parts = flops_by_module(lambda: network(x), depth=4)
    whole = max(parts.values())
    names = {
        name.partition(".")[2] or "whole": name
        for name in parts
        if ".vit." not in name and parts[name] >= SMALLEST_PART * whole
    }
    rows = [[part, f"{parts[name] / 1e9:.1f}", f"{parts[name] / whole:.3f}"] for part, name in sorted(names.items())]
    return Grid(["part", "forward GFLOP", "of the whole"], rows)


@dataclass(frozen=True)
class Depth:
    """Cost of a training step of ``slices`` slices, checkpointed; seconds are None where nothing is timed."""

    slices: int
    count: Count
    seconds: float | None


def depths(variant: str, scale: int, rounds: int) -> list[Depth]:
    """Cost against the number of slices; no timing with ``rounds`` 0."""
    settings = [Setting(variant, 2, scale, (d, DEPTHS_SIDE, DEPTHS_SIDE)) for d in DEPTHS]
    taken: list[float | None] = [None] * len(settings)
    if rounds:
        network = checkpointed(settings[0].network(), True).to("cpu")
        steps = [training_step(network, torch.randn(setting.shape)) for setting in settings]
        taken = [*seconds(steps, rounds, warm_up=steps[:1])]

    def make() -> nn.Module:
        return checkpointed(settings[0].network(), True)

    return [Depth(d, count(make, setting.shape), t) for d, setting, t in zip(DEPTHS, settings, taken, strict=True)]


def depth_grid(measured: list[Depth]) -> Grid:
    """Cost per slice."""
    rows = [
        [
            str(m.slices),
            f"{m.count.step / 1e9 / m.slices:.2f}",
            f"{m.count.saved / 1e6 / m.slices:.2f}",
            "" if m.seconds is None else f"{m.seconds / m.slices:.3f}",
        ]
        for m in measured
    ]
    return Grid(["slices D", "step GFLOP per slice", "saved MB per slice", "step s per slice"], rows)


def stage1_grid(variants: Sequence[str], timed: Sequence[str], setting: Setting, rounds: int) -> Grid:
    """What training stage 1 costs in full and with LoRA in the ViT's place; the step here has AdamW's in it.

    Args:
        variants: of which to count.
        timed: those of them that are also timed.
        setting: of stage 1; its variant does not matter.
        rounds: timings of which the median is taken; 0 for none.
    """
    rows = []
    for variant in variants:

        def make(lora: bool, checkpoint: bool = False, variant: str = variant) -> DINOMed3D:
            network = build(DINOMed3D, variant, setting.scale, stage1_lora=lora)
            network.set_stage(1, single_slab_input=True)
            return checkpointed(network, checkpoint)

        def step(lora: bool) -> Call:
            network = make(lora).to("cpu")
            backward = training_step(network, torch.randn(setting.shape))
            optimizer = torch.optim.AdamW(parameter for parameter in network.parameters() if parameter.requires_grad)
            return lambda: (backward(), optimizer.step())

        kinds = {"in full": False, "LoRA": True}
        taken: list[float | None] = [None, None]
        if rounds and variant in timed:
            taken = [*seconds([step(lora) for lora in kinds.values()], rounds)]
        for (name, lora), took in zip(kinds.items(), taken, strict=True):
            kept, recomputed = (count(partial(make, lora, checkpoint), setting.shape) for checkpoint in (False, True))
            with torch.device("meta"):
                trained = sum(parameter.numel() for parameter in make(lora).parameters() if parameter.requires_grad)
            row = [variant, name, f"{trained / 1e6:.2f}", f"{2 * 4 * trained / 1e6:.1f}", f"{kept.step / 1e9:.1f}"]
            row += [f"{kept.saved / 1e6:.1f}", f"{recomputed.saved / 1e6:.1f}", "" if took is None else f"{took:.2f}"]
            rows.append(row)
    columns = ["variant", "stage 1", "trained, million", "AdamW's moments, MB", "step GFLOP", "saved MB"]
    return Grid([*columns, "saved MB, recomputed", "step s"], rows)


def case_seconds(setting: Setting, rounds: int) -> tuple[float, float, float]:
    """nnU-Net's predictor on a case of 64 slices: the plain network, ours, and ours as in a trainer's validation."""
    ours, plain = setting.network(), setting.network(plain=True)
    plain.load_state_dict(ours.state_dict())
    case = torch.randn(1, CASE_DEPTH, *setting.patch[1:])

    def predictions(volume: torch.Tensor) -> list[Call]:
        of_plain, of_ours = (case_prediction(network, setting.patch, volume) for network in (plain, ours))

        def validation() -> None:
            with ours.merged_lora(), ours.cached_slab_features():
                of_ours()

        return [of_plain, of_ours, validation]

    first, second, third = seconds(predictions(case), rounds, warm_up=predictions(case[:, : setting.patch[0]]))
    return first, second, third


@dataclass(frozen=True)
class Target:
    """A ratio that shall not be exceeded; None is not measured."""

    what: str
    limit: float
    measured: float | None

    @property
    def met(self) -> str:
        """yes, no or not measured."""
        if self.measured is None:
            return "not measured"
        return "yes" if self.measured <= self.limit else "no"


def released_step(setting: Setting) -> int:
    """FLOPs of a training step of the released code: the plain formulation with its depth alignment."""
    return count(lambda: setting.network(plain=True, released=True), setting.shape).step


def targets(
    released: int,
    counted: dict[str, Count],
    timed: dict[str, Seconds] | None,
    case: tuple[float, float, float] | None,
    against_depth: list[Depth],
) -> list[Target]:
    """Targets of stage 2, from all that was counted and timed; ``released`` is `released_step`."""
    plain, ours, checked = counted["plain"], counted["ours"], counted["ours, checkpointed"]
    shallow, deep = against_depth[0], against_depth[-1]
    per_slice = of_plain = of_stock = None
    if timed is not None:
        of_plain, of_stock = (timed["ours"].step / timed[name].step for name in ("plain", "stock nnU-Net"))
    if shallow.seconds is not None and deep.seconds is not None:
        per_slice = deep.seconds / deep.slices / (shallow.seconds / shallow.slices)
    saved_per_slice = deep.count.saved / deep.slices / (shallow.count.saved / shallow.slices)
    return [
        Target("FLOPs of a step, of the released code's", 0.6, ours.step / released),
        Target("time of a step, of the plain formulation's", 0.5, of_plain),
        Target("time of a step, of stock nnU-Net's", 1.6, of_stock),
        Target("saved bytes with checkpointing, of the plain formulation's", 0.35, checked.saved / plain.saved),
        Target("FLOPs of a step with checkpointing, of the plain formulation's", 1.3, checked.step / plain.step),
        Target("FLOPs of a step with checkpointing, of ours without", 1.3, checked.step / ours.step),
        Target("saved bytes without checkpointing, of the plain formulation's", 0.8, ours.saved / plain.saved),
        Target(f"time to predict {CASE_DEPTH} slices, of the plain formulation's", 0.5, case and case[1] / case[0]),
        Target("time to predict them in validation, of the plain formulation's", 0.5, case and case[2] / case[0]),
        Target(f"time per slice at D = {deep.slices}, of that at D = {shallow.slices}", 1.1, per_slice),
        Target(f"saved bytes per slice at D = {deep.slices}, of that at D = {shallow.slices}", 1.0, saved_per_slice),
    ]


def count_targets(
    setting: Setting,
    timed: dict[str, Seconds] | None,
    case: tuple[float, float, float] | None,
    against_depth: list[Depth],
) -> list[Target]:
    """The targets of a setting, with what is counted of it."""
    return targets(released_step(setting), counts(setting), timed, case, against_depth)


def target_grid(by_scale: dict[int, list[Target]]) -> Grid:
    """Targets, and for each in-plane scale S the measured ratio and whether it is met."""
    rows = []
    for of_scales in zip(*by_scale.values(), strict=True):
        measured = ["" if t.measured is None else f"{t.measured:.3f}" for t in of_scales]
        missed = [f"S = {scale}" for scale, t in zip(by_scale, of_scales, strict=True) if t.met == "no"]
        unknown = all(t.measured is None for t in of_scales)
        met = "not measured" if unknown else f"not at {', '.join(missed)}" if missed else "yes"
        rows.append([of_scales[0].what, f"{of_scales[0].limit:.2f}", *measured, met])
    return Grid(["ratio", "at most", *(f"S = {scale}" for scale in by_scale), "met"], rows)
