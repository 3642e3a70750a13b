"""Writing a network as ONNX or as a program of torch.export, and running what was written."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from nnunetv2_dinomed3d.exporting.files import Format
from nnunetv2_dinomed3d.weights.files import shortened

INPUT, OUTPUT = "image", "logits"
"""Names of the input and output of an ONNX file."""


@contextmanager
def _silenced() -> Iterator[None]:
    """What the exporters print of their steps and warn of one another's versions goes nowhere."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def trace(network: nn.Module, window: Tensor) -> ExportedProgram:
    """The network for windows of one shape, as torch.export traces it.

    Raises:
        ValueError: it cannot be traced.
    """
    try:
        with torch.no_grad(), _silenced():
            program = torch.export.export(network, (window,), strict=False)
    except Exception as error:  # what a network does is anything
        raise ValueError(
            f"torch.export cannot trace the network ({shortened(error)}), so neither .onnx nor .pt2 can be written. "
            "Predict with nnUNetv2_predict."
        ) from error
    program.graph.eliminate_dead_code()  # PyTorch 2.6 writes calls on types that it cannot read
    return program


def write(program: ExportedProgram, path: Path, kind: Format) -> None:
    """Write a program. An ONNX file of more than 2 GB gets its weights in a second one, ``NAME.onnx.data``.

    Raises:
        ValueError: the network has an operation that ONNX has not.
        OSError: the file cannot be written.
    """
    if kind == "torch.export":
        with _silenced():
            torch.export.save(program, path)
        return
    try:
        # of another kernel the exporter records the layout that it will not have, and later fails on it
        with _silenced(), sdpa_kernel(SDPBackend.MATH):
            model = torch.onnx.export(
                program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    except Exception as error:  # the exporter's own and those of its libraries
        raise ValueError(
            f"The network cannot be written as ONNX ({shortened(_root(error))}). Write it as a program of torch.export "
            "instead: name a file that ends with .pt2."
        ) from error
    assert model is not None
    model.save(path)


def _root(error: BaseException) -> BaseException:
    """The first of the errors that led to this one: the exporter wraps what was wrong into advice to its authors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def run_onnx(path: Path, window: Tensor) -> Tensor:
    """The logits of an ONNX file for a window, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: window.numpy()})
    return torch.from_numpy(logits)


def run_program(path: Path, window: Tensor) -> Tensor:
    """The logits of a program of torch.export for a window."""
    with torch.no_grad(), _silenced():
        logits: Tensor = torch.export.load(path).module()(window)
    return logits
