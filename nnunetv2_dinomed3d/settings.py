"""The settings that environment variables make. It imports nothing heavy, so that `dinomed3d doctor` need not wait."""

import os

PREFIX = "DINOMED3D_"
WEIGHTS_VARIABLE = f"{PREFIX}WEIGHTS"
STAGE1_VARIABLE = f"{PREFIX}STAGE1"
SEED_VARIABLE = f"{PREFIX}SEED"
VARIABLES = (WEIGHTS_VARIABLE, STAGE1_VARIABLE, SEED_VARIABLE)

WEIGHTS_ENDINGS = (".pth", ".pt", ".safetensors")
"""Of the files that are looked at in a folder of weights."""

LARGEST_SEED = 2**32 - 1
"""NumPy's."""


def check_environment() -> None:
    """Refuse a misspelt setting, which would silently be ignored.

    Raises:
        ValueError: an environment variable begins as ours do, but is none of them.
    """
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in VARIABLES)
    if unknown:
        raise ValueError(
            f"{unknown[0]} is set, which is no setting. There are {', '.join(VARIABLES)}: unset or rename it."
        )


def seed_setting() -> int | None:
    """The seed that ``DINOMED3D_SEED`` gives; None if it is not set.

    Raises:
        ValueError: it is no whole number from 0 to 4294967295.
    """
    value = os.environ.get(SEED_VARIABLE, "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 20 and int(value) <= LARGEST_SEED):
        raise ValueError(f"{SEED_VARIABLE} is {value!r}: set it to a whole number, 0 to {LARGEST_SEED}, or unset it.")
    return int(value)
