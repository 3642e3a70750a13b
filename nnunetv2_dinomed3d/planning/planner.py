"""Plans with patch and batch for a trainer and a GPU, made from the plans that nnU-Net preprocessed the data with."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.nnunet_files import find_dataset_json, preprocessed_folder
from nnunetv2_dinomed3d.planning.training_memory import (
    GB,
    PatchAndBatch,
    TrainingMemory,
    can_be_planned_for,
    name_of_plans,
)
from nnunetv2_dinomed3d.text import printable

EXPERIMENT_PLANNER = "DINOMed3DPlanner"
"""The planner that the plans name as theirs."""


@dataclass(frozen=True)
class Base:
    """The plans to start from.

    Attributes:
        plans: nnU-Net's.
        memory: of each configuration that the trainer takes, 3D or 2D.
        others: those configurations.
        file: of the plans to write.
        earlier: plans that it holds now.
    """

    plans: dict[str, Any]
    memory: dict[str, TrainingMemory]
    others: list[str]
    file: Path
    earlier: dict[str, Any]


def read_base(dataset: str, trainer: type, base_plans: str = "nnUNetPlans") -> Base:
    """Read and check all that is needed, and that the result can be written. Raw images are not needed.

    Args:
        dataset: such as ``Dataset004_Hippocampus``.
        trainer: class of the trainer to plan for.
        base_plans: name of the plans that the data was preprocessed with.

    Raises:
        ValueError: something is missing, malformed or cannot be written.
    """
    folder = preprocessed_folder(dataset)
    file = folder / f"{base_plans}.json"
    if not file.exists():
        raise ValueError(
            f"{file} does not exist. New plans build upon nnU-Net's (-p names others than nnUNetPlans) "
            f"and its preprocessed data: nnUNetv2_plan_and_preprocess -d {dataset} -c 3d_fullres"
        )
    plans = _read_plans(file)
    description = find_dataset_json(dataset)
    read_dataset_json(description)
    dataset_json = read_json(description)
    cases = dataset_json.get("numTraining")
    if not isinstance(cases, int) or isinstance(cases, bool) or cases < 1:
        raise ValueError(f"{description}: numTraining is {cases!r}; it is the number of training cases")
    memory: dict[str, TrainingMemory] = {}
    others = []
    axes: Sequence[int] = getattr(trainer, "axes", (2, 3))
    for name in plans["configurations"]:
        try:
            patch_size = PlansManager(plans).get_configuration(name).patch_size
            if len(patch_size) in axes:
                memory[name] = TrainingMemory(trainer, plans, name, dataset_json)
                _require_sizes(memory[name])
            else:
                others.append(name)
        except Exception as error:  # nnU-Net says of a malformed configuration with almost any class
            reason = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{file}: configuration {printable(name)!r} is malformed ({reason}). Make the plans anew: "
                f"nnUNetv2_plan_experiment -d {dataset}"
            ) from error
    if not memory:
        there, wanted, name = ("2D", "3D", "3d_fullres") if 3 in axes else ("3D", "2D", "2d")
        raise ValueError(
            f"{base_plans} of {dataset} has only {there} configurations ({', '.join(others) or 'none'}), and "
            f"{trainer.__name__} takes {'volumes' if 3 in axes else 'slices'}. Plan a {wanted} one: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} -c {name}"
        )
    target = folder / f"{name_of_plans(trainer)}.json"
    earlier = _require_writable(target) if can_be_planned_for(trainer) else {}
    return Base(plans, memory, others, target, earlier)


def _read_plans(file: Path) -> dict[str, Any]:
    """A file of plans, so far as it is one."""
    plans = read_json(file)
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict) or not all(isinstance(value, dict) for value in configurations.values()):
        raise ValueError(f"{file} holds no plans of nnU-Net: it has no configurations")
    for key in ("plans_name", "dataset_name"):
        if not isinstance(plans.get(key), str):
            raise ValueError(f"{file} holds no plans of nnU-Net: its {key} is {plans.get(key)!r}")
    return plans


def _require_sizes(memory: TrainingMemory) -> None:
    configuration = memory.configuration
    sizes = {"patch_size": configuration.patch_size, "median image size": configuration.median_image_size_in_voxels}
    for name, size in {**sizes, "batch_size": [configuration.batch_size]}.items():
        numbers = [side for side in size if isinstance(side, int | float) and isfinite(side) and side > 0]
        if len(numbers) != (1 if name == "batch_size" else len(configuration.patch_size)):
            raise ValueError(f"{name} is {size}")


def _require_writable(file: Path) -> dict[str, Any]:
    """Before minutes of counting; returns the plans that are there."""
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"{file} is there and cannot be written over: its mode forbids it")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"{file} could not be written: {error.strerror}") from error
    return _read_plans(file) if file.exists() or file.is_symlink() else {"configurations": {}}


def choose(base: Base, gpu_memory_target_in_gb: float) -> dict[str, PatchAndBatch]:
    """Patch and batch of each configuration in ``memory`` for one GPU of so many 10^9 bytes."""
    return {name: memory.choose(round(gpu_memory_target_in_gb * GB)) for name, memory in base.memory.items()}


def write_plans(base: Base, choices: Mapping[str, PatchAndBatch], gpu_memory_target_in_gb: float) -> None:
    """Write the plans beside the others.

    Only patch and batch of the trainer's configurations are our own. What the plans say of an architecture stays
    nnU-Net's: only U-Mamba's trainers read it. Train nnU-Net's own network on its own plans. Configurations that were
    added to an earlier file are kept, as nnU-Net's planner keeps them.
    """
    plans = deepcopy(base.plans)
    plans["configurations"] = {
        name: {**plans["configurations"][name], "patch_size": list(choice.patch_size), "batch_size": choice.batch_size}
        for name, choice in choices.items()
    }
    for name, configuration in base.earlier["configurations"].items():
        plans["configurations"].setdefault(name, configuration)
    trainer = next(iter(base.memory.values())).trainer
    plans["plans_name"] = name_of_plans(trainer)
    plans["experiment_planner_used"] = EXPERIMENT_PLANNER
    plans["dinomed3d"] = {
        "based_on": base.plans["plans_name"],
        "trainer": trainer.__name__,
        "gpu_memory_target_in_gb": gpu_memory_target_in_gb,
    }
    recursive_fix_for_json_export(plans)
    _replace(base.file.resolve(), json.dumps(plans, indent=4))


def _replace(file: Path, text: str) -> None:
    """Write a file under another name and rename it: a kill leaves the old one or the new one."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
