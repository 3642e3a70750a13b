"""The rows of the GPU benchmark in their order: the most important first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from benchmarks.gpu.agreement import FLOORS, compare
from benchmarks.gpu.card import PRECISIONS, matrix_peak
from benchmarks.gpu.loader import measure_loader
from benchmarks.gpu.prediction import WAYS, predict
from benchmarks.gpu.results import Results, Values
from benchmarks.gpu.runner import CannotRunError, Job
from benchmarks.gpu.steps import SECTION, STOCK, Setting, compare_estimate, measure_step
from benchmarks.networks import Size
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage

PEAK = "Matrix products"


@dataclass(frozen=True)
class Extent:
    """What is measured, and how large.

    Attributes:
        variants: of the network, the most important first.
        patches: ``(D, H, W)``, the most important first.
        batch, slabs: in a batch of stage 2 and of stage 1.
        compared: variant and patch whose outputs and gradients are compared with the CPU's.
        slices: of the predicted volume.
        differences: by which a setting of a step may differ from the first at most, see `differences`.
        estimated: the same, of steps whose memory is compared with plan's estimate.
        backend: of ``torch.compile``; without one nothing is compiled.
        least: steps that are timed at least.
        matrix: side of the square matrices of the peak.
        workers: of the slab loader; None for nnU-Net's number.
        loader_seconds: to draw slabs for.
        pace: seconds that rows take, as a multiple of those on a data centre's GPU.
    """

    variants: tuple[str, ...] = ("base", "small", "large")
    patches: tuple[Size, ...] = ((16, 512, 512), (128, 128, 128))
    batch: int = 2
    slabs: int = 24
    compared: tuple[str, Size] = ("small", (8, 128, 128))
    slices: int = 300
    differences: int = 6
    estimated: int = 6
    backend: str | None = "inductor"
    least: int = 3
    matrix: int = 8192
    workers: int | None = None
    loader_seconds: float = 8.0
    pace: float = 1.0


MINIATURE = Extent(
    variants=("nano",),
    patches=((4, 32, 32),),
    batch=2,
    slabs=2,
    compared=("nano", (4, 32, 32)),
    slices=10,
    differences=1,
    estimated=0,
    backend=None,
    least=1,
    matrix=128,
    workers=0,
    loader_seconds=0.1,
    pace=0.02,
)
"""All rows of every kind in less than a minute on a CPU; nothing is compiled."""


def differences(setting: Setting, extent: Extent) -> int:
    """By how much a setting is less important than the trainers' own: the first variant on the first patch."""
    variants = (STOCK, *extent.variants)
    return (
        (variants.index(setting.network) > 1)
        + extent.patches.index(setting.patch)
        + setting.compiled
        + (not setting.recomputed)
        + setting.channels_last
    )


def settings(extent: Extent) -> list[Setting]:
    """All steps to measure, those with fewest differences first."""
    stages: tuple[Stage, ...] = (2, 1)
    found = []
    for channels_last, recomputed, compiled, patch in product(
        (False, True), (True, False), (False, True), extent.patches
    ):
        own = [
            Setting(variant, stage, patch, extent.batch if stage == 2 else extent.slabs)
            for variant, stage in product(extent.variants, stages)
        ]
        if recomputed:  # nnU-Net's own network has no such option
            own.append(Setting(STOCK, 2, patch, extent.batch))
        found += [
            replace(setting, compiled=compiled, recomputed=recomputed, channels_last=channels_last) for setting in own
        ]
    found = [setting for setting in found if differences(setting, extent) <= extent.differences]
    return sorted(found, key=lambda setting: differences(setting, extent))


class Jobs:
    """Makes the rows; some compare with rows before them.

    Args:
        extent: what is measured.
        device: "cuda" or "cpu".
        results: of the rows so far.
    """

    def __init__(self, extent: Extent, device: str, results: Results) -> None:
        self.extent, self.device, self.results = extent, device, results

    def __iter__(self) -> Iterator[Job]:
        """All rows, the most important first."""
        for precision in PRECISIONS:
            peak = partial(matrix_peak, self.device, precision, self.extent.matrix)
            yield self._job(PEAK, {"precision": precision, "side": self.extent.matrix}, peak, 5)
        yield from self._agreement()
        every = settings(self.extent)
        first = [setting for setting in every if differences(setting, self.extent) == 0]
        yield from map(self._step, first)
        yield from self._prediction()
        yield self._loader()
        yield from self._estimates(first)
        for number in range(1, self.extent.differences + 1):
            those = [setting for setting in every if differences(setting, self.extent) == number]
            yield from map(self._step, those)
            if number <= self.extent.estimated:
                yield from self._estimates(those)

    def _job(self, section: str, what: Values, measure: Any, expected: float, more: str = "") -> Job:
        return Job(section, what, measure, f"{section} {more}", expected * self.extent.pace)

    def _agreement(self) -> Iterator[Job]:
        variant, patch = self.extent.compared
        stages: tuple[Stage, ...] = (2, 1)
        for stage, precision in product(stages, FLOORS):
            what = {"network": variant, "stage": str(stage), "precision": precision}
            measure = partial(compare, variant, stage, patch, self.device, precision)
            yield self._job("Agreement with the CPU", what, measure, 30)

    def _step(self, setting: Setting) -> Job:
        def measure() -> Values:
            backend = self.extent.backend
            if setting.compiled and backend is None:
                raise CannotRunError("the miniature compiles nothing")
            peak = self.results.values(PEAK, {"precision": "bfloat16", "side": self.extent.matrix})
            return measure_step(setting, self.device, peak, backend or "inductor", self.extent.least)

        compiled = "compiled" if setting.compiled else ""
        return self._job(SECTION, setting.what, measure, 120 if setting.compiled else 20, compiled)

    def _estimates(self, steps: list[Setting]) -> Iterator[Job]:
        """Of steps as `dinomed3d plan` counts them: not compiled and contiguous."""
        return (self._estimate(step) for step in steps if not step.compiled and not step.channels_last)

    def _estimate(self, setting: Setting) -> Job:
        def measure() -> Values:
            measured = self.results.values(SECTION, setting.what)
            if measured is None:
                raise CannotRunError("its step was not measured")
            return compare_estimate(setting, measured, self.device)

        what = {name: value for name, value in setting.what.items() if name not in ("compiled", "channels last")}
        return self._job("Memory against plan's estimate", what, measure, 20)

    def _prediction(self) -> Iterator[Job]:
        variant, patch = self.extent.variants[0], self.extent.patches[0]
        for way in WAYS:
            what = {"network": variant, "windows": "x".join(map(str, patch)), "slices": self.extent.slices, "by": way}
            measure = partial(predict, variant, way, self.extent.slices, patch, self.device)
            yield self._job("Prediction of a volume", what, measure, 40)

    def _loader(self) -> Job:
        extent = self.extent
        side = extent.patches[0][1]
        setting = Setting(extent.variants[0], 1, extent.patches[0], extent.slabs)

        def measure() -> Values:
            step = self.results.values(SECTION, setting.what)
            slices = extent.patches[0][0]
            return measure_loader(side, slices, extent.slabs, extent.workers, extent.loader_seconds, step)

        return self._job("Slab loader", {"slabs": f"{extent.slabs} of 3x{side}x{side}"}, measure, 40)
