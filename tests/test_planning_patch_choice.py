"""The choice of patch and batch for a budget of memory."""

import pytest

from nnunetv2_dinomed3d.network_architecture.token_grid import TOKEN_SIZE, in_plane_scale
from nnunetv2_dinomed3d.planning.patch_choice import CLIP_DEPTH, candidates, choose_patch_and_batch


@pytest.mark.parametrize("median", [(36, 50, 35), (24.0, 256.0, 254.0), (120, 512, 512), (300, 900, 640), (1, 70, 333)])
def test_candidates(median: tuple[float, ...]) -> None:
    lists = candidates(median)
    assert all(lists)
    for patches in lists:
        scale = in_plane_scale(patches[0])
        step = TOKEN_SIZE // scale
        assert {in_plane_scale(patch) for patch in patches} == {scale}
        assert patches == sorted(set(patches), reverse=True)
        for depth, height, width in patches:
            assert depth == min(CLIP_DEPTH, median[0])
            assert height % step == width % step == 0
            assert max(height, width) <= 512
            assert height < median[1] + step
            assert width < median[2] + step
            assert max(height, width) >= min(64, *median[1:])
            assert abs(height - width * median[1] / median[2]) < 2 * step or max(median[1:]) > 512
    largest = lists[0][0]
    assert all(side >= min(512, wanted) for side, wanted in zip(largest[1:], median[1:], strict=True))


def voxels(patch: tuple[int, int, int], batch: int) -> int:
    return batch * patch[0] * patch[1] * patch[2]


@pytest.mark.parametrize(
    ("budget", "patch", "batch"),
    [
        (voxels((16, 512, 512), 2), (16, 512, 512), 2),
        (voxels((16, 512, 512), 2) - 1, (16, 496, 496), 2),
        (voxels((16, 512, 512), 5) - 1, (16, 512, 512), 4),
        (voxels((16, 512, 512), 500), (16, 512, 512), 6),
        (voxels((16, 100, 100), 2), (16, 100, 100), 2),
    ],
)
def test_choice(budget: int, patch: tuple[int, int, int], batch: int) -> None:
    assert choose_patch_and_batch(candidates((90, 512, 512)), lambda patch: 6, budget, voxels) == (patch, batch)


def test_few_estimates_are_made() -> None:
    asked = set()

    def cost(patch: tuple[int, int, int], batch: int) -> int:
        asked.add((patch, batch))
        return voxels(patch, batch)

    choose_patch_and_batch(candidates((90, 512, 512)), lambda patch: 9, voxels((16, 400, 400), 2), cost)
    assert len(asked) < 15


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match=r"smallest patch, \[16, 64, 64\] with batch 2, fits 0.0 GB: it needs 0.0 GB"):
        choose_patch_and_batch(candidates((90, 512, 512)), lambda patch: 9, 1000, voxels)
