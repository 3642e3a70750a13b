"""The gated fusion is the paper's Eq. 2 and 3."""

import torch
import torch.nn.functional as F

from nnunetv2_dinomed3d.network_architecture.fusion import GatedFusion


def test_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    fusion, semantic, detail = GatedFusion(8), torch.randn(2, 8, 3, 4, 6), torch.randn(2, 8, 3, 4, 6)
    gate = torch.sigmoid(F.conv3d(torch.cat([semantic, detail], dim=1), fusion.gate.weight, fusion.gate.bias))
    torch.testing.assert_close(fusion(semantic, detail), semantic + gate * detail)


def test_the_detail_is_brought_to_the_semantic_grid() -> None:
    """With the released alignment these are D + 3 slices; with S = 4 and an odd size, other pixels too."""
    fusion, semantic, detail = GatedFusion(8), torch.randn(1, 8, 6, 4, 4), torch.randn(1, 8, 3, 4, 4)
    resized = F.interpolate(detail, size=(6, 4, 4), mode="trilinear")
    torch.testing.assert_close(fusion(semantic, detail), fusion(semantic, resized))


def test_a_closed_gate_lets_nothing_in() -> None:
    fusion, semantic = GatedFusion(8), torch.randn(1, 8, 2, 4, 4)
    assert fusion.gate.bias is not None
    torch.nn.init.constant_(fusion.gate.bias, -100)
    torch.testing.assert_close(fusion(semantic, torch.randn(1, 8, 2, 4, 4)), semantic)
