"""The network's options: the paper's by default, checked, taken from a trainer."""

from dataclasses import replace
from typing import Any, cast

import pytest

from nnunetv2_dinomed3d.network_architecture import NetworkOptions


class Owner:
    slab_depth = 5
    depth_alignment = "released"
    rope_rescale = None
    rope_rescale_frozen = True
    lora_on_ice = True
    train_encoder = False
    stage1_lora = False
    proxy = "upernet"
    detail_stream = False
    mixed_precision = False
    another = 1


@pytest.mark.parametrize("owner", [Owner, Owner()])
def test_all_are_taken_from_attributes(owner: object) -> None:
    """A trainer's class attribute that never reaches the network would be ignored without a word."""
    options = NetworkOptions.of(owner)
    assert {
        name: value for name, value in vars(Owner).items() if not name.startswith("_") and name != "another"
    } == vars(options)


@pytest.mark.parametrize(
    ("name", "message"),
    [("proxy", "proxy is 'mlp'; it is 'linear' or 'upernet'"), ("depth_alignment", "'exact' or 'released'")],
)
def test_a_wrong_value_is_told(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NetworkOptions(), **cast(Any, {name: "mlp"}))


def test_lora_in_an_encoder_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="stage1_lora is True and train_encoder is False"):
        NetworkOptions(stage1_lora=True, train_encoder=False)
