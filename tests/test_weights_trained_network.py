"""A checkpoint's weights in the network of its training: all of them, or an error that says which are wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_dinomed3d.weights.trained_network import load_trained, mirroring_axes

FILE = Path("fold_0/checkpoint_final.pth")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))


def test_batch_norm_keeps_its_counter() -> None:
    """Half precision becomes float32, whole numbers stay."""
    trained, fresh = network(0), network(1)
    trained(torch.randn(2, 1, 4, 4, 4))
    weights = load_trained(fresh, trained.half().state_dict(), FILE)
    assert weights["1.num_batches_tracked"].dtype == torch.int64
    assert fresh[1].num_batches_tracked == 1
    assert all(parameter.dtype == torch.float32 for parameter in fresh.parameters())
    for name, tensor in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor.to(weights[name].dtype)), name


def without_bias(state: dict[str, Tensor]) -> None:
    del state["0.bias"]


def of_another_shape(state: dict[str, Tensor]) -> None:
    state["0.bias"] = torch.zeros(5)


def failed(state: dict[str, Tensor]) -> None:
    state["0.bias"] = torch.full((4,), torch.nan)


def quantised(state: dict[str, Tensor]) -> None:
    state["0.bias"] = torch.zeros(4, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_bias, r"checkpoint_final\.pth does not fit its trainer, plans\.json.*0\.bias"),
        (of_another_shape, r"does not fit its trainer.*0\.bias.*\(5,\)"),
        (failed, r"checkpoint_final\.pth: 0\.bias holds NaN or infinity"),
        (quantised, r"0\.bias holds torch\.int8, where the network has torch\.float32"),
    ],
)
def test_what_does_not_fit(change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    state = dict(network(0).state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        load_trained(network(1), state, FILE)


def test_mirroring_axes() -> None:
    key = "inference_allowed_mirroring_axes"
    assert mirroring_axes({}, 3, FILE) is None
    assert mirroring_axes({key: [0, 2]}, 3, FILE) == (0, 2)
    for axes in ((2,), "01", (True,)):
        with pytest.raises(ValueError, match=r"checkpoint_final\.pth has the mirroring axes"):
            mirroring_axes({key: axes}, 2, FILE)
