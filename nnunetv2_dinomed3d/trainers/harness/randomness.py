"""The random numbers of a training: seeded on request, saved with it, taken up again where it goes on."""

import random
import zlib
from typing import Any

import numpy as np
import torch


def derived_seed(*numbers: int) -> int:
    """A seed of its own for each row of numbers, from 0 to `settings.LARGEST_SEED`."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, on the CPU and on all GPUs."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all generators that training draws from, as plain numbers and tensors on the CPU.

    Such a dict is read by PyTorch's unpickler that runs no code, of any version.
    """
    version, state, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    states: dict[str, Any] = {
        "python": {"version": version, "state": list(state), "gauss": gauss},
        "numpy": {
            "bit_generator": str(numpy_state["bit_generator"]),
            "key": [int(word) for word in numpy_state["state"]["key"]],
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Any], device: torch.device, rank: int = 0) -> None:
    """Go on with what `random_states` gave.

    Args:
        states: of rank 0, the only one that is saved.
        device: that training runs on; its generator is left alone where the states are of another kind of device.
        rank: under DDP. All but rank 0 are seeded anew, each in its own way, so that no two draw the same.
    """
    if rank:
        seed_all(derived_seed(zlib.crc32(states["torch"].numpy().tobytes()), rank))
        return
    python, numbers = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["state"]), python["gauss"]))
    np.random.set_state(
        {
            "bit_generator": numbers["bit_generator"],
            "state": {"key": np.array(numbers["key"], dtype=np.uint32), "pos": numbers["pos"]},
            "has_gauss": numbers["has_gauss"],
            "gauss": numbers["gauss"],
        }
    )
    torch.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
