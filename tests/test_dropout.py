"""Our dropout on the CPU is PyTorch's in distribution and gradient."""

import pytest
import torch
from torch import nn

from nnunetv2_dinomed3d.network_architecture.efficiency.dropout import Dropout
from nnunetv2_dinomed3d.network_architecture.lora import add_lora, lora_layers


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_is_dropped_and_the_rest_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(7, 11, 1301, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    assert y.dtype == dtype
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=0.01)
    assert y[y != 0].unique().double().tolist() == pytest.approx([1 / (1 - p)], rel=1e-2 if y.itemsize == 2 else 1e-4)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y), "the gradient is dropped where the value is"


def test_values_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(4, 100_000)) == 0
    for distance in range(1, 9):  # 4 values come from one random number
        both = (dropped[:, distance:] & dropped[:, :-distance]).float().mean().item()
        assert both == pytest.approx(0.25, abs=0.01), distance
    assert (dropped[0] & dropped[1]).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_the_seed_decides() -> None:
    drop, x = Dropout(0.3), torch.ones(3, 5)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(drop(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-9])
def test_all_or_nothing(p: float) -> None:
    x = torch.ones(3, 1000)
    assert torch.equal(Dropout(p)(x), nn.Dropout(p)(x))


def test_not_in_eval_mode_nor_of_nothing() -> None:
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(x[:0]).shape == (0, 5)


def test_lora_has_it() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    add_lora(module, r"\d", rank=2, alpha=2, dropout=0.25)
    drops = [drop for layer in lora_layers(module) for drop in layer.lora_dropout.values()]
    assert [(type(drop), drop.p) for drop in drops] == [(Dropout, 0.25)] * 2
