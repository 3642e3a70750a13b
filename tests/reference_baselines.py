"""The reference values of the baselines: official keys, weights by the rule, outputs of the official code."""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "shared" / "reference_baselines"

needs_reference = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"reference values are not at {FOLDER}")


def outputs(network: str) -> dict[str, Tensor]:
    """Name -> array of the official code."""
    with np.load(FOLDER / network / "outputs.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def official_state(network: str, dtype: torch.dtype = torch.float32, setting: str | None = None) -> dict[str, Tensor]:
    """The official state dict, of weights by the rule; of nnFormer, in a setting of deep supervision."""
    parameters = json.loads((FOLDER / network / "parameters.json").read_text())
    parameters = parameters if setting is None else parameters[setting]
    return {name: torch.from_numpy(value(name, tuple(shape))).to(dtype) for name, shape in parameters}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's value, by its official name and its shape."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32).astype(np.float64)
    return _value(name, shape, z).astype(np.float32)


def _value(name: str, shape: tuple[int, ...], z: np.ndarray) -> np.ndarray:
    rules: list[tuple[bool, Callable[[], np.ndarray]]] = [
        (name.startswith("input."), lambda: z),
        (name.endswith("mask_token") or (".backbone." in name and name.endswith("qkv.bias")), lambda: 0 * z),
        (name.endswith(".gamma"), lambda: 0.75 + 0.1 * z),
        (name.endswith(("cls_token", "storage_tokens")), lambda: 0.5 * z),
        (name.endswith(".A_log"), lambda: np.log(np.arange(1, 17)) + 0.1 * z),
        (name.endswith(".dt_proj.bias"), lambda: z - 3),
        (name.endswith(".mamba.D"), lambda: 1 + 0.1 * z),
        (name.endswith(("relative_position_bias_table", "sampling_offsets.bias")), lambda: z),
        (name.endswith("running_mean"), lambda: 0.1 * z),
        (name.endswith("running_var"), lambda: np.exp(0.2 * z)),
        (len(shape) == 1 and name.endswith("weight"), lambda: 1 + 0.1 * z),
        (len(shape) == 1, lambda: 0.1 * z),
        (True, lambda: z / np.sqrt(np.prod(shape[1:]))),
    ]
    return next(formula() for fits, formula in rules if fits)


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """While open, the last output of each module, under the given name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: seen.__setitem__(name, output.detach())

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    assert found.shape == expected.shape, (tuple(found.shape), tuple(expected.shape))
    return float((found.double() - expected.double()).abs().max())


def parameters(network: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
