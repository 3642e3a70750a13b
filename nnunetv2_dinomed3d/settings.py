"""The settings that environment variables make. It imports nothing heavy, so that `dinomed3d doctor` need not wait."""

import os

PREFIX = "DINOMED3D_"
WEIGHTS_VARIABLE = f"{PREFIX}WEIGHTS"
STAGE1_VARIABLE = f"{PREFIX}STAGE1"
SEED_VARIABLE = f"{PREFIX}SEED"
VARIABLES = (WEIGHTS_VARIABLE, STAGE1_VARIABLE, SEED_VARIABLE)


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
