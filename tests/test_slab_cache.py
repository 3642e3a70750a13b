"""Slabs that nnU-Net's sliding windows share are encoded once, for the same prediction."""

from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.efficiency.slab_cache import SlabCache

PATCH = (8, 32, 32)
MIRRORINGS = 8


def network(**options: Any) -> DINOMed3D:
    torch.manual_seed(0)
    return build_dinomed3d("nano", 1, 2, PATCH, **options).eval()


def predictor_of(network: DINOMed3D) -> nnUNetPredictor:
    manager = PlansManager({"configurations": {"3d_fullres": {"patch_size": list(PATCH), "architecture": {}}}})
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    configuration = manager.get_configuration("3d_fullres")
    labels = {"labels": {"background": 0, "organ": 1}}
    predictor.manual_initialization(network, manager, configuration, None, labels, "", (0, 1, 2))
    return predictor


def test_windows_share_slabs() -> None:
    """16 slices in windows of 8 at 0, 4 and 8: of the four that two share, the two at ends have other neighbours."""
    ours = network()
    predictor = predictor_of(ours)
    case = torch.randn(1, 16, 32, 32)
    expected = predictor.predict_sliding_window_return_logits(case)
    with ours.cached_slab_features() as cache:
        logits = predictor.predict_sliding_window_return_logits(case)
    assert cache.encoded == MIRRORINGS * (8 + 2 * (8 - 2))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)  # nnU-Net adds them up in float16
    assert torch.equal(predictor.predict_sliding_window_return_logits(case), expected)


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4])
@pytest.mark.parametrize("in_channels", [1, 2])
def test_maps_are_those_without_it(slab_depth: int, in_channels: int) -> None:
    torch.manual_seed(0)
    ours = build_dinomed3d("nano", in_channels, 2, PATCH, slab_depth=slab_depth).eval()
    volume = torch.randn(2, in_channels, 9, 32, 32)
    volume[0, :, 4] = 0
    with torch.no_grad():
        expected = [ours.encoder(volume[:, :, start : start + 6]) for start in (0, 3)]
        with ours.cached_slab_features() as cache:
            for start, maps in zip((0, 3), expected, strict=True):
                for got, wanted in zip(ours.encoder(volume[:, :, start : start + 6]), maps, strict=True):
                    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    shared = max(0, 3 - (slab_depth - 1))  # whole slabs within three slices
    assert cache.encoded == 2 * (12 - shared)


def test_one_voxel_makes_another_slab() -> None:
    x = torch.randn(1, 1, 4, 16, 16)
    other = x.clone()
    other[0, 0, 2, 7, 7] = torch.nextafter(other[0, 0, 2, 7, 7], torch.tensor(9.0))
    cache = SlabCache()
    same = [a == b for a, b in zip(cache.slab_keys(x, 1, True), cache.slab_keys(other, 1, True), strict=True)]
    assert same == [True, True, False, True]
    assert cache.slab_keys(x, 3, False)[0] == cache.slab_keys(x, 3, True)[1]
    assert cache.slab_keys(x.transpose(3, 4), 1, True)[0] != cache.slab_keys(x, 1, True)[0]


def test_the_limit_drops_what_was_met_longest_ago() -> None:
    cache = SlabCache(limit=2 * 4 * 3)  # two maps of three float32
    encoded = []

    def encode(slices: torch.Tensor) -> list[torch.Tensor]:
        encoded.extend(slices[:, 0].tolist())
        return [slices * 2]

    def get(*values: float) -> None:
        slices = torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, 3)
        assert torch.equal(cache.encode(values, slices, encode)[0], slices * 2)

    get(1, 2, 1)
    get(1)
    get(3)  # 2 is dropped
    get(1, 3)
    assert sorted(encoded) == [1, 2, 3]
    get(2)
    assert encoded[-1] == 2


def test_training_and_gradients_pass_it_by() -> None:
    ours = network()
    x = torch.randn(1, 1, 4, 32, 32)
    with ours.cached_slab_features() as cache:
        ours(x).sum().backward()
        ours.train()(x)
    assert cache.encoded == 0
