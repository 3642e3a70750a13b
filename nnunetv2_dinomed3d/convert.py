"""``dinomed3d convert``: checkpoints of the released DINO-Med3D code become this plugin's.

Stage 1 becomes a file that starts our stage 2, stage 2 one for ``-pretrained_weights`` or, with plans and
``dataset.json``, a model folder that nnU-Net predicts with. Variant, classes and K come from the file.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.slab import in_plane_scale
from nnunetv2_dinomed3d.trainers.variants.names import BASE, THEMES, suffix, trainer_class
from nnunetv2_dinomed3d.weights.files import sha256
from nnunetv2_dinomed3d.weights.reference import (
    ReferenceCheckpoint,
    describe_reference,
    load_reference_checkpoint,
    read_reference,
)

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
    if out.exists():
        raise ValueError(f"{out} exists and is not written over: name another with -o.")
    if not source.is_file():
        raise ValueError(f"{source} is no file. Name a checkpoint of the released code.")
    state = read_reference(source)
    found = describe_reference(state)
    if model and found.stage == 1:
        raise ValueError(
            f"{source} is of stage 1, which alone makes no model folder: leave plans and dataset.json out."
        )
    variant = _variant(found)
    trainer = trainer_class(_trainer_name(variant, found.slab_depth))
    init_args = _fitting_init_args(model, found) if model else {}

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
    if model:
        _write_model_folder(out, checkpoint, model)
        print(f"Model folder: {out}\nTo predict: nnUNetv2_predict_from_modelfolder -m {out} -f all -i INPUT -o OUTPUT")
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, out)
    if found.stage == 1:
        print(f"File: {out}\nTo start stage 2 from it: export DINOMED3D_STAGE1={out.absolute()}")
    else:
        print(f"File: {out}\nTo go on from it: nnUNetv2_train ... -tr {trainer.__name__} -pretrained_weights {out}")
    return 0


def _network(variant: str, found: ReferenceCheckpoint) -> DINOMed3D:
    return build_dinomed3d(
        variant, 1, found.num_classes, PAPERS_PATCH, slab_depth=found.slab_depth, depth_alignment="released"
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
    plans, dataset_json = _read_json(model.plans), _read_json(model.dataset_json)
    if model.configuration not in plans.get("configurations", {}):
        raise ValueError(
            f"{model.plans} has no configuration {model.configuration!r}; it has "
            f"{', '.join(plans.get('configurations', {})) or 'none: is it a plans file'}."
        )
    manager = PlansManager(plans)
    configuration = manager.get_configuration(model.configuration)
    patch_size = tuple(configuration.patch_size)
    if len(patch_size) != 3 or in_plane_scale(patch_size) != 1:
        raise ValueError(
            f"{model.configuration} of {model.plans} has the patch size {list(patch_size)}. The released code's "
            f"networks are of in-plane scale 1, which takes a 3D patch with a side over 256 pixels; the paper's is "
            f"{list(PAPERS_PATCH)}. Set patch_size in the plans to that of the training."
        )
    channels = determine_num_input_channels(manager, configuration, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    if (channels, heads) != (1, found.num_classes):
        raise ValueError(
            f"The checkpoint has 1 image channel and {found.num_classes} classes, {model.dataset_json} with these "
            f"plans {channels} and {heads}: it is of another data set."
        )
    return {"plans": plans, "configuration": model.configuration, "fold": "all", "dataset_json": dataset_json}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}).") from error


def _write_model_folder(folder: Path, checkpoint: dict[str, Any], model: Model) -> None:
    fold = folder / "fold_all"
    fold.mkdir(parents=True)
    shutil.copy(model.plans, folder / "plans.json")
    shutil.copy(model.dataset_json, folder / "dataset.json")
    torch.save(checkpoint, fold / "checkpoint_final.pth")
