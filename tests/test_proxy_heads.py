"""Stage 1's heads: one slice at a time, as large as the slice."""

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.proxy_heads import ProxyHead, UPerNetProxyHead
from tests.networks import nano


@pytest.mark.parametrize("kind", ["linear", "upernet"])
@pytest.mark.parametrize("size", [(32, 48), (20, 20)])
def test_logits_have_the_size_asked_for(kind: str, size: tuple[int, int]) -> None:
    head = ProxyHead(8, 3) if kind == "linear" else UPerNetProxyHead(8, 16, 3, 16, "exact")
    features = [torch.randn(2, 8, 5, 2, 3) for _ in range(head.num_maps)]
    assert head(features, size).shape == (2, 3, 5, *size)


def test_upernet_proxy_sees_one_slice_at_a_time() -> None:
    """It stands for a 2D head: beyond the slab no other slice may have a say."""
    network = nano(proxy="upernet").eval()
    network.set_stage(1)
    volume = torch.randn(1, 1, 7, 32, 32)
    changed = volume.clone()
    changed[:, :, 5:] += 1
    difference = (network(volume) - network(changed)).abs().amax((0, 1, 3, 4))
    assert (difference[:4] < 1e-5).all()
    assert (difference[4:] > 1e-3).all()
