"""``dinomed3d convert``: checkpoints of the released DINO-Med3D code become this plugin's.

Stage 1 becomes a file that starts our stage 2, stage 2 one for ``-pretrained_weights`` or, with plans and
``dataset.json``, a model folder that nnU-Net predicts with. Variant, classes and K come from the file.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_dinomed3d.dataset_json import read_dataset_json, read_json
from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.slab_embedding import in_plane_scale
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.released import nnUNetTrainerDINOMed3D_released
from nnunetv2_dinomed3d.trainers.registry import BASE, THEMES, suffix, trainer_class
from nnunetv2_dinomed3d.weights.files import printable, sha256, shortened
from nnunetv2_dinomed3d.weights.reference import (
    ReferenceCheckpoint,
    describe_reference,
    fitting_state_dict,
    load_reference_checkpoint,
    read_reference,
)
from nnunetv2_dinomed3d.written import written_whole

PAPERS_PATCH = (16, 512, 512)


@dataclass(frozen=True)
class Model:
    """What a model folder needs besides the weights: nnU-Net's plans and ``dataset.json``, and a configuration."""

    plans: Path
    dataset_json: Path
    configuration: str


def convert(source: Path, out: Path, model: Model | None = None) -> int:
    """Convert a checkpoint of the released code.

    Args:
        source: ``stage1_best.pth`` or ``stage2_best.pth``.
        out: file to write; with ``model`` a folder.
        model: to make a model folder.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: the file is no such checkpoint or is incomplete, does not go with the plans, or ``out`` exists.
    """
    if os.path.lexists(out):
        raise ValueError(f"{out} exists and is not written over: name another with -o.")
    if not os.path.isfile(source):
        raise ValueError(f"{source} is no file. Name a checkpoint of the released code.")
    with written_whole(out) as path:
        return _convert(source, out, path, model)


def _convert(source: Path, out: Path, path: Path, model: Model | None) -> int:
    """As `convert`; it writes to ``path``, which becomes ``out``."""
    state = read_reference(source)
    found = describe_reference(state)
    if model and found.stage == 1:
        raise ValueError(
            f"{source} is of stage 1, which alone makes no model folder: leave plans and dataset.json out."
        )
    variant = _variant(found)
    trainer = trainer_class(_trainer_name(variant, found.slab_depth))
    init_args = _fitting_init_args(model, found) if model else {}

    with torch.device("meta"):
        fitting_state_dict(_network(variant, found), state)  # before the network takes memory
    network = _network(variant, found)
    load_reference_checkpoint(network, state)
    checkpoint = {
        "network_weights": _kept(network.state_dict(), found.stage),
        "trainer_name": trainer.__name__,
        "init_args": {**init_args, "converted_from": {"file": source.name, "sha256": sha256(source)}},
        "inference_allowed_mirroring_axes": None,  # the released code predicts each volume once
    }
    print(
        f"{source.name}: stage {found.stage}, variant {variant}, {found.num_classes} classes, K = {found.slab_depth}. "
        f"Its trainer here is {trainer.__name__}."
    )
    try:
        if model:
            _write_model_folder(path, checkpoint, model)
        else:
            torch.save(checkpoint, path)
    except (OSError, RuntimeError) as error:  # PyTorch's of a full disk is the latter
        raise ValueError(f"{out} could not be written ({shortened(error)}), and nothing is left of it.") from error
    quoted = shlex.quote(str(out))
    if model:
        print(f"Model folder: {out}")
        print(f"To predict: nnUNetv2_predict_from_modelfolder -m {quoted} -f all -i INPUT -o OUTPUT")
    elif found.stage == 1:
        print(f"File: {out}")
        print(f"To start stage 2 from it: export {STAGE1_VARIABLE}={shlex.quote(str(out.absolute()))}")
    else:
        print(f"File: {out}")
        print(f"To go on from it: nnUNetv2_train ... -tr {trainer.__name__} -pretrained_weights {quoted}")
    return 0


def _network(variant: str, found: ReferenceCheckpoint) -> DINOMed3D:
    return build_dinomed3d(
        variant,
        1,
        found.num_classes,
        PAPERS_PATCH,
        slab_depth=found.slab_depth,
        depth_alignment=nnUNetTrainerDINOMed3D_released.depth_alignment,
        lora_on_ice=nnUNetTrainerDINOMed3D_released.lora_on_ice,
    )


def _variant(found: ReferenceCheckpoint) -> str:
    """The variant of the checkpoint's width and depth."""
    for variant, size in VARIANTS.items():
        if size.weights_name is None:
            continue
        with torch.device("meta"):
            encoder = _network(variant, found).encoder
        if (encoder.embed_dim, len(encoder.vit.blocks)) == (found.embed_dim, found.depth):
            return variant
    raise ValueError(
        f"The checkpoint is of a ViT of width {found.embed_dim} and depth {found.depth}, and no variant is: there are "
        f"{', '.join(VARIANTS)}."
    )


def _trainer_name(variant: str, slab_depth: int) -> str:
    sizes = {trainer.variant: suffix(trainer) for trainer in THEMES["size"]}
    depth = "" if slab_depth == trainer_class(BASE).slab_depth else f"_K{slab_depth}"
    return f"{BASE}{sizes.get(variant, '')}{depth}_released"


def _kept(state: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Of stage 1 only what it trained: the rest of the network depends on the plans it will be used with."""
    if stage == 2:
        return dict(state)
    trained = ("encoder.", "proxy_head.", "_extra_state")
    return {name: tensor for name, tensor in state.items() if name.startswith(trained) and ".lora_" not in name}


def _fitting_init_args(model: Model, found: ReferenceCheckpoint) -> dict[str, Any]:
    """The trainer's arguments that nnU-Net's checkpoints hold, if the checkpoint goes with the plans."""
    read_dataset_json(model.dataset_json)
    plans, dataset_json = read_json(model.plans), read_json(model.dataset_json)
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict) or model.configuration not in configurations:
        there = ", ".join(map(printable, configurations)) if isinstance(configurations, dict) else ""
        raise ValueError(
            f"{model.plans} has no configuration {model.configuration!r}; it has {there or 'none: is it a plans file'}."
        )
    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(model.configuration)
        patch_size = tuple(int(side) for side in configuration.patch_size)
        channels = determine_num_input_channels(manager, configuration, dataset_json)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    except Exception as error:  # nnU-Net does not check them
        raise ValueError(f"{model.plans} is no plans file of nnU-Net ({shortened(error)}).") from error
    if len(patch_size) != 3 or in_plane_scale(patch_size) != 1:
        raise ValueError(
            f"{model.configuration} of {model.plans} has the patch size {list(patch_size)}. The released code's "
            f"networks are of in-plane scale 1, which takes a 3D patch with a side of 363 or more voxels; the paper's "
            f"is {list(PAPERS_PATCH)}. Set patch_size in the plans to that of the training."
        )
    if (channels, heads) != (1, found.num_classes):
        raise ValueError(
            f"The checkpoint has 1 image channel and {found.num_classes} classes, {model.dataset_json} with these "
            f"plans {channels} and {heads}: it is of another data set."
        )
    return {"plans": plans, "configuration": model.configuration, "fold": "all", "dataset_json": dataset_json}


def _write_model_folder(folder: Path, checkpoint: dict[str, Any], model: Model) -> None:
    fold = folder / "fold_all"
    fold.mkdir(parents=True)
    shutil.copy(model.plans, folder / "plans.json")
    shutil.copy(model.dataset_json, folder / "dataset.json")
    torch.save(checkpoint, fold / "checkpoint_final.pth")
