"""What is kept for the backward pass, and what is computed again."""

import pytest
import torch
from torch import nn

from benchmarks.measure import flops
from nnunetv2_dinomed3d.network_architecture.efficiency.checkpointing import Recomputed


class Part(Recomputed):
    """A convolution and an activation."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution, nn.Softplus())
        self.recompute = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole(self.body, x)


@pytest.mark.parametrize(
    ("convolution", "again"),
    [
        (nn.Conv3d(128, 2, 3, padding=1), False),  # costly: 3456 multiplications a value
        (nn.Conv3d(64, 2, 3, padding=1), True),
        (nn.Conv3d(256, 2, 1), True),
        (nn.ConvTranspose3d(2, 256, (3, 4, 4), stride=(1, 4, 4)), True),  # few for one value for all its kernel
    ],
)
def test_only_costly_convolutions_are_kept(convolution: nn.Module, again: bool) -> None:
    part = Part(convolution)
    x = torch.randn(1, convolution.in_channels, 2, 4, 4, requires_grad=True)
    forward = flops(lambda: convolution(x.detach()))
    step = flops(lambda: part(x).sum().backward())
    assert step == (4 if again else 3) * forward  # twice as much for both gradients as for the result
    torch.testing.assert_close(x.grad, torch.autograd.grad(part.body(x).sum(), x)[0])
