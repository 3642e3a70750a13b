"""``dinomed3d doctor``: whether training could run here, and what to do if not.

Neither PyTorch nor nnU-Net's trainers are imported, as that takes seconds. The check of trainers looks for the file
that nnU-Net's search would find, and PyTorch is asked for GPUs only if the machine has a driver.
"""

import argparse
import ctypes
import os
import shlex
import shutil
import stat
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from nnunetv2_dinomed3d.commands.trainer_path import ENTRY_MODULE, trainer_folder
from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.settings import (
    STAGE1_VARIABLE,
    WEIGHTS_ENDINGS,
    WEIGHTS_VARIABLE,
    check_environment,
    seed_setting,
)
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.trainer_names import BASELINE, BASELINE_PACKAGES
from nnunetv2_dinomed3d.versions import DISTRIBUTION, dependencies

HELP = "Check whether training could run here, and say what to do if not."
EXAMPLES = "dinomed3d doctor"

TRAINER = "nnUNetTrainerDINOMed3D"
HUB_REPOSITORY = "timm/vit_base_patch16_dinov3.lvd1689m"
HUB_FILE = "model.safetensors"
"""The file with that trainer's weights on the Hugging Face Hub. timm knows it too, but takes seconds to import."""

ENTRY_IN_NNUNET = f"nnunetv2.training.nnUNetTrainer.{ENTRY_MODULE}"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PROCESSES = {"nnUNet_n_proc_DA": 0, "nnUNet_def_n_proc": 1}
"""nnU-Net's settings of a number of processes, each with the smallest number that nnU-Net takes."""
CHECKPOINTS_GB = 5
"""Disk space in GB for the checkpoints of one training: at most four of 1.1 GB, with the one being written."""
SHARED_MEMORY_GB = 1
"""Shared memory in GB for the batches that nnU-Net's loader workers hand over."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        status: "ok", "warning" (training can run, but look at this) or "error" (training cannot run).
        what: what was found.
        advice: a command or a sentence that helps; empty if the status is "ok".
    """

    status: Literal["ok", "warning", "error"]
    what: str
    advice: str = ""


def check_versions() -> Iterator[Finding]:
    """Compare the installed versions with the bounds of this package."""
    try:
        found = list(dependencies())
        yield Finding("ok", f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    except metadata.PackageNotFoundError:
        yield Finding("warning", f"{DISTRIBUTION} is not installed, so versions are not checked", "pip install .")
        return
    for dependency in found:
        if dependency.met:
            yield Finding("ok", f"{dependency.requirement.name} {dependency.version}")
        else:
            yield Finding("error", str(dependency), dependency.fix)
    if not shutil.which("nnUNetv2_train"):
        advice = f'export PATH={shlex.quote(sysconfig.get_path("scripts"))}:"$PATH"'
        yield Finding("warning", "the shell does not find nnUNetv2_train, as this environment is not activated", advice)


def check_trainers() -> Iterator[Finding]:
    """Check whether nnU-Net's search would find the trainer, and where."""
    folders = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder.strip()]
    for folder in folders:
        if not os.path.isdir(folder):
            what = f"nnUNet_extTrainer names {printable(folder)}, which is no folder"
            yield Finding("warning", what, "correct or remove it")
    if _is_in_nnunet():
        yield Finding("ok", f"nnU-Net finds {TRAINER} in its own folder of trainers")
        return
    for folder in folders:
        if os.path.isfile(os.path.join(folder, f"{ENTRY_MODULE}.py")):
            yield Finding("ok", f"nnU-Net finds {TRAINER} through nnUNet_extTrainer={printable(folder)}")
            return
    there = [folder for folder in folders if os.path.isdir(folder)]
    export = f"export nnUNet_extTrainer={shlex.quote(os.pathsep.join([str(trainer_folder()), *there]))}"
    yield Finding("error", f"nnU-Net does not find {TRAINER}", export)


def _is_in_nnunet() -> bool:
    try:
        return util.find_spec(ENTRY_IN_NNUNET) is not None
    except ImportError:  # there is no nnU-Net
        return False


def check_settings() -> Iterator[Finding]:
    """Find the settings that training would refuse."""
    for check in (check_environment, seed_setting):
        try:
            check()
        except ValueError as error:
            yield Finding("error", printable(error))
    for name, least in PROCESSES.items():
        value = os.environ.get(name, "1").strip()
        if not value.isdecimal() or int(value) < least:
            yield Finding(
                "error", f"{name} is {value!r}; it is a number of processes, {least} or more", f"unset {name}"
            )


def check_weights() -> Iterator[Finding]:
    """Find the weights that `nnUNetTrainerDINOMed3D` would start from."""
    stage1, value = (os.environ.get(name, "").strip() for name in (STAGE1_VARIABLE, WEIGHTS_VARIABLE))
    if stage1:
        reason = _unreadable(Path(os.path.expanduser(stage1)))
        if reason:
            advice = f"unset {STAGE1_VARIABLE}, or set it to a file that exists"
            yield Finding("error", f"{STAGE1_VARIABLE} is {printable(stage1)}, which {reason}", advice)
        else:
            yield Finding("ok", f"stage 1 is skipped and stage 2 starts from {printable(stage1)} ({STAGE1_VARIABLE})")
    elif value == "random":
        what = f"random weights, as {WEIGHTS_VARIABLE}=random asks for"
        yield Finding("warning", what, f"unset {WEIGHTS_VARIABLE} to start from DINOv3, as the method does")
    elif value:
        yield _weights_of(value)
    else:
        yield _weights_of_hub()


def check_baselines() -> Iterator[Finding]:
    """Say which packages and weights the trainers of other papers' networks need."""
    for package, networks in BASELINE_PACKAGES.items():
        trainers = f"{BASELINE}_{networks[0]}" + "".join(f", _{name}" for name in networks[1:])
        if util.find_spec(package) is None:
            what = f"{package} is not installed, which only {trainers} need"
            yield Finding("ok", what, "pip install 'nnunetv2_dinomed3d[baselines]'")
        else:
            yield Finding("ok", f"{package} {metadata.version(package)}, for {trainers}")
    yield Finding(
        "ok",
        f"{WEIGHTS_VARIABLE} also serves {BASELINE}_DinoUNet_* (DINOv3), _VoCo_* (VoCo's file, needed) and _SwinUNETR "
        "(model_swinvit.pt, optional); it may name a folder with all of these",
    )


def _weights_of(value: str) -> Finding:
    path = Path(os.path.expanduser(value))
    advice = f"set {WEIGHTS_VARIABLE} to a file that exists"
    try:
        files = _weight_files(path)
        wrong = next((f"{printable(file)} {reason}" for file in files if (reason := _unreadable(file))), None)
    except (ValueError, OSError) as error:
        wrong = printable(error)
    if wrong:
        return Finding("error", f"{WEIGHTS_VARIABLE}: {wrong}", advice)
    what = f"weights of {TRAINER}: {printable(value)} ({WEIGHTS_VARIABLE})"
    return Finding("ok", f"{what}; `dinomed3d weights --check` says whether they fit")


def _weight_files(path: Path) -> list[Path]:
    """The files to look for: the path itself, the parts of a folder that transformers wrote, or all of a folder's."""
    if not os.path.isdir(path):
        return [path]
    index = path / f"{HUB_FILE}.index.json"
    if os.path.lexists(path / HUB_FILE):
        return [path / HUB_FILE]
    if not os.path.lexists(index):
        files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHTS_ENDINGS]
        if not files:
            raise ValueError(
                f"{path} is a folder without {HUB_FILE}, or files that end with {', '.join(WEIGHTS_ENDINGS)}"
            )
        return files
    try:
        return [path / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights") from error


def _weights_of_hub() -> Finding:
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(HUB_REPOSITORY, HUB_FILE)
    what = f"weights of {TRAINER}: {HUB_REPOSITORY}/{HUB_FILE} of the Hugging Face Hub"
    advice = (
        f"export {WEIGHTS_VARIABLE}=/path/to/file  # fetch it with `dinomed3d weights base`, where there is internet"
    )
    if isinstance(cached, str):
        reason = _unreadable(Path(cached))
        if reason:
            return Finding("error", f"{what}: {printable(cached)} {reason}", f"rm {shlex.quote(cached)}")
        return Finding("ok", f"{what}, in the local cache")
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        name = next(
            (name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "offline mode"
        )
        return Finding("error", f"{what}, not in the local cache, and {name} forbids the download", advice)
    return Finding("warning", f"{what}, to be downloaded when training starts", advice)


def _unreadable(path: Path) -> str | None:
    """The reason why the file cannot be read; None if it can."""
    try:
        status = path.stat()
    except OSError as error:
        return "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    if not status.st_size:
        return "is empty"
    return None if os.access(path, os.R_OK) else "cannot be read (no permission)"


def check_folders() -> Iterator[Finding]:
    """Check nnU-Net's three folders and the free space in them."""
    for name in FOLDERS:
        value = os.environ.get(name)
        if not value:
            yield Finding("error", f"{name} is not set", f"export {name}=/path/to/{name}")
            continue
        what = f"{name} is {printable(value)}"
        if not os.path.exists(value):
            advice = f"mkdir -p {shlex.quote(value)}" if value.isprintable() else "choose a printable name"
            yield Finding("error", f"{what}, which does not exist", advice)
        elif not os.path.isdir(value):
            yield Finding("error", f"{what}, which is no folder", "choose a folder of your own")
        elif not os.access(value, os.R_OK | os.X_OK):
            yield Finding("error", f"{what}, which cannot be read", "choose a folder of your own")
        elif name != "nnUNet_raw" and (reason := _unwritable(value)):
            yield Finding("error", f"{what}, which cannot be written ({reason})", "choose a folder of your own")
        elif name == "nnUNet_results" and _free_gb(value) < CHECKPOINTS_GB:
            advice = f"free some space: a training writes checkpoints of up to {CHECKPOINTS_GB} GB"
            yield Finding("warning", f"{what}, where {_free_gb(value):.1f} GB are free", advice)
        else:
            yield Finding("ok", what)
    yield from _check_shared_memory()


def _unwritable(folder: str) -> str | None:
    """The reason why no file can be written there; None if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        return error.strerror
    return None


def _free_gb(folder: str) -> float:
    return shutil.disk_usage(folder).free / 1e9


def _check_shared_memory() -> Iterator[Finding]:
    folder = "/dev/shm"
    if os.environ.get("nnUNet_n_proc_DA") != "0" and os.path.isdir(folder) and _free_gb(folder) < SHARED_MEMORY_GB:
        advice = "start the container with docker run --ipc=host; or export nnUNet_n_proc_DA=0, which is slow"
        what = f"{folder}, through which loader workers hand over batches, has only {_free_gb(folder):.1f} GB free"
        yield Finding("warning", what, advice)


def check_gpu() -> Iterator[Finding]:
    """Find the GPUs that nnU-Net's ``-device cuda`` would use."""
    advice = "add -device cpu to nnU-Net's commands (only _nano is small enough), or use a machine with a GPU"
    if not _has_driver():
        yield Finding("warning", "no GPU: nnUNetv2_train will stop, as its default is -device cuda", advice)
        return
    try:
        import torch

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            found = [torch.cuda.get_device_properties(i) for i in range(count)]
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        yield Finding(
            "error", f"PyTorch does not run here ({printable(reason)})", "install it again: https://pytorch.org"
        )
        return
    said = "".join(f" ({printable(str(warning.message).splitlines()[0])})" for warning in caught[:1])
    if torch.version.cuda is None and torch.version.hip is None:
        said = " (it was built without CUDA: https://pytorch.org/get-started/locally)"
    if not found:
        what = f"PyTorch sees no GPU{said}: nnUNetv2_train will stop, as its default is -device cuda"
        yield Finding("warning", what, advice)
    for i, properties in enumerate(found):
        yield Finding("ok", f"GPU {i}: {properties.name}, {properties.total_memory / 1e9:.0f} GB")


def _has_driver() -> bool:
    """Whether the machine has a driver for a GPU. Without one, PyTorch finds none and need not be asked."""
    if sys.platform != "linux" or os.path.exists("/dev/kfd"):  # AMD's
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # PyTorch opens the same
    except OSError:
        return False
    return True


CHECKS = (check_versions, check_trainers, check_settings, check_weights, check_baselines, check_folders, check_gpu)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command takes no argument."""


def run(args: argparse.Namespace) -> int:
    """Print every finding; return 1 if training could not run, else 0."""
    found = {"ok": 0, "warning": 0, "error": 0}
    for check in CHECKS:
        for finding in check():
            print(f"{finding.status:8s} {finding.what}")
            if finding.advice:
                print(f"         -> {finding.advice}")
            found[finding.status] += 1
    print(f"\n{_summary(found['error'], found['warning'])}")
    return 1 if found["error"] else 0


def _summary(errors: int, warned: int) -> str:
    if errors:
        return "1 problem prevents training." if errors == 1 else f"{errors} problems prevent training."
    if warned:
        return f"No problem found, but see the {'warning' if warned == 1 else f'{warned} warnings'} above."
    return "No problem found."
