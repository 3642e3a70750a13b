"""A task of the Medical Segmentation Decathlon: ``dataset.json``, imagesTr, labelsTr, imagesTs."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.datasets.download import Case, Download, by_stem, stem
from nnunetv2_dinomed3d.text import join_first, printable

KEPT = ("description", "reference", "licence", "release")
"""Entries of MSD's ``dataset.json`` that nnU-Net's may have too."""


def find_msd(files: list[Path], only: str = "") -> Download:
    """The cases of a task, as its ``dataset.json`` lists them.

    Args:
        files: of the download.
        only: a word that the name of one of its labels must hold, such as "pancreas".

    Raises:
        ValueError: there is no task or several, or its ``dataset.json`` is malformed, lists a case twice or is another
            task's.
    """
    task, content = _find_task(files)
    labels = _labels(content, task / "dataset.json")
    name = re.sub(r"[^0-9A-Za-z]", "", str(content.get("name", ""))) or task.name
    if only and not any(only in label.lower() for label in labels):
        raise ValueError(
            f"{task} is MSD's {printable(name)} with labels {join_first(labels)}, not {only}: name the right data set, "
            "or convert it with: dinomed3d dataset msd"
        )
    folders = {kind: by_stem(path for path in files if path.parent == task / kind) for kind in KINDS}
    cases, broken = [], {}
    for case in _listed(content, task / "dataset.json"):
        image, label = folders["imagesTr"].get(case), folders["labelsTr"].get(case)
        if image and label:
            cases.append(Case(case, case, (image,), (label,)))
        else:
            broken[case] = "lacks " + " and ".join(
                kind for kind, there in (("its image", image), ("its labels", label)) if not there
            )
    unlisted = set(folders["imagesTr"]) - {case.name for case in cases} - set(broken)
    notes = (f"Not in dataset.json and left alone: {join_first(unlisted)}.",) if unlisted else ()
    tests = [Case(case, case, (image,), ()) for case, image in sorted(folders["imagesTs"].items())]
    origin = {key: str(content[key]) for key in KEPT if content.get(key)}
    channels = _channels(content, task / "dataset.json")
    count = content.get("numTraining")
    patients = (count,) if isinstance(count, int) else ()
    return Download(name, cases, channels, labels, tests, broken, patients, notes, origin)


KINDS = ("imagesTr", "labelsTr", "imagesTs")


def _find_task(files: list[Path]) -> tuple[Path, dict[str, Any]]:
    found = {}
    for path in files:
        if path.name == "dataset.json":
            content = read_json(path)
            if isinstance(content, dict) and isinstance(content.get("training"), list):
                found[path.parent] = content
    if not found:
        raise ValueError(
            "No task of MSD is there: its archive has a dataset.json that lists its training cases, beside imagesTr "
            "and labelsTr. Name the folder or archive as it was downloaded, such as Task07_Pancreas.tar"
        )
    if len(found) > 1:
        raise ValueError(f"Several tasks of MSD are there: {join_first(found)}. Name one of them")
    return next(iter(found.items()))


def _listed(content: dict[str, Any], source: Path) -> list[str]:
    """The training cases. Paths are not followed: only the last word of each is taken."""
    names = []
    for entry in content["training"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise ValueError(f'{source}: "training" has {printable(entry)}, not {{"image": ..., "label": ...}}')
        names.append(stem(Path(entry["image"])))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{source} lists {join_first(twice)} more than once: download it again")
    return names


def _labels(content: dict[str, Any], source: Path) -> dict[str, int]:
    """The value of each label, without background; MSD has values as names."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(key.isdigit() and isinstance(v, str) for key, v in labels.items()):
        raise ValueError(f'{source} has no labels as MSD writes them, such as {{"0": "background", "1": "tumor"}}')
    return {name: int(value) for value, name in labels.items() if int(value) != 0}


def _channels(content: dict[str, Any], source: Path) -> tuple[str, ...]:
    modality = content.get("modality")
    if not isinstance(modality, dict) or not modality:
        raise ValueError(f'{source} has no modality as MSD writes it, such as {{"0": "CT"}}')
    return tuple(str(modality[key]) for key in sorted(modality, key=lambda key: (len(key), key)))
