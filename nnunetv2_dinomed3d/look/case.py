"""The case that is looked at, as the network gets it: nnU-Net's preprocessed one, or a raw image preprocessed now."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_dinomed3d.evaluation.dataset import folder_of

SHOWN_SLICES = 3


@dataclass(frozen=True)
class Case:
    """A preprocessed case.

    Attributes:
        name: its identifier.
        image: ``(C, d, h, w)``, float32.
        truth: labels ``(d, h, w)``; None if there are none.
    """

    name: str
    image: Tensor
    truth: np.ndarray | None


def load_case(
    case: str, dataset: str, plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> Case:
    """The case of that identifier, or of that raw image's file.

    Args:
        case: an identifier, or the path of a raw image's first channel (``..._0000.nii.gz``).
        dataset: nnU-Net's name of the data set.
        plans, configuration, dataset_json: the model's.

    Raises:
        ValueError: there is no such case.
    """
    ending = dataset_json["file_ending"]
    if os.sep in case or case.endswith(ending):
        return _raw_case(Path(case), ending, plans, configuration, dataset_json)
    folder = folder_of("nnUNet_preprocessed") / dataset / configuration.data_identifier
    if not folder.is_dir():
        raise ValueError(
            f"{folder} does not exist: preprocess the data set (nnUNetv2_plan_and_preprocess), or name the raw image's "
            f"file instead of {case!r}, such as imagesTs/{case}_0000{ending}."
        )
    dataset_class = infer_dataset_class(str(folder))
    known = sorted(dataset_class.get_identifiers(str(folder)))
    if case not in known:
        some = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        raise ValueError(
            f"There is no case {case!r} in {folder}, but {some}. Name one of them, or a raw image's file, such as "
            f"imagesTs/{case}_0000{ending}."
        )
    data, seg, *_ = dataset_class(str(folder), [case]).load_case(case)
    return Case(case, torch.from_numpy(np.array(data, np.float32)), _labels(np.array(seg)))


def _labels(seg: np.ndarray) -> np.ndarray:
    """Of nnU-Net's ``(1, d, h, w)``, in which -1 is outside of the image's content."""
    return np.maximum(seg[0], 0)


def _raw_case(
    first: Path, ending: str, plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> Case:
    """Channels lie beside the first one, labels in ``labelsTr`` beside ``imagesTr``, as nnU-Net has them."""
    if not first.name.endswith(f"_0000{ending}"):
        raise ValueError(f"{first}: name the file of the first channel, which ends with _0000{ending}.")
    name = first.name.removesuffix(f"_0000{ending}")
    count = determine_num_input_channels(plans, configuration, dataset_json)
    channels = [first.with_name(f"{name}_{i:04d}{ending}") for i in range(count)]
    for file in channels:
        if not file.is_file():
            raise ValueError(f"{file} does not exist. The model needs {count} channels, a file for each.")
    labels = first.parent.with_name(first.parent.name.replace("images", "labels")) / f"{name}{ending}"
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, seg, _ = preprocessor.run_case(
        [str(file) for file in channels], str(labels) if labels.is_file() else None, plans, configuration, dataset_json
    )
    truth = _labels(seg) if labels.is_file() else None
    return Case(name, torch.from_numpy(np.asarray(data, np.float32)), truth)


def choose_slices(wanted: list[int] | None, labels: np.ndarray) -> list[int]:
    """The wanted slices, or three spread over those with a label; if none has one, over all.

    Raises:
        ValueError: there is no such slice.
    """
    depth = len(labels)
    if wanted:
        wrong = [index for index in wanted if not 0 <= index < depth]
        if wrong:
            raise ValueError(
                f"--slices {wrong[0]}: the preprocessed case has {depth} slices, 0 to {depth - 1} along its first axis."
            )
        return wanted
    labelled = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    pool = labelled if len(labelled) else np.arange(depth)
    places = [(2 * i + 1) * len(pool) // (2 * SHOWN_SLICES) for i in range(SHOWN_SLICES)]
    return sorted({int(pool[place]) for place in places})
