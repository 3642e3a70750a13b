"""Checks of a user's data set, folder and split, before training starts."""

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist

from nnunetv2_dinomed3d.dataset_json import DatasetJson, parse_dataset_json, read_json
from nnunetv2_dinomed3d.text import join_first, printable

AGAIN = "preprocess again (nnUNetv2_preprocess)"


# ---- plans and dataset.json ----


def require_axes(plans: dict, configuration: str, axes: Collection[int] = (3,)) -> None:
    """Refuse a configuration that is not there, or whose patch has not as many axes as the network takes.

    Raises:
        ValueError: either of them.
    """
    takes_volumes = 3 in axes
    kind, name = ("3D", "3d_fullres") if takes_volumes else ("2D", "2d")
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"The plans have no configuration {configuration!r}, but {', '.join(plans['configurations'])}. Train one "
            f"that is {kind}; if there is none, plan it: nnUNetv2_plan_and_preprocess -d DATASET -c {name}."
        )
    patch_size = PlansManager(plans).get_configuration(configuration).patch_size
    if len(patch_size) in axes:
        return
    input_ = "volumes" if takes_volumes else "slices"
    others = "3d_fullres, 3d_lowres or 3d_cascade_fullres" if takes_volumes else "2d"
    raise ValueError(
        f"Configuration {configuration!r} has the patch size {list(patch_size)}: it is {len(patch_size)}D, and this "
        f"network takes {input_}. Train {others}."
    )


def check_dataset_json(content: Any, configuration: ConfigurationManager) -> None:
    """Refuse a ``dataset.json`` that nnU-Net or the loss would stumble over.

    Raises:
        ValueError: it is malformed, its values have gaps, or it has other channels than the plans.
    """
    found = parse_dataset_json(content, "dataset.json")
    _check_values(found, content)
    schemes = configuration.normalization_schemes
    if found.channels and len(found.channels) != len(schemes):
        raise ValueError(
            f"dataset.json names {len(found.channels)} channels ({', '.join(found.channels)}), the plans have "
            f"{len(schemes)}: one of them was changed since. Plan and preprocess again "
            "(nnUNetv2_plan_and_preprocess)."
        )


def _check_values(found: DatasetJson, content: Mapping) -> None:
    values = sorted(found.values)
    if any(len(group) > 1 for group in found.labels.values()):  # nnU-Net's regions
        order = content.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(found.labels):
            raise ValueError(
                f"dataset.json has {len(found.labels)} regions, so regions_class_order must be a list of as many "
                f"values; it is {order!r}."
            )
    elif values != list(range(len(values))):
        missing = next(i for i, value in enumerate(values) if value != i)
        raise ValueError(
            f"dataset.json: the labels have the values {', '.join(map(str, values))}, without {missing}: nnU-Net "
            "trains on consecutive ones. Renumber them in dataset.json and the label maps, and preprocess again."
        )
    if found.ignore is not None and found.ignore != values[-1] + 1:
        raise ValueError(
            f"dataset.json: the ignore label is {found.ignore}, but must follow the last label: {values[-1] + 1}."
        )


# ---- the folder and the split ----


def check_folder(folder: Path) -> None:
    """Refuse a folder of preprocessed cases that nnU-Net cannot read, or would take other files' names for cases in.

    Raises:
        ValueError: it is not there or empty, or has files that are not nnU-Net's.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    kinds = {ending: [n for n in names if n.endswith(ending)] for ending in (".b2nd", ".npz")}
    if not any(kinds.values()):
        raise ValueError(f"{folder} holds no preprocessed case: preprocess first (nnUNetv2_preprocess).")
    own = (".pkl", ".npy", ".b2nd" if kinds[".b2nd"] else ".npz")
    foreign = [name for name in names if name.startswith(".") or not name.endswith(own)]
    if foreign:
        raise ValueError(
            f"{folder} holds {printable(foreign[0])!r}, which is none of nnU-Net's files of cases ({', '.join(own)}): "
            "nnU-Net would take it for one, or stop. Move it away."
        )


def check_split(file: Path, fold: int, cases: Collection[str]) -> list[str]:
    """Refuse a ``splits_final.json`` that nnU-Net cannot train on.

    Args:
        file: need not be there; nnU-Net then makes one.
        fold: that is to be trained.
        cases: that are preprocessed.

    Returns:
        Warnings.

    Raises:
        ValueError: it is malformed, or the fold is: no such fold, an unknown case, nothing to train or validate on.
    """
    if fold < 0:
        raise ValueError(f"There is no fold {fold}: folds count from 0.")
    if not file.exists():
        return []
    splits = read_json(file)
    form = 'a list with {"train": [names of cases], "val": [names of cases]} for each fold'
    if not isinstance(splits, list) or not splits:
        raise ValueError(f"{file} is not {form}. Correct it, or remove it and nnU-Net makes a new one.")
    if fold >= len(splits):
        folds = "has only fold 0" if len(splits) == 1 else f"has only folds 0 to {len(splits) - 1}"
        return [
            f"{file.name} {folds}: for fold {fold} nnU-Net draws a random fifth of all cases to validate on, which are "
            "cases of the other folds too. Results of such a fold cannot be pooled with theirs"
        ]
    split = splits[fold]
    for part in ("train", "val"):
        names = split.get(part) if isinstance(split, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{file}: fold {fold} has no list {part!r} of names. The file is {form}. Correct it.")
        if not names:
            what = "training" if part == "train" else "validation"
            raise ValueError(f"{file}: fold {fold} has no {what} case (its list {part!r} is empty). Add some.")
        unknown = [name for name in names if name not in cases]
        if unknown:
            raise ValueError(
                f"{join_first(unknown)}: not preprocessed, but named by {file} (fold {fold}, {part!r}). Correct the "
                f"names, or {AGAIN}."
            )
    shared = sorted(set(split["train"]) & set(split["val"]))
    if not shared:
        return []
    return [
        f"{join_first(shared)}: in the training and the validation cases of fold {fold} of {file.name}. The validation "
        "will look better than the model is"
    ]


# ---- several GPUs ----


def once(look: Callable[[], None]) -> None:
    """Look on rank 0 alone, which the others wait for, however long it takes; what is wrong ends all ranks.

    Raises:
        ValueError: rank 0 raised anything.
    """
    if not (dist.is_available() and dist.is_initialized()):
        look()
        return
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))  # NCCL's gives up after 10 minutes
    found: list[Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            look()
        except Exception as error:
            found = [error]
    told = [str(found[0]) if found[0] else None]
    dist.broadcast_object_list(told, src=0, group=group)
    dist.destroy_process_group(group)
    if found[0]:
        raise found[0]
    if told[0] is not None:
        raise ValueError(told[0])
