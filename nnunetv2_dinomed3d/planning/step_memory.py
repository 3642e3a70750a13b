"""Memory of a training step of any network: the step is run on fake tensors and its bytes are counted.

Fake tensors (`torch._subclasses.FakeTensorMode`) have shapes and types but no data, so that a step of any size runs in
seconds on any machine. Nothing here is a formula of the architecture: what changes in the network changes the estimate.
"""

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA_RESERVE = 10**9
"""Bytes that a process on a GPU takes beside its tensors: CUDA's context, its libraries. An assumption."""

CONVOLUTION_WORKSPACE = {torch.ops.aten.convolution.default: 1, torch.ops.aten.convolution_backward.default: 3}
"""Memory that convolutions take for a moment on CUDA (copies in another layout, scratch), as multiples of the bytes of
their operands. An assumption."""

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Step:
    """One kind of training step of a trainer.

    Attributes:
        name: for reports, such as "stage 1".
        build: makes the network in the mode that the step trains it in; called with meta as default device.
        batch_shape: ``(b, C, *size)`` of the network's input.
        optimizer: makes the step's optimiser of the parameters that are trained.
        mixed_precision: whether the step computes in 16 bits on CUDA.
        count: steps of this kind in a training; None if the trainer does not say, or the data decide.
    """

    name: str
    build: Callable[[], nn.Module]
    batch_shape: tuple[int, ...]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = torch.optim.AdamW
    mixed_precision: bool = True
    count: int | None = None


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use at the moment of a training step when most are.

    Attributes:
        weights: parameters and buffers of the network.
        gradients: of the trained parameters, as far as they are there at that moment.
        optimiser: its state, such as AdamW's two moments of each trained parameter.
        activations: what the forward pass, the loss included, kept for the backward pass and is still there.
        workspace: the batch, what is alive for a moment only, and on CUDA `CUDA_RESERVE`.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(eq=False)
class _Storage:
    """Bytes of one storage and when it lived, in events: each birth and each death is one."""

    nbytes: int
    born: int
    died: int | None = None

    def is_alive(self, event: int) -> bool:
        return self.born <= event and (self.died is None or event < self.died)


class _Storages(TorchDispatchMode):
    """While active, keeps the books of all storages that operations make.

    Args:
        on_cuda: whether convolutions are cuDNN's, or oneDNN's.
    """

    def __init__(self, on_cuda: bool = False) -> None:
        super().__init__()
        self.on_cuda = on_cuda
        self.events = 0
        self.all: list[_Storage] = []
        self._alive: dict[int, _Storage] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.of(leaf)
        if func in CONVOLUTION_WORKSPACE:
            self._use_for_a_moment(self._workspace(func, args, result))
        return result

    def _workspace(self, convolution: Any, args: Sequence, result: Any) -> int:
        if self.on_cuda:
            operands = sum(leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            return CONVOLUTION_WORKSPACE[convolution] * operands
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
        # oneDNN copies those, as measured
        return sum(t.nbytes for t in tensors if not t.is_contiguous(memory_format=torch.channels_last_3d))

    def of(self, tensor: Tensor) -> _Storage:
        """The entry of a tensor's storage; a new one where there is none."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self.events += 1
            entry = _Storage(storage.nbytes(), self.events)
            self.all.append(entry)
            self._alive[key] = entry
            weakref.finalize(storage, self._died, key)
        return self._alive[key]

    def _use_for_a_moment(self, nbytes: int) -> None:
        self.events += 2
        self.all.append(_Storage(nbytes, self.events - 1, self.events))

    def _died(self, key: int) -> None:
        self.events += 1
        self._alive.pop(key).died = self.events

    def peak(self) -> int:
        """The event after which most bytes are in use."""
        change = [0] * (self.events + 1)
        for storage in self.all:
            change[storage.born] += storage.nbytes
            if storage.died is not None:
                change[storage.died] -= storage.nbytes
        in_use, most, peak = 0, -1, 0
        for event, nbytes in enumerate(change):
            in_use += nbytes
            if in_use > most:
                most, peak = in_use, event
        return peak


class _CudaAutocast(TorchFunctionMode):
    """While active, operations have the types that CUDA's bfloat16 autocast gives them, on whatever device.

    PyTorch's own looks at the device of each tensor, and gradients on a fake CUDA device need a real one.
    """

    BFLOAT16 = frozenset(
        {"conv2d", "conv3d", "conv_transpose3d", "linear", "matmul", "bmm", "prelu", "scaled_dot_product_attention"}
    )
    FLOAT32 = frozenset({"layer_norm", "group_norm", "interpolate", "softmax"})

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.cache: dict[int, Tensor] | None = {}  # casts of parameters, kept for the forward pass; then None

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        is_instance_norm = func is F.group_norm and len(args) == 2  # as `norm.InstanceNorm3d` is computed on the CPU
        if self.enabled and not is_instance_norm and (name in self.BFLOAT16 or name in self.FLOAT32):
            dtype = torch.bfloat16 if name in self.BFLOAT16 else torch.float32
            args, kwargs = tree_map_only(Tensor, lambda tensor: self._cast(tensor, dtype), (args, kwargs))
        return func(*args, **(kwargs or {}))

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if self.cache is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self.cache:
            self.cache[id(tensor)] = tensor.to(dtype)
        return self.cache[id(tensor)]


def leave_meta(network: nn.Module) -> None:
    """Give a network on the meta device (fake) memory on the CPU. Modules that stand in it twice stay shared."""
    known: dict[int, Tensor] = {}
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    empty = torch.empty_like(tensor, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = known[id(tensor)]  # type: ignore[assignment]


def step_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and Dice with the tensors that nnU-Net's makes."""
    entropy = F.cross_entropy(logits, target[:, 0].long())
    probabilities = logits.softmax(1)
    space = tuple(range(2, logits.dim()))
    with torch.no_grad():
        one_hot = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, target.long(), 1)
        reference = one_hot.sum(space)
    overlap = (probabilities * one_hot).sum(space)
    return entropy - (2 * overlap / (probabilities.sum(space) + reference)).mean()


def _backward(loss: Tensor) -> None:
    """``loss.backward()`` with `_CudaAutocast` on, for what is recomputed; that call itself would switch it off."""
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _at_peak(storages: _Storages, parts: Mapping[str, Collection[_Storage]], reserve: int) -> MemoryUse:
    """The memory in use at the peak, part by part. The rest, with the reserve, is workspace."""
    peak = storages.peak()
    alive = {storage for storage in storages.all if storage.is_alive(peak)}
    nbytes = {part: sum(storage.nbytes for storage in alive.intersection(members)) for part, members in parts.items()}
    workspace = sum(storage.nbytes for storage in alive) - sum(nbytes.values()) + reserve
    return MemoryUse(**nbytes, workspace=workspace)


def training_step_memory(step: Step, device_type: DeviceType = "cuda") -> MemoryUse:
    """Memory of one training step (forward, loss, backward, optimiser) that is not the first.

    Args:
        step: the step.
        device_type: where the training would run.
    """
    on_cuda = device_type == "cuda"
    with torch.device("meta"):
        network = step.build()
    storages = _Storages(on_cuda)
    autocast = _CudaAutocast(enabled=on_cuda and step.mixed_precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        leave_meta(network)
        network.train()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = step.optimizer(trained)
        for group in optimizer.param_groups:
            group["foreach"] = on_cuda
        with storages:
            weights = {storages.of(tensor) for tensor in (*network.parameters(), *network.buffers())}
            batch = torch.empty(*step.batch_shape)
            begin = storages.events
            with autocast:
                outputs = network(batch)
                outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # several: deep supervision
                targets = [torch.empty(len(logits), 1, *logits.shape[2:]) for logits in outputs]
                for target in targets:
                    storages.of(target).born = begin  # it came with the batch
                loss = torch.stack([step_loss(*pair) for pair in zip(outputs, targets, strict=True)]).sum()
                autocast.cache = None
                forward_end = storages.events
                _backward(loss)
            gradients = {storages.of(parameter.grad) for parameter in trained if parameter.grad is not None}
            optimizer.step()
            state = [value for state in optimizer.state.values() for value in state.values()]
            moments = {storages.of(value) for value in state if isinstance(value, Tensor)}
    for moment in moments:
        moment.born = 0  # in all steps but the first
    activations = {s for s in storages.all if s.born > begin and s.is_alive(forward_end)}
    parts = {"weights": weights, "gradients": gradients, "optimiser": moments, "activations": activations}
    return _at_peak(storages, parts, CUDA_RESERVE if on_cuda else 0)
