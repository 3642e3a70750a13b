"""Names in the state dict: the stage, LoRA, stage 1's part, and what does not fit."""

import torch

from nnunetv2_dinomed3d.network_architecture.state_dict import (
    STAGE_KEY,
    encoder_state,
    is_lora,
    misfit,
    names_without_lora,
    shapes_of,
    stage1_state,
    stage_of,
    without_lora,
)
from tests.networks import nano


def test_the_stage_is_in_the_state_dict() -> None:
    network = nano()
    assert stage_of(network.state_dict()) == 2
    network.set_stage(1)
    assert stage_of(network.state_dict()) == 1
    assert stage_of({"weight": torch.zeros(1)}) is None
    assert stage_of({"network.weight": torch.zeros(1), STAGE_KEY: torch.tensor(1)}) is None, "as SwinUNETR's"
    assert stage_of({**network.state_dict(), STAGE_KEY: torch.tensor(torch.nan)}) is None, "as of a damaged file"


def test_names_without_lora_are_those_of_a_network_without_it() -> None:
    """A stage 1 of one trainer starts another's stage 2, whether or not ICE carries LoRA there."""
    plain, released = nano().encoder.ice.state_dict(), nano(lora_on_ice=True).encoder.ice.state_dict()
    assert plain.keys() != released.keys()
    assert shapes_of(without_lora(released)) == shapes_of(plain)
    assert set(names_without_lora(released).values()) == {name for name in released if not is_lora(name)}


def test_stage_1_is_encoder_head_and_stage() -> None:
    state = nano().state_dict()
    part = stage1_state(state)
    assert {name.split(".")[0] for name in part} == {"encoder", "proxy_head", "_extra_state"}
    assert not any(map(is_lora, part))
    assert encoder_state(state).keys() == nano().encoder.state_dict().keys()


def test_misfit_names_the_first_and_counts() -> None:
    expected = {"b": (2,), "a": (3, 4)}
    assert misfit(dict(expected), expected) is None
    assert misfit({"b": (2,)}, expected) == ("1 tensor does not fit: a: expected (3, 4), found no such tensor.")
    assert misfit({"b": (5,), "a": (3, 4), "c": (1,)}, expected) == (
        "2 tensors do not fit, the first is b: expected (2,), found (5,)."
    )
    assert misfit({**expected, "c": (1,)}, expected) == "1 tensor does not fit: c: expected no such tensor, found (1,)."
