"""Figures of the paper's tables: DINO-Med3D (MICCAI 2026), Tables 1 to 3. Dice (DSC) in percent, HD95 as printed."""

from typing import NamedTuple

from nnunetv2_dinomed3d.trainer_names import BASELINE, DINOMED3D, TABLES

DATASETS = {
    "aisd": "AISD",
    "msd-pancreas": "MSD-Pancreas",
    "msd-colon": "MSD-Colon",
    "brats2020": "BraTS 2020",
    "acdc": "ACDC",
}
"""Names of `dinomed3d dataset` -> the paper's (section 3.1)."""


class PaperFigure(NamedTuple):
    """A cell of the paper's tables.

    Attributes:
        dsc: Dice in percent.
        hd95: None where the table has Dice alone.
    """

    dsc: float
    hd95: float | None = None


METHODS = {
    "nnUNetTrainer_100epochs": "nnU-Net",
    f"{BASELINE}_nnFormer": "nnFormer",
    f"{BASELINE}_SwinUNETR": "SwinUNETR",
    f"{BASELINE}_UMambaEnc": "U-Mamba",
    f"{BASELINE}_VoCo_L": "VoCo (Swin-L)",
    f"{BASELINE}_VoCo_L_v1": "VoCo (Swin-L)",
    f"{BASELINE}_DinoUNet_L": "Dino U-Net",
    f"{DINOMED3D}_S": "DINO-Med3D-S",
    DINOMED3D: "DINO-Med3D-B",
    f"{DINOMED3D}_L": "DINO-Med3D-L",
}
"""Trainer -> row of Table 1."""

_TABLE1 = {  # DSC and HD95 of each data set, in the order of DATASETS; then millions of parameters
    "nnU-Net": (47.44, 57.09, 56.93, 6.93, 38.13, 34.44, 88.73, 3.62, 88.63, 1.57, 31),
    "nnFormer": (34.87, 107.75, 54.42, 10.83, 50.68, 68.91, 87.31, 24.40, 75.77, 6.03, 150),
    "SwinUNETR": (42.73, 45.91, 51.85, 20.51, 20.84, 79.12, 88.76, 7.38, 85.96, 3.64, 62),
    "U-Mamba": (41.92, 62.82, 53.00, 14.62, 32.33, 64.20, 89.61, 3.30, 87.70, 1.32, 43),
    "VoCo (Swin-L)": (43.99, 39.26, 51.37, 33.72, 33.51, 60.68, 89.19, 9.26, 85.57, 6.56, 248),
    "Dino U-Net": (48.19, 56.79, 48.25, 14.01, 31.26, 91.51, 89.09, 5.38, 91.19, 1.17, 318),
    "DINO-Med3D-S": (51.86, 51.76, 58.58, 9.36, 47.08, 50.36, 89.96, 2.18, 88.81, 1.12, 47),
    "DINO-Med3D-B": (52.72, 49.75, 59.50, 7.08, 53.28, 34.61, 90.44, 2.34, 90.82, 0.91, 112),
    "DINO-Med3D-L": (53.85, 44.23, 61.20, 6.40, 62.28, 27.70, 90.27, 2.06, 91.52, 0.86, 334),
}

_ABLATED = ("msd-pancreas", "msd-colon", "brats2020")
"""The data sets of Tables 2 and 3."""

_TABLE2 = dict(  # DSC for K = 1 to 5
    zip(
        TABLES["TABLE2"],
        [
            (54.97, 44.26, 89.66),
            (55.97, 51.99, 90.01),
            (59.50, 53.28, 90.44),
            (58.79, 47.53, 89.69),
            (58.72, 33.10, 90.20),
        ],
        strict=True,
    )
)
_TABLE3 = dict(  # DSC of the rows, in the table's order
    zip(
        TABLES["TABLE3"],
        [
            (28.60, 17.38, 78.46),
            (54.63, 43.11, 89.16),
            (57.00, 44.93, 89.91),
            (59.50, 53.28, 90.44),
            (54.78, 45.96, 90.19),
            (57.42, 47.95, 90.39),
        ],
        strict=True,
    )
)


def paper_figure(table: str, trainer: str, dataset: str) -> PaperFigure | None:
    """The paper's figure of a trainer on a data set; None if the table has none.

    Args:
        table: such as ``TABLE1``.
        trainer: a row of `TABLES`.
        dataset: a key of `DATASETS`.
    """
    if table == "TABLE1":
        column = 2 * list(DATASETS).index(dataset)
        dsc, hd95 = _TABLE1[METHODS[trainer]][column : column + 2]
        return PaperFigure(dsc, hd95)
    rows = {"TABLE2": _TABLE2, "TABLE3": _TABLE3}[table]
    return PaperFigure(rows[trainer][_ABLATED.index(dataset)]) if dataset in _ABLATED else None


def paper_parameters(trainer: str) -> float | None:
    """Millions of parameters, as Table 1 says; None for a trainer that is no row of it."""
    return float(_TABLE1[METHODS[trainer]][-1]) if trainer in METHODS else None
