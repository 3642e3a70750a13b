"""Exporting a model: its network for one window becomes a file, which is run and compared before it gets its name."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from nnunetv2_dinomed3d.exporting.description import describe
from nnunetv2_dinomed3d.exporting.files import INSTALL, data_of, description_of, require_writable
from nnunetv2_dinomed3d.exporting.model import TrainedModel
from nnunetv2_dinomed3d.exporting.network import HalfPrecision, merge_for_export, require_exportable
from nnunetv2_dinomed3d.exporting.program import run_onnx, run_program, trace, write
from nnunetv2_dinomed3d.written import written_whole

TOLERANCE = 1e-4
"""Largest difference of float32 logits that is accepted, as a share of the largest logit, or of 1 if that is more."""

HALF_TOLERANCE = 2e-2
"""The same for weights in float16."""


@dataclass(frozen=True)
class Check:
    """How the file's logits of a random window differ from the trained network's.

    Attributes:
        by: what ran the file; None if nothing could.
        largest_difference: of the logits.
        tolerance: what is accepted.
    """

    by: str | None
    largest_difference: float | None
    tolerance: float

    def __str__(self) -> str:
        if self.by is None:
            return f"Not checked, as onnxruntime is not installed: {INSTALL}"
        return (
            f"Checked with {self.by}: the logits of a random window differ by {self.largest_difference:.2g} at most "
            f"(accepted: {self.tolerance:.2g})."
        )


def export_model(model: TrainedModel, out: Path, *, half: bool = False) -> tuple[list[Path], Check]:
    """Write a model's network for one window, and a description beside it. If that fails, nothing stays.

    The model's network is used up: LoRA is merged, and with ``half`` its weights become float16.

    Args:
        model: to export.
        out: file to write; its suffix is one of `files.FORMATS`.
        half: whether weights are written in float16, see `network.HalfPrecision`.

    Returns:
        The files, the network's first; and the check.

    Raises:
        ValueError: the network cannot be exported, or the file gives other logits than the network.
    """
    kind = require_writable(out)
    require_exportable(model.network, model.trainer)
    network = model.network
    window = torch.randn(model.window, generator=torch.Generator().manual_seed(0))
    if half:
        window = window.half()
    files = [out, description_of(out)]
    with ExitStack() as stack:
        path, description = (stack.enter_context(written_whole(file)) for file in files)
        with torch.no_grad():
            expected = network(window.float())
        merge_for_export(network)
        if half:
            network = HalfPrecision(network)
        write(trace(network, window), path, kind)
        check = _check(path, window, expected, HALF_TOLERANCE if half else TOLERANCE)
        content = {**describe(model, kind, half), "check": asdict(check)}
        description.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        if data_of(path).exists():
            files.append(data_of(out))
            data_of(path).rename(stack.enter_context(written_whole(files[-1])))
    return files, check


def _check(path: Path, window: Tensor, expected: Tensor, tolerance: float) -> Check:
    """Run the file and compare.

    Raises:
        ValueError: the logits differ by more than the tolerance, or are not finite.
    """
    tolerance *= max(1.0, expected.abs().max().item())
    if path.suffix == ".onnx":
        if find_spec("onnxruntime") is None:
            return Check(None, None, tolerance)
        by, logits = f"onnxruntime {metadata.version('onnxruntime')}", run_onnx(path, window)
    else:
        by, logits = f"torch {torch.__version__}", run_program(path, window)
    difference = (logits - expected).abs().max().item()
    if not difference <= tolerance:  # also if it is NaN
        raise ValueError(
            f"The file would give other logits than the network: {by} finds differences up to {difference:.2g} on a "
            f"random window, and {tolerance:.2g} is accepted. Nothing was written."
        )
    return Check(by, difference, tolerance)
