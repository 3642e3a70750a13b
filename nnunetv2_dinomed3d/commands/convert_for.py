"""``dinomed3d convert --for``: a checkpoint for ``-pretrained_weights`` on a data set that its network does not fit."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_dinomed3d.nnunet_files import dataset_name, find_dataset_json, preprocessed_folder
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.written import written_whole

if TYPE_CHECKING:
    from nnunetv2_dinomed3d.planning.planned_network import PlannedNetwork
    from nnunetv2_dinomed3d.weights.adaptation import Adaptation, Entry, Target, Trained

NOT_A_TRAINING = (
    "--for takes a checkpoint_*.pth of a training, or what `dinomed3d convert` made of a checkpoint of the authors."
)
SHOWN = 6
"""Most names that are printed of tensors with the same fate and reason."""


@dataclass(frozen=True)
class NextTraining:
    """The training that shall start from a checkpoint.

    Attributes:
        dataset: number or name of nnU-Net's data set.
        configuration, plans: of its plans.
        trainer: name of the trainer.
    """

    dataset: str
    configuration: str
    plans: str
    trainer: str

    def command(self, file: Path) -> str:
        """nnU-Net's command that starts it, on fold 0."""
        words = ["nnUNetv2_train", self.dataset, self.configuration, "0", "-tr", self.trainer, "-p", self.plans]
        return shlex.join([*words, "-pretrained_weights", str(file)])


def convert_for(source: Path, out: Path, training: NextTraining) -> None:
    """Write the checkpoint, and print what became of each tensor.

    Args:
        source: a checkpoint of a training.
        out: the file to write; there is none yet.
        training: that shall start from it.

    Raises:
        ValueError: the checkpoint is none, or of another network; data set, plans or trainer are not there; or the file
            cannot be written.
    """
    dataset = dataset_name(training.dataset)
    plans_file = preprocessed_folder(dataset) / f"{training.plans}.json"
    if not plans_file.exists():
        raise ValueError(
            f"{plans_file} does not exist: the network follows from the plans. Name others with -p, or make them: "
            f"nnUNetv2_plan_and_preprocess -d {training.dataset}"
        )
    with written_whole(out) as path:
        # imported after the first checks, as PyTorch and nnU-Net take seconds
        import torch

        from nnunetv2_dinomed3d.weights.adaptation import adapt
        from nnunetv2_dinomed3d.weights.files import read_checkpoint, sha256, shortened

        planned = _planned_network(training, plans_file, find_dataset_json(dataset))
        checkpoint = read_checkpoint(source, NOT_A_TRAINING)
        trainer = str(checkpoint["trainer_name"])
        try:
            trained = _trained(checkpoint)
            target = _target(planned)
            result = adapt(trained, target)
        except ValueError as error:
            raise ValueError(
                f"{source} ({printable(trainer)}) cannot be fitted to {training.trainer} on {dataset}: {error}"
            ) from error
        record = {
            "dataset": dataset,
            "configuration": training.configuration,
            "plans": training.plans,
            **result.record(),
        }
        origin = {"file": source.name, "sha256": sha256(source), "trainer": trainer}
        content = {
            "network_weights": result.state,
            "trainer_name": training.trainer,
            "init_args": {"converted_from": origin, "converted_for": record},
        }
        try:
            torch.save(content, path)
        except (OSError, RuntimeError) as error:  # PyTorch says of a full disk with the latter
            raise ValueError(f"{out} could not be written ({shortened(error)}). Nothing is left of it.") from error
    of = f"{training.configuration} of {dataset}"
    print(f"{printable(source.name)} of {printable(trainer)}, for {training.trainer} on {of} ({training.plans}):\n")
    print("\n".join([*_table(result), "", *_listed(result, target)]))
    print(f"File: {out}")
    print(f"To train from it: {training.command(out)}")


def _planned_network(training: NextTraining, plans_file: Path, description: Path) -> "PlannedNetwork":
    from nnunetv2_dinomed3d.dataset_json import read_json
    from nnunetv2_dinomed3d.planning.planned_network import PlannedInput, PlannedNetwork
    from nnunetv2_dinomed3d.trainers.harness.input_checks import require_axes
    from nnunetv2_dinomed3d.trainers.registry import find_trainer

    trainer = find_trainer(training.trainer)
    planned = PlannedInput.read(plans_file, training.configuration, description)
    require_axes(read_json(plans_file), training.configuration, getattr(trainer, "axes", (2, 3)))
    return PlannedNetwork(trainer, planned)


def _trained(checkpoint: Mapping[str, Any]) -> "Trained":
    """The weights of a checkpoint, with what its plans say of the network's input."""
    from nnunetv2_dinomed3d.planning.planned_network import PlannedInput
    from nnunetv2_dinomed3d.weights.adaptation import Trained
    from nnunetv2_dinomed3d.weights.files import shortened

    init_args, channels = checkpoint["init_args"], None
    if "plans" in init_args:  # not in those that `convert` wrote
        try:
            words = (init_args[key] for key in ("plans", "configuration", "dataset_json"))
            channels = PlannedInput.of(*words).channels
        except Exception as error:  # nnU-Net does not check them
            raise ValueError(f"its init_args are not nnU-Net's ({shortened(error)}).") from error
    return Trained(checkpoint["network_weights"], channels, init_args.get("stage1_lora") is True)


def _target(planned: "PlannedNetwork") -> "Target":
    """The new network; its random weights are the same each time."""
    import torch

    from nnunetv2_dinomed3d.network_architecture import DINOMed3D
    from nnunetv2_dinomed3d.network_architecture.state_dict import shapes_of
    from nnunetv2_dinomed3d.weights.adaptation import Target

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = planned.build()
    state = network.state_dict()
    shapes = shapes_of(state)
    lora = network.encoder.lora_layers() if isinstance(network, DINOMed3D) else []
    return Target(
        state,
        planned.planned.channels,
        planned.input_layers(shapes),
        planned.heads(shapes),
        frozenset(name for name in state if ".seg_layers." in name),  # nnU-Net's -pretrained_weights leaves these out
        next(iter(lora[0].scaling.values())) if lora else 1.0,
    )


# ---- what is printed ----


def _table(result: "Adaptation") -> list[str]:
    """Tensors and numbers of each module and fate, and the share that comes from the checkpoint."""
    from nnunetv2_dinomed3d.weights.adaptation import FATES

    modules = list(dict.fromkeys(entry.module for entry in result.entries))
    rows = [["module", *FATES]]
    for module in modules:
        rows.append([printable(module), *(_cell(e for e in result.of(fate) if e.module == module) for fate in FATES)])
    rows.append(["all", *(_cell(result.of(fate)) for fate in FATES)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "", f"{floor(1000 * result.share) / 10}% of the network's numbers come from the checkpoint."]


def _cell(entries: Iterable["Entry"]) -> str:
    from nnunetv2_dinomed3d.weights.adaptation import numbers

    found = list(entries)
    return f"{len(found)} ({numbers(found):,})" if found else "-"


def _listed(result: "Adaptation", target: "Target") -> list[str]:
    """The names of what was not taken as it is, by fate and note."""
    from nnunetv2_dinomed3d.weights.adaptation import FATES

    lines = []
    for fate in FATES:
        notes: dict[str, list[str]] = {}
        for entry in result.of(fate):
            if entry.note:
                notes.setdefault(entry.note, []).append(printable(entry.name))
        for note, names in notes.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{fate.capitalize()}, {printable(note)}: {', '.join(names[:SHOWN])}{more}.")
    changed = [entry for entry in result.of("spread", "left random") if entry.name not in target.redrawn]
    if not changed:
        lines.append("The network is the same: -pretrained_weights takes the checkpoint itself just as well.")
    return [*lines, "All names are in the file: init_args, converted_for.", ""]
