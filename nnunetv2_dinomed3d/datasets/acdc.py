"""ACDC: a folder for each patient with the heart at the end of diastole and of systole, and a film."""

import re
from pathlib import Path

from nnunetv2_dinomed3d.datasets.download import Case, Download, by_stem

PATIENTS = 100
LABELS = {"RV": 1, "MLV": 2, "LVC": 3}
"""Names of nnU-Net's converter: right ventricle, myocardium and cavity of the left one."""


def find_acdc(files: list[Path]) -> Download:
    """Both phases of every patient. Patients after number 100 are the test set; the films (``_4d``) are left alone.

    Raises:
        ValueError: there is none, or a file is there twice.
    """
    found = by_stem(path for path in files if "_4d" not in path.name)
    frames = {name: match for name in found if (match := re.fullmatch(r"(patient(\d{3}))_frame\d\d", name))}
    if not frames:
        raise ValueError(
            "No patient of ACDC is there: files such as patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz. "
            "Name the folder or archive as it was downloaded"
        )
    cases, tests, broken = [], [], {}
    for name, match in sorted(frames.items()):
        if int(match[2]) > PATIENTS:
            tests.append(Case(name, match[1], (found[name],), ()))
        elif f"{name}_gt" in found:
            cases.append(Case(name, match[1], (found[name],), (found[f"{name}_gt"],)))
        else:
            broken[match[1]] = f"lacks {name}_gt"
    for name in found:
        if (match := re.fullmatch(r"((patient\d{3})_frame\d\d)_gt", name)) and match[1] not in frames:
            broken[match[2]] = f"lacks {match[1]}"
    for number in range(1, PATIENTS + 1):
        patient = f"patient{number:03d}"
        phases = [case.name for case in cases if case.patient == patient]
        if len(phases) != 2 and patient not in broken:
            broken[patient] = f"has {len(phases)} phases of 2" if phases else "is not there"
    cases = [case for case in cases if case.patient not in broken]
    origin = {"reference": "https://www.creatis.insa-lyon.fr/Challenge/acdc"}
    return Download("ACDC", cases, ("cineMRI",), LABELS, tests, broken, (PATIENTS,), (), origin)
