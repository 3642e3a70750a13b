"""``dinomed3d doctor``: could the main job run here, and if not, what is to be done."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from nnunetv2_dinomed3d.entry import trainer_folder
from nnunetv2_dinomed3d.requirements import DISTRIBUTION, dependencies

TRAINER = "nnUNetTrainerDINOMed3D"
ENTRY_IN_NNUNET = "nnunetv2.training.nnUNetTrainer.dinomed3d_trainers"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        status: "ok", "warning" (training can run, but look) or "error" (it cannot).
        what: what was found.
        advice: what to do, when it is not ok.
    """

    status: Literal["ok", "warning", "error"]
    what: str
    advice: str = ""


def check_versions() -> Iterator[Finding]:
    """Installed versions against the bounds of this package."""
    try:
        found = list(dependencies())
        yield Finding("ok", f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    except metadata.PackageNotFoundError:
        yield Finding("warning", f"{DISTRIBUTION} is not installed, versions are not checked", "pip install .")
        return
    for dependency in found:
        if dependency.met:
            yield Finding("ok", f"{dependency.requirement.name} {dependency.version}")
        else:
            yield Finding("error", str(dependency), dependency.fix)


def check_trainers() -> Iterator[Finding]:
    """Whether nnU-Net's own search finds the trainer, and through which way."""
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except ImportError as error:
        yield Finding("error", f"nnU-Net cannot be imported: {error}", "pip install 'nnunetv2>=2.8,<3'")
        return

    export = f"export nnUNet_extTrainer={trainer_folder()}"
    try:
        recursive_find_trainer_class_by_name(TRAINER)
    except RuntimeError:
        yield Finding("error", f"nnU-Net does not find {TRAINER}", f"{export}   (what `dinomed3d trainer-path` prints)")
        return
    if util.find_spec(ENTRY_IN_NNUNET):
        yield Finding("ok", f"nnU-Net finds {TRAINER} in its own folder of trainers")
    else:
        yield Finding("ok", f"nnU-Net finds {TRAINER} through nnUNet_extTrainer={os.environ['nnUNet_extTrainer']}")


def check_weights() -> Iterator[Finding]:
    """What `nnUNetTrainerDINOMed3D` would start from."""
    from nnunetv2_dinomed3d.network_architecture import VARIANTS
    from nnunetv2_dinomed3d.weights import WEIGHTS_VARIABLE, weights_setting

    name = VARIANTS["base"].weights_name
    assert name is not None
    setting = weights_setting(name)
    what = f"weights of {TRAINER}: {setting.description}"
    if setting.source == "random":
        yield Finding("warning", what, f"unset {WEIGHTS_VARIABLE} to start from DINOv3, as the method does")
    elif setting.available:
        yield Finding("ok", what)
    elif setting.source == "hub":
        advice = f"without internet: copy that file here and set {WEIGHTS_VARIABLE}=/path/to/file"
        yield Finding("warning", what, advice)
    else:
        yield Finding("error", what, f"set {WEIGHTS_VARIABLE} to a file that exists")


def check_stage1() -> Iterator[Finding]:
    """The file that stage 2 would start from, if one is named."""
    from nnunetv2_dinomed3d.weights.stage1 import stage1_setting

    try:
        path = stage1_setting()
    except ValueError as error:
        yield Finding("error", str(error), "unset it, or set it to a file that exists")
        return
    if path:
        yield Finding("ok", f"stage 1 is skipped, stage 2 starts from {path}")


def check_folders() -> Iterator[Finding]:
    """nnU-Net's three folders."""
    for name in FOLDERS:
        value = os.environ.get(name)
        if not value:
            yield Finding("error", f"{name} is not set", f"export {name}=/path/to/{name}")
        elif not Path(value).is_dir():
            yield Finding("error", f"{name} is {value}, which is no folder", f"mkdir -p {value}")
        elif name != "nnUNet_raw" and not os.access(value, os.W_OK):
            yield Finding("error", f"{name} is {value}, which cannot be written", "choose a folder of your own")
        else:
            yield Finding("ok", f"{name} is {value}")


def check_gpu() -> Iterator[Finding]:
    """What nnU-Net's ``-device cuda`` would use."""
    import torch

    if not torch.cuda.is_available():
        advice = "train with -device cpu (or mps), the real variants only on a GPU in practice"
        yield Finding("warning", "no CUDA device", advice)
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Finding("ok", f"GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def run_doctor() -> int:
    """Print every finding; 1 if the main job could not run, else 0."""
    errors = 0
    for check in (check_versions, check_trainers, check_weights, check_stage1, check_folders, check_gpu):
        for finding in check():
            print(f"{finding.status:8s} {finding.what}")
            if finding.advice:
                print(f"         -> {finding.advice}")
            errors += finding.status == "error"
    print(f"\n{errors} thing(s) keep training from running." if errors else "\nTraining can run.")
    return 1 if errors else 0
