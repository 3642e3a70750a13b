"""Passes of windows: which run together, in which order, and that their sums are nnU-Net's to the last bit."""

from collections.abc import Sequence

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture import build_dinomed3d
from nnunetv2_dinomed3d.prediction.rolling import RollingLogits
from nnunetv2_dinomed3d.prediction.windows import Sweep, layers_of, mirrorings, windows_at_once

CPU = torch.device("cpu")


class Elementwise(nn.Module):
    """Two logits of a voxel, and a note of the batches. It does not round differently in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        place = torch.arange(x.shape[-1]) / 7  # so that a mirrored window differs
        return torch.cat([x * 3 + place, x.square() - place], 1)


def nnunets(network: nn.Module, patch: Sequence[int], axes: Sequence[int] | None) -> nnUNetPredictor:
    manager = PlansManager({"configurations": {"c": {"patch_size": list(patch), "architecture": {}}}})
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    labels = {"labels": {"background": 0, "organ": 1}}
    predictor.manual_initialization(network, manager, manager.get_configuration("c"), None, labels, "", axes)
    return predictor


def sweep(
    predictor: nnUNetPredictor, image: Tensor, patch: Sequence[int], axes: Sequence[int] | None, **options: int | None
) -> Tensor:
    """The case's logits by our sweep, put together from the rows."""
    rows: list[Tensor] = []

    def give(first: int, logits: Tensor) -> None:
        assert first == sum(part.shape[1] for part in rows)
        rows.append(logits.clone())

    gaussian = compute_gaussian(tuple(patch), sigma_scale=1 / 8, value_scaling_factor=10, device=CPU)
    depth = patch[0] if len(patch) == 3 else 1
    inside = (slice(0, image.shape[1]), slice(0, image.shape[2]), slice(0, image.shape[3]))
    sums = RollingLogits(2, depth, (image.shape[2], image.shape[3]), inside, give, CPU)
    layers = layers_of(predictor._internal_get_sliding_window_slicers(image.shape[1:]))
    with torch.inference_mode():
        Sweep(mirrorings(axes), gaussian, CPU, **options).run(predictor.network, image, layers, sums)  # type: ignore[arg-type]
    return torch.cat(rows, 1)


@pytest.mark.parametrize("patch", [(4, 6, 6), (6, 6)], ids=str)
@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("waiting_bytes", [None, 0, 10_000, 10**9])
@pytest.mark.parametrize("batch", [1, 3])
def test_sums_are_nnunets(patch: tuple[int, ...], mirrored: bool, waiting_bytes: int | None, batch: int) -> None:
    axes = tuple(range(len(patch))) if mirrored else None
    predictor = nnunets(Elementwise(), patch, axes)
    image = torch.randn(1, 11, 13, 8, generator=torch.manual_seed(0))
    expected = predictor.predict_sliding_window_return_logits(image)
    found = sweep(predictor, image, patch, axes, batch=batch, waiting_bytes=waiting_bytes)
    assert found.dtype == torch.half
    assert torch.equal(found, expected)


def test_small_windows_run_in_batches() -> None:
    assert [windows_at_once(patch) for patch in ((16, 32, 32), (40, 56, 40), (64, 96, 96), (512, 512), (8, 8))] == [
        8,
        2,
        1,
        1,
        8,
    ]
    network = Elementwise()
    sweep(nnunets(network, (4, 6, 6), None), torch.randn(1, 4, 12, 6), (4, 6, 6), None, batch=2)
    assert network.batches == [2, 1]


def test_slabs_are_encoded_once() -> None:
    """With memory for waiting logits, or for the slabs of all mirrored forms; of two windows the whole slabs alone."""
    torch.manual_seed(0)
    patch, axes = (8, 32, 32), (1,)
    network = build_dinomed3d("nano", 1, 2, patch).eval()
    image = torch.randn(1, 16, 32, 32)

    def encoded(limit: int, waiting_bytes: int | None) -> int:
        with network.cached_slab_features(limit) as cache:
            sweep(nnunets(network, patch, axes), image, patch, axes, batch=2, waiting_bytes=waiting_bytes)
        return cache.encoded

    once, windows = 2 * (8 + 2 * (8 - 2)), 2 * 3 * 8
    slab = 4 * network.encoder.embed_dim * 8 * 8 * 4  # four maps of 8 x 8 tokens, float32
    assert encoded(limit=10**9, waiting_bytes=0) == once
    assert encoded(limit=8 * slab, waiting_bytes=10**9) == once
    assert once < encoded(limit=8 * slab, waiting_bytes=None) <= windows


def test_rows_are_given_out_as_soon_as_no_window_reaches_them() -> None:
    given: list[tuple[int, int]] = []
    inside = (slice(1, 9), slice(0, 2), slice(0, 2))
    sums = RollingLogits(1, 4, (2, 2), inside, lambda first, rows: given.append((first, rows.shape[1])), CPU)
    plane = (slice(0, 2), slice(0, 2))
    for row in (0, 3, 6):
        sums.finish(row)
        sums.add(row, plane, torch.ones(1, 4, 2, 2), torch.ones(4, 2, 2, dtype=torch.half))
    sums.finish(10)
    assert given == [(0, 2), (2, 3), (5, 3)]


def test_infinite_logits_are_refused() -> None:
    inside = (slice(0, 2), slice(0, 2), slice(0, 2))
    sums = RollingLogits(1, 2, (2, 2), inside, lambda first, rows: None, CPU)
    huge = torch.full((1, 2, 2, 2), 1e6)
    sums.add(0, (slice(0, 2), slice(0, 2)), huge, torch.ones(2, 2, 2, dtype=torch.half))
    with pytest.raises(RuntimeError, match="infinite"):
        sums.finish(2)
