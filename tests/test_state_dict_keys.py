"""Names and shapes of every state dict: checkpoints of today load for good.

`state_dict_keys.txt` holds them; ``python -m tests.test_state_dict_keys`` prints what is to stand there.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture import VARIANTS, build_dinomed3d

LIST = Path(__file__).with_name("state_dict_keys.txt")
PAPERS = (16, 512, 512)
NETWORKS: dict[str, dict] = {
    **{variant: {"variant": variant, "patch_size": PAPERS} for variant in VARIANTS},
    "nano, S = 2": {"variant": "nano", "patch_size": (16, 256, 256)},
    "nano, S = 4": {"variant": "nano", "patch_size": (16, 128, 128)},
    "nano, K = 1": {"variant": "nano", "patch_size": PAPERS, "slab_depth": 1},
    "nano, K = 4": {"variant": "nano", "patch_size": PAPERS, "slab_depth": 4},
    "nano, no detail stream": {"variant": "nano", "patch_size": PAPERS, "detail_stream": False},
    "nano, UPerNet in stage 1": {"variant": "nano", "patch_size": PAPERS, "proxy": "upernet"},
    "nano, LoRA in stage 1": {"variant": "nano", "patch_size": PAPERS, "stage1_lora": True},
    "nano, released": {
        "variant": "nano",
        "patch_size": PAPERS,
        "depth_alignment": "released",
        "lora_on_ice": True,
    },
}


def state_lines(options: dict) -> Iterator[str]:
    """A line of name and shape per tensor; of equal ViT blocks one line with their first and last number."""
    with torch.device("meta"):
        state = build_dinomed3d(in_channels=2, num_classes=3, **options).state_dict()
    found: dict[tuple, list[int]] = {}
    for name, tensor in state.items():
        before, block, after = re.fullmatch(r"(?:(.*\.blocks\.)(\d+)\.)?(.*)", name).groups()
        found.setdefault((before, after, tuple(tensor.shape)), []).append(int(block or 0))
    for (before, after, shape), blocks in found.items():
        for _, run in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
            numbers = [block for _, block in run]
            blocked = f"{before}{{{numbers[0]}..{numbers[-1]}}}." if before else ""
            yield f"{blocked}{after} {'x'.join(map(str, shape)) or 'scalar'}"


def listing() -> str:
    return "\n".join(line for name, options in NETWORKS.items() for line in (f"# {name}", *state_lines(options))) + "\n"


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_stay(name: str) -> None:
    networks = LIST.read_text().split("# ")
    (expected,) = [text for text in networks if text.startswith(f"{name}\n")]
    assert list(state_lines(NETWORKS[name])) == expected.splitlines()[1:]


if __name__ == "__main__":
    print(listing(), end="")
