"""Names of trainers that commands know without importing them: the rows of the paper's tables, and what they share."""

from collections.abc import Sequence

DINOMED3D = "nnUNetTrainerDINOMed3D"
BASELINE = "nnUNetTrainerBaseline"

TABLES = {
    "TABLE1": [
        "nnUNetTrainer_100epochs",
        f"{BASELINE}_nnFormer",
        f"{BASELINE}_SwinUNETR",
        f"{BASELINE}_UMambaEnc",
        f"{BASELINE}_VoCo_L",
        f"{BASELINE}_VoCo_L_v1",
        f"{BASELINE}_DinoUNet_L",
        f"{DINOMED3D}_S",
        DINOMED3D,
        f"{DINOMED3D}_L",
    ],
    "TABLE2": [f"{DINOMED3D}_K1", f"{DINOMED3D}_K2", DINOMED3D, f"{DINOMED3D}_K4", f"{DINOMED3D}_K5"],
    "TABLE3": [
        f"{DINOMED3D}_frozen",
        f"{DINOMED3D}_stage1",
        f"{DINOMED3D}_noDetail",
        DINOMED3D,
        f"{DINOMED3D}_noStage1",
        f"{DINOMED3D}_UPerNetProxy",
    ],
}
"""Rows of the paper's tables, in their order. Table 1's row VoCo is two trainers: its official network, and the one
that has as many parameters as the paper says."""

REQUIRE_SWIN_WEIGHTS = ("VoCo_B", "VoCo_L", "VoCo_L_v1")
"""Baselines that are nothing without weights of self-supervised training."""

SWIN_NETWORKS = ("SwinUNETR", *REQUIRE_SWIN_WEIGHTS)

BASELINE_PACKAGES = {"monai": SWIN_NETWORKS}
"""Packages of the extra ``[baselines]``, and the baselines that need them."""

VOLUMES, SLICES = "3d_fullres", "2d"

OF_SLICES = f"{BASELINE}_DinoUNet"
"""Beginning of the names of trainers whose network is 2D."""

TRAINS_NO_STAGE1 = ("_noStage1", "_frozen")
STAGE1_ALONE = "_stage1"
SAME_STAGE1 = (STAGE1_ALONE, "_noDetail")
"""Suffixes that change stage 2 only."""


def expanded(names: Sequence[str]) -> list[str]:
    """The names, with those of a table's rows in the place of its name; a row that is there already is left out.

    Raises:
        ValueError: the paper has no such table.
    """
    found: list[str] = []
    for name in names:
        rows = TABLES.get(name.upper())
        if rows is None and name.upper().startswith("TABLE"):
            raise ValueError(f"-tr {name}: there is no such table; there are {', '.join(TABLES)}.")
        found += [name] if rows is None else [row for row in rows if row not in found]
    return found


def takes_slices(trainer: str) -> bool:
    """Whether the trainer's network is 2D, for nnU-Net's configuration ``2d``."""
    return trainer.startswith(OF_SLICES)


def stage1_of(trainer: str) -> str | None:
    """A name that trainers share if their stage 1 is the same; None for a trainer that trains none."""
    if not trainer.startswith(DINOMED3D) or any(suffix in trainer for suffix in TRAINS_NO_STAGE1):
        return None
    for suffix in SAME_STAGE1:
        trainer = trainer.replace(suffix, "")
    return trainer
