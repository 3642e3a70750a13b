"""The norms, also on the smallest patches."""

import pytest
import torch
from torch import nn

from nnunetv2_dinomed3d.network_architecture.norm import InstanceNorm3d, group_norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_is_pytorchs_norm(layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, 3, 5, 6).to(memory_format=layout)
    normed = InstanceNorm3d(4)(x)
    torch.testing.assert_close(normed, nn.InstanceNorm3d(4)(x))
    assert normed.is_contiguous(memory_format=layout)


def test_one_value_per_channel_passes_as_it_is() -> None:
    """A patch of one token: PyTorch raises, and a mean taken off would leave nothing."""
    x = torch.randn(2, 4, 1, 1, 1)
    normed = InstanceNorm3d(4).train()(x)
    assert torch.equal(normed, x)
    normed.add_(1)
    assert not torch.equal(normed, x), "what follows works in place, not on the input"


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (16, 8)])
def test_no_group_holds_a_single_channel(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
