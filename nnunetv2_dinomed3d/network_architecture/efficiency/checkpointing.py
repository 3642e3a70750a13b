"""Activation checkpointing. Cheap layers are always recomputed; all but costly convolutions are on request.

A policy names the parts of a network that are recomputed in the backward pass, and `apply_checkpointing` replaces
their forward methods from outside: the network's own code and its state dict know nothing of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

COSTLY = 27 * 128
"""Multiplications for one value of a convolution's result from which on it is kept in any case."""

Kept = Literal["convolutions", "costly convolutions"]

Policy = Mapping[str, Kept]
"""Regular expression for names of submodules, or of their methods -> what is kept of these, beside their inputs."""

CHEAP_LAYERS: Policy = {
    r"detail\.scale_\d": "convolutions",
    r"(proxy_head\.)?decoder\.upernet\.((laterals|smooth)\.\d|fusion)": "convolutions",
    r"decoder\.refine_(half|full)\.body": "convolutions",
}
"""Norms and activations of the detail stream, UPerNet and the refinement."""

EVERYTHING: Policy = {
    r"adapter|fusion|detail\.scale_\d|proxy_head\.(adapter|decoder)": "costly convolutions",
    r"decoder\.(upernet|refine_half|segment)": "costly convolutions",
}
"""All after the ViT but costly convolutions."""

EVERYTHING_WITHOUT_DETAIL: Policy = {r"(proxy_head\.)?(adapter|decoder)": "costly convolutions"}
"""The same for a network without detail stream."""


def apply_checkpointing(network: nn.Module, policy: Policy) -> None:
    """Recompute parts of a network in the backward pass; what an earlier call chose is undone.

    Args:
        network: to be changed.
        policy: its parts. Those of which all convolutions are kept have to be `torch.nn.Sequential`; compiled, they are
            left to the compiler, which chooses what to keep.
    """
    for module in network.modules():
        for method in [name for name, value in vars(module).items() if _is_recomputed(value)]:
            delattr(module, method)
    for name, module, method in list(_parts(network)):
        for pattern, kept in policy.items():
            if re.fullmatch(pattern, name):
                setattr(module, method, _recomputed(getattr(module, method), module, kept))


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and method of everything that a policy can name."""
    for name, module in network.named_modules():
        yield name, module, "forward"
        for method in vars(type(module)):
            yield f"{name}.{method}", module, method


def _recomputed(method: Callable[..., Any], module: nn.Module, kept: Kept) -> partial:
    # a partial, not a closure: a copy of the module gets one of its own
    if kept == "costly convolutions":
        return partial(_recompute_all, method)
    assert isinstance(module, nn.Sequential), f"{type(module).__name__} is no sequence of layers"
    return partial(_recompute_cheap, module)


def _is_recomputed(value: Any) -> bool:
    return isinstance(value, partial) and value.func in (_recompute_all, _recompute_cheap)


def _keeps_costly(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    if operator is torch.ops.aten.convolution.default:
        weight, transposed = inputs[1], inputs[6]
        if not transposed and weight[0].numel() >= COSTLY:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_keep_costly = partial(create_selective_checkpoint_contexts, _keeps_costly)
_keep_convolutions = partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])


def _recompute_all(method: Callable[..., Any], *inputs: Any) -> Any:
    """``method(*inputs)``, of which inputs and the results of costly convolutions are kept."""
    if not torch.is_grad_enabled():
        return method(*inputs)
    if torch.compiler.is_compiling():
        return checkpoint(method, *inputs, use_reentrant=False)
    return checkpoint(method, *inputs, use_reentrant=False, context_fn=_keep_costly)


def _recompute_cheap(part: nn.Sequential, x: Any) -> Tensor:
    """``part(x)``, of which ``x`` and the results of convolutions are kept.

    The first layer, if it is a convolution, stands outside: a `ConcatConv3d` is more than one operation.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nn.Sequential.forward(part, x)
    layers = _flat(part)
    if isinstance(layers[0], nn.Conv3d):
        x, layers = layers[0](x), layers[1:]
    return checkpoint(_run, layers, x, use_reentrant=False, context_fn=_keep_convolutions)


def _flat(part: nn.Module) -> list[nn.Module]:
    """The layers of a sequence, also of sequences in it."""
    return [layer for child in part for layer in _flat(child)] if isinstance(part, nn.Sequential) else [part]


def _run(layers: Sequence[nn.Module], x: Any) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
