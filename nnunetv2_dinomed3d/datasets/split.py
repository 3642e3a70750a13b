"""Splits by patient: the paper's 8:1:1 (section 3.1), and nnU-Net's of ACDC."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nnunetv2_dinomed3d.datasets.download import Case
from nnunetv2_dinomed3d.nnunet_files import Splits

Part = Literal["train", "val", "test"]


def eight_one_one(cases: Sequence[Case], seed: int) -> dict[str, Part]:
    """The part of each case, by its name. Tenths of the patients are rounded, and no part is empty.

    Raises:
        ValueError: there are fewer than three patients.
    """
    patients = sorted({case.patient for case in cases})
    if len(patients) < 3:
        raise ValueError(f"8:1:1 needs three patients or more, and there are {len(patients)}: use --plain")
    random.Random(seed).shuffle(patients)
    tenth = max(1, round(len(patients) / 10))
    parts: dict[str, Part] = dict.fromkeys(patients, "train")
    for number, patient in enumerate(patients[: 2 * tenth]):
        parts[patient] = "test" if number < tenth else "val"
    return {case.name: parts[case.patient] for case in cases}


def one_fold(parts: dict[str, Part]) -> Splits:
    """The content of ``splits_final.json``: training and validation cases as fold 0."""
    return [{part: sorted(name for name, its in parts.items() if its == part) for part in ("train", "val")}]


def nnunet_acdc_folds(labels: Path) -> Splits:
    """nnU-Net's five folds of ACDC, which keep both phases of a patient together.

    Args:
        labels: the folder labelsTr.
    """
    from nnunetv2.dataset_conversion.Dataset027_ACDC import create_ACDC_split

    return create_ACDC_split(str(labels))
