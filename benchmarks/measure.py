"""Measures: FLOPs, bytes kept for the backward pass, seconds and differences."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(output: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(output, query, key, value)


def _added_product(_: Shape, first: Shape, second: Shape, **__: Any) -> int:
    batch, rows, inner = first
    return 2 * batch * rows * inner * second[-1]


MORE_FORMULAS: dict[Any, Any] = {  # torch has none for attention on the CPU, nor for products added in place
    torch.ops.aten.baddbmm_: _added_product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}

Call = Callable[[], Any]


def flops(call: Call) -> int:
    """Floating point operations of a call, two for a multiplication and an addition; recomputed ones count again."""
    return sum(flops_by_module(call, depth=0).values())


def flops_by_module(call: Call, depth: int) -> dict[str, int]:
    """The same for each module down to a depth, by its name from the class of the outermost; depth 0 is the whole."""
    with FlopCounterMode(display=False, custom_mapping=MORE_FORMULAS) as counter:
        call()
    counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    if depth == 0:
        return {"Global": counts["Global"]}
    return {name: count for name, count in counts.items() if name != "Global" and name.count(".") <= depth}


class _Storages(TorchDispatchMode):
    """Notes every storage that an operator makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.references: list[StorageWeakRef] = []  # while they are there, no other storage gets the same number
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, made=True)
        return result

    def _note(self, tensors: Any, made: bool) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata in self.known:
                continue
            self.known.add(reference.cdata)
            self.references.append(reference)
            if made:
                self.made.append((reference, storage.nbytes()))


def saved_bytes(forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass leaves alive for the backward pass.

    Every storage counts once and whole; what was there before (parameters, the input) and the output itself do not.
    Without checkpointing these are the storages that `torch.autograd.graph.saved_tensors_hooks` sees. With it, the
    inputs of what is recomputed and the random state are among them.
    """
    with _Storages() as storages:
        output = forward()
    gc.collect()
    outputs = {StorageWeakRef(t.untyped_storage()).cdata for t in tree_leaves(output) if isinstance(t, Tensor)}
    return sum(size for reference, size in storages.made if reference.cdata not in outputs and not reference.expired())


def seconds(calls: Sequence[Call], rounds: int, warm_up: Sequence[Call] | None = None) -> list[float]:
    """Median seconds of each call, taken in turns after the warm-up: one round of the same calls, or others."""
    for call in calls if warm_up is None else warm_up:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            gc.collect()
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [median(times) for times in taken]


def training_step(network: nn.Module, x: Tensor) -> Call:
    """Forward and backward pass; the loss is the mean square of the output, or of all of them."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        outputs = tree_leaves(network(x))
        sum(output.square().mean() for output in outputs).backward()

    return step


def inference(network: nn.Module, x: Tensor) -> Call:
    """Forward pass in eval mode, without gradients."""

    @torch.no_grad()
    def predict() -> None:
        network.eval()(x)
        network.train()

    return predict


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences, each divided by the largest absolute value of what it is compared with.

    ``outputs`` is of the logits in float32, with and without gradients. ``gradients`` is the worst of all parameters,
    in float64: in float32 rounding carries some value over the kink of a ReLU, which is no error, but can be a
    hundredth of a gradient.
    """

    outputs: float
    gradients: float


def _relative(value: Tensor, reference: Tensor) -> float:
    off, scale = (value - reference).abs().max(), reference.abs().max()
    return (off / scale).item() if off > 0 else 0.0


def _gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.double().zero_grad(set_to_none=True)
    network(x.double()).square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    network.float()
    return gradients


def difference(network: nn.Module, reference: nn.Module, x: Tensor) -> Difference:
    """Compare a network with another of the same weights, both in eval mode, where nothing is random."""
    network.eval()
    reference.eval()
    with torch.no_grad():
        expected = reference(x)
        off = _relative(network(x), expected)
    off = max(off, _relative(network(x).detach(), expected))
    gradients, expected_gradients = _gradients(network, x), _gradients(reference, x)
    if gradients.keys() != expected_gradients.keys():
        raise ValueError(f"Only one has gradients of {sorted(gradients.keys() ^ expected_gradients.keys())}.")
    network.train()
    reference.train()
    return Difference(off, max(_relative(gradients[name], expected_gradients[name]) for name in gradients))
