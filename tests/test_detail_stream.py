"""The detail stream: three scales in plane, the depth kept, odd sizes."""

from typing import Any

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.detail_stream import DetailEncoder, ResidualBlock


@pytest.mark.parametrize(
    ("size", "half", "quarter"),
    [((5, 16, 24), (8, 12), (4, 6)), ((1, 9, 7), (5, 4), (3, 2)), ((2, 1, 1), (1, 1), (1, 1))],
)
def test_three_scales_in_plane(size: tuple[int, int, int], half: tuple[int, int], quarter: tuple[int, int]) -> None:
    maps = DetailEncoder(2, 8, 32)(torch.randn(2, 2, *size))
    assert [tuple(m.shape) for m in maps] == [(2, 8, *size), (2, 16, size[0], *half), (2, 32, size[0], *quarter)]


def test_a_voxel_stays_where_it_is() -> None:
    """Strides begin at the near border: what changes at a corner is seen at that corner of every scale."""
    torch.manual_seed(0)
    stream, x = DetailEncoder(1, 8, 32).eval(), torch.randn(1, 1, 8, 64, 64)
    changed = x.clone()
    changed[..., 0, 0, 0] += 100
    for before, after in zip(stream(x), stream(changed), strict=True):
        where = (after - before).abs().amax((0, 1)).argmax()
        place = torch.stack(torch.unravel_index(where, before.shape[2:]))
        assert (place <= 2).all()


def test_a_residual_block_adds_to_its_input() -> None:
    block: Any = ResidualBlock(4, 4)
    x = torch.randn(1, 4, 3, 8, 8)
    torch.nn.init.zeros_(block.body[3].weight)
    torch.testing.assert_close(block(x), x.relu())
