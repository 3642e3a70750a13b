"""BraTS 2020's training data: a folder for each patient with four modalities and the labels."""

import re
from pathlib import Path

from nnunetv2_dinomed3d.datasets.download import Case, Download, is_nifti, stem

MODALITIES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "Flair"}
"""Ends of files' names, and the channels in the order of nnU-Net's converter."""
PATIENTS = 369
LABELS = {"edema": 1, "necrosis": 2, "enhancing": 3}
"""Values after `CONSECUTIVE`, with which 4 becomes 3, as in nnU-Net's converter."""
CONSECUTIVE = {0: 0, 2: 1, 1: 2, 4: 3}
REGIONS = {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}


def find_brats(files: list[Path]) -> Download:
    """The patients of BraTS 2020, by the names of their folders.

    In one of them the labels have another name (``W39_1998.09.19_Segm.nii``): a file that ends with ``_Segm`` is taken
    where there is none that ends with ``_seg``.

    Raises:
        ValueError: there is none, or a patient or file is there twice.
    """
    folders: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        name = next((part for part in path.parts[:-1][::-1] if re.fullmatch(r"BraTS20_Training_\d+", part)), None)
        if name and is_nifti(path):
            folders.setdefault(name, {}).setdefault(stem(path).rpartition("_")[2].lower(), []).append(path)
    if not folders:
        raise ValueError(
            "No patient of BraTS 2020 is there: folders such as BraTS20_Training_001 with files such as "
            "BraTS20_Training_001_flair.nii. Name MICCAI_BraTS2020_TrainingData or its archive"
        )
    cases, broken, renamed = [], {}, []
    for name, found in sorted(folders.items()):
        if "seg" not in found and "segm" in found:
            found["seg"] = found["segm"]
            renamed.append(name)
        if twice := [kind for kind in (*MODALITIES, "seg") if len(found.get(kind, [])) > 1]:
            where = ", ".join(map(str, found[twice[0]][:2]))
            raise ValueError(f"{name} is there {len(found[twice[0]])} times: {where}. Keep one of them")
        if lacks := [kind for kind in (*MODALITIES, "seg") if kind not in found]:
            broken[name] = f"lacks {' and '.join(lacks)}"
        else:
            cases.append(Case(name, name, tuple(found[kind][0] for kind in MODALITIES), (found["seg"][0],)))
    numbers = {int(name.rpartition("_")[2]): name for name in folders}
    for number in set(range(1, PATIENTS + 1)) - set(numbers):
        broken[f"BraTS20_Training_{number:03d}"] = "is not there"
    notes = [f"The labels of {name} have another name: {folders[name]['seg'][0].name}." for name in renamed]
    if len(cases) == PATIENTS:
        notes.append(
            f"The paper has 368 of these {PATIENTS} patients and does not say which one it leaves out (perhaps "
            "BraTS20_Training_355, whose labels have another name): --leave-out leaves one out."
        )
    return Download(
        "BraTS2020", cases, tuple(MODALITIES.values()), LABELS, [], broken, (PATIENTS, 368), tuple(notes), ORIGIN
    )


ORIGIN = {"reference": "https://www.med.upenn.edu/cbica/brats2020/data.html"}
