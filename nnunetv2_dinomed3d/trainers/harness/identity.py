"""Identity of a checkpoint: its data set, plans, fold and trainer, and the training that wrote it."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import write_durably

RECORD = "dinomed3d.json"
"""The file in a training folder that says which training it is of."""

_OF_PLANS = ("transpose_forward", "foreground_intensity_properties_per_channel", "label_manager")
_OF_CONFIGURATION = (
    "preprocessor_name",
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "previous_stage",
)
_OF_DATASET = ("channel_names", "labels", "regions_class_order")


class ForeignCheckpointError(ValueError):
    """A checkpoint of another training."""


@dataclass(frozen=True)
class Identity:
    """Data set, configuration, fold, trainer and plans of a training.

    Attributes:
        dataset: nnU-Net's name.
        configuration: of the plans.
        fold: number or "all".
        trainer: name of the class.
        plans: checksum of that in plans and ``dataset.json`` which the network's input and output depend on.
    """

    dataset: str
    configuration: str
    fold: int | str
    trainer: str
    plans: str

    def __str__(self) -> str:
        return f"{self.dataset}, {self.configuration}, fold {self.fold}, {self.trainer}, plans {self.plans}"


def identity_of(
    plans: Mapping[str, Any], configuration: str, fold: int | str, dataset_json: Mapping[str, Any], trainer: str
) -> Identity:
    """The identity of a training, from the arguments that nnU-Net gives a trainer."""
    settings = PlansManager(dict(plans)).get_configuration(configuration).configuration
    content = [
        {name: plans.get(name) for name in _OF_PLANS},
        {name: settings.get(name) for name in _OF_CONFIGURATION},
        {name: dataset_json.get(name) for name in _OF_DATASET},
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return Identity(plans["dataset_name"], configuration, fold, trainer, digest[:12])


def identity_of_checkpoint(checkpoint: Mapping[str, Any]) -> Identity | None:
    """The identity that a checkpoint tells; None where it does not."""
    args = checkpoint["init_args"]
    with suppress(KeyError, TypeError, AttributeError):
        return identity_of(
            args["plans"], args["configuration"], args["fold"], args["dataset_json"], checkpoint["trainer_name"]
        )
    return None


# ---- one training ----


def new_record(identity: Identity, version: str) -> dict[str, Any]:
    """Record of a training that begins: its id, its start, the plugin's version, its identity."""
    started = datetime.now().isoformat(sep=" ", timespec="seconds")
    return {"id": uuid.uuid4().hex, "started": started, "version": version, **asdict(identity)}


def unmarked_record(checkpoint: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """Record of a training whose first checkpoints have none (of version 0.1): the same each time."""
    began = list(checkpoint["logging"].get("epoch_start_timestamps", ()))[:1]
    digest = hashlib.sha256(f"{identity} {began}".encode()).hexdigest()
    return {"id": digest[:32], "started": "at an unknown time", "unmarked": True, **asdict(identity)}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The folder's record; None if there is none, or none that can be read."""
    with suppress(OSError, ValueError):
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) and isinstance(content.get("id"), str) else None
    return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the folder's record as JSON. Raises OSError."""
    write_durably(folder / RECORD, json.dumps(record, indent=2) + "\n")


def record_of_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Record of the training that wrote the checkpoint; None for one of a version that wrote none."""
    record = checkpoint["init_args"].get("training")
    return record if isinstance(record, dict) else None


def require_own(
    checkpoint: Mapping[str, Any], filename: str, identity: Identity, record: Mapping[str, Any] | None
) -> None:
    """Refuse a checkpoint of another training.

    Args:
        checkpoint: as it was read.
        filename: of it.
        identity: of the training that wants it.
        record: of that training, as far as it is known.

    Raises:
        ForeignCheckpointError: it is of another data set, plans, fold or trainer, or of another training of the same.
    """
    found = identity_of_checkpoint(checkpoint)
    if found is not None and found != identity:
        raise ForeignCheckpointError(
            f"{filename} is of another training: {found}. This one is: {identity}. Move it out of the folder, or train "
            "from the beginning (without --c), which moves all that is there aside."
        )
    theirs = record_of_checkpoint(checkpoint)
    if record is None or (theirs is None and record.get("unmarked")):
        return
    if theirs is None or theirs["id"] != record["id"]:
        raise ForeignCheckpointError(
            f"{filename} is of {_describe(theirs)}, this folder of {_describe(record)}. Move it out of the folder; "
            "then --c takes what is this one's."
        )


def _describe(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "an unknown training"
    return f"the training that began {record.get('started', 'at an unknown time')} (id {record['id'][:8]})"
