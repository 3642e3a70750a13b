"""The sizes of the network, and the factory."""

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture import VARIANTS, NetworkOptions, build_dinomed3d


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants(variant: str) -> None:
    width, depth = {
        "nano": (96, 4),
        "tiny": (192, 12),
        "small": (384, 12),
        "small_plus": (384, 12),
        "base": (768, 12),
        "large": (1024, 24),
        "huge_plus": (1280, 32),
    }[variant]
    with torch.device("meta"):
        network = build_dinomed3d(variant, 1, 2, (16, 128, 128)).to("meta")  # timm computes RoPE's periods on the CPU
    assert (network.encoder.embed_dim, len(network.encoder.vit.blocks)) == (width, depth)
    assert network.encoder.feature_blocks == [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1]
    for stage in (1, 2):
        network.set_stage(stage)
        assert network(torch.empty(1, 1, 16, 128, 128, device="meta")).shape == (1, 2, 16, 128, 128)
    shapes = network.pretrained_shapes()
    assert shapes["patch_embed.proj.weight"] == (width, 3, 16, 16)
    assert not any("lora" in name or "base_layer" in name for name in shapes)


def test_options_come_whole_or_one_by_one() -> None:
    """Notebooks pass keyword arguments, trainers an object."""
    options = NetworkOptions(slab_depth=5, detail_stream=False)
    with torch.device("meta"):
        whole = build_dinomed3d("nano", 1, 2, (4, 32, 32), options)
        single = build_dinomed3d("nano", 1, 2, (4, 32, 32), slab_depth=5, detail_stream=False)
        changed = build_dinomed3d("nano", 1, 2, (4, 32, 32), options, slab_depth=1)
    assert whole.options == single.options == options
    assert changed.options == NetworkOptions(slab_depth=1, detail_stream=False)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="slab_dept"):
        build_dinomed3d("nano", 1, 2, (4, 32, 32), slab_dept=5)
