"""``dinomed3d doctor``: could the main job run here, and if not, what is to be done.

PyTorch takes seconds to import, and nnU-Net's search for trainers imports more. So we look for the one file that the
search would find, and PyTorch is asked for GPUs only where there is a driver.
"""

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
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE, WEIGHTS_VARIABLE, check_environment, seed_setting
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.versions import DISTRIBUTION, dependencies

TRAINER = "nnUNetTrainerDINOMed3D"
HUB_REPOSITORY = "timm/vit_base_patch16_dinov3.lvd1689m"
HUB_FILE = "model.safetensors"
"""Where that trainer's weights are; timm knows it, but takes seconds to import."""

ENTRY_IN_NNUNET = f"nnunetv2.training.nnUNetTrainer.{ENTRY_MODULE}"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PROCESSES = {"nnUNet_n_proc_DA": 0, "nnUNet_def_n_proc": 1}
"""nnU-Net's numbers of processes, and the smallest that it takes."""
CHECKPOINTS_GB = 5
"""Room for the checkpoints of one training, the one that is being written included: four of 1.1 GB at most."""
SHARED_MEMORY_GB = 1
"""Room for the batches that nnU-Net's loader workers hand over."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        status: "ok", "warning" (nothing prevents training, but look) or "error" (something does).
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
    if not shutil.which("nnUNetv2_train"):
        advice = f'export PATH={shlex.quote(sysconfig.get_path("scripts"))}:"$PATH"'
        yield Finding("warning", "the shell does not find nnUNetv2_train: this environment is not activated", advice)


def check_trainers() -> Iterator[Finding]:
    """Whether nnU-Net's search would find the trainer, and through which way."""
    folders = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder.strip()]
    for folder in folders:
        if not os.path.isdir(folder):
            what = f"nnUNet_extTrainer names {printable(folder)}, which is no folder: trainers in it are not found"
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
    """Settings that training refuses."""
    for check in (check_environment, seed_setting):
        try:
            check()
        except ValueError as error:
            yield Finding("error", printable(str(error)))
    for name, least in PROCESSES.items():
        value = os.environ.get(name, "1").strip()
        if not value.isdecimal() or int(value) < least:
            yield Finding("error", f"{name} is {value!r}, no number of processes from {least} on", f"unset {name}")


def check_weights() -> Iterator[Finding]:
    """What `nnUNetTrainerDINOMed3D` would start from."""
    stage1, value = (os.environ.get(name, "").strip() for name in (STAGE1_VARIABLE, WEIGHTS_VARIABLE))
    if stage1:
        reason = _unreadable(Path(os.path.expanduser(stage1)))
        if reason:
            advice = f"unset {STAGE1_VARIABLE}, or set it to a file that exists"
            yield Finding("error", f"{STAGE1_VARIABLE} is {printable(stage1)}, which {reason}", advice)
        else:
            yield Finding("ok", f"stage 1 is skipped, stage 2 starts from {printable(stage1)} ({STAGE1_VARIABLE})")
    elif value == "random":
        what = f"random weights, as {WEIGHTS_VARIABLE}=random asks for"
        yield Finding("warning", what, f"unset {WEIGHTS_VARIABLE} to start from DINOv3, as the method does")
    elif value:
        yield _weights_of(value)
    else:
        yield _weights_of_hub()


def _weights_of(value: str) -> Finding:
    path = Path(os.path.expanduser(value))
    advice = f"set {WEIGHTS_VARIABLE} to a file that exists"
    try:
        files = [path]
        if os.path.isdir(path):
            from nnunetv2_dinomed3d.weights.files import weight_files  # brings PyTorch along

            files = weight_files(path)
        wrong = next((f"{printable(str(file))} {reason}" for file in files if (reason := _unreadable(file))), None)
    except (ValueError, OSError) as error:
        wrong = printable(str(error))
    if wrong:
        return Finding("error", f"{WEIGHTS_VARIABLE}: {wrong}", advice)
    what = f"weights of {TRAINER}: {printable(value)} ({WEIGHTS_VARIABLE})"
    return Finding("ok", f"{what}; `dinomed3d weights --check` says whether they fit")


def _weights_of_hub() -> Finding:
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(HUB_REPOSITORY, HUB_FILE)
    what = f"weights of {TRAINER}: {HUB_REPOSITORY}/{HUB_FILE} of the Hugging Face Hub"
    advice = f"export {WEIGHTS_VARIABLE}=/path/to/file  # that `dinomed3d weights base` fetches where there is internet"
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
    """Why no file can be read there; None if one can."""
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
    """nnU-Net's three folders, and the room in them."""
    for name in FOLDERS:
        value = os.environ.get(name)
        if not value:
            yield Finding("error", f"{name} is not set", f"export {name}=/path/to/{name}")
            continue
        what = f"{name} is {printable(value)}"
        if not os.path.exists(value):
            advice = f"mkdir -p {shlex.quote(value)}" if value.isprintable() else "choose a name that prints"
            yield Finding("error", f"{what}, which does not exist", advice)
        elif not os.path.isdir(value):
            yield Finding("error", f"{what}, which is no folder", "choose a folder of your own")
        elif not os.access(value, os.R_OK | os.X_OK):
            yield Finding("error", f"{what}, which cannot be read", "choose a folder of your own")
        elif name != "nnUNet_raw" and (reason := _unwritable(value)):
            yield Finding("error", f"{what}, which cannot be written ({reason})", "choose a folder of your own")
        elif name == "nnUNet_results" and _free_gb(value) < CHECKPOINTS_GB:
            advice = f"make room: a training writes checkpoints of up to {CHECKPOINTS_GB} GB"
            yield Finding("warning", f"{what}, where {_free_gb(value):.1f} GB are free", advice)
        else:
            yield Finding("ok", what)
    yield from _check_shared_memory()


def _unwritable(folder: str) -> str | None:
    """Why no file can be written there; None if one can."""
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
        advice = "in a container: docker run --ipc=host; or export nnUNet_n_proc_DA=0, which is slow"
        what = f"{folder}, through which loader workers hand over batches, has {_free_gb(folder):.1f} GB free"
        yield Finding("warning", what, advice)


def check_gpu() -> Iterator[Finding]:
    """What nnU-Net's ``-device cuda`` would use."""
    advice = "add -device cpu to nnU-Net's commands (only _nano is small enough for that), or go where a GPU is"
    if not _has_driver():
        yield Finding("warning", "no GPU: nnUNetv2_train stops, its default is -device cuda", advice)
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
            "error", f"PyTorch does not run here ({printable(reason)})", "install it anew: https://pytorch.org"
        )
        return
    said = "".join(f" ({printable(str(warning.message).splitlines()[0])})" for warning in caught[:1])
    if torch.version.cuda is None and torch.version.hip is None:
        said = " (it was built without CUDA: https://pytorch.org/get-started/locally)"
    if not found:
        what = f"PyTorch sees no GPU{said}: nnUNetv2_train stops, its default is -device cuda"
        yield Finding("warning", what, advice)
    for i, properties in enumerate(found):
        yield Finding("ok", f"GPU {i}: {properties.name}, {properties.total_memory / 1e9:.0f} GB")


def _has_driver() -> bool:
    """Whether PyTorch could find a GPU; if not, it need not be asked."""
    if sys.platform != "linux" or os.path.exists("/dev/kfd"):  # AMD's
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # what PyTorch opens itself
    except OSError:
        return False
    return True


CHECKS = (check_versions, check_trainers, check_settings, check_weights, check_folders, check_gpu)


def run_doctor() -> int:
    """Print every finding; 1 if the main job could not run, else 0."""
    found = {"ok": 0, "warning": 0, "error": 0}
    for check in CHECKS:
        for finding in check():
            print(f"{finding.status:8s} {finding.what}")
            if finding.advice:
                print(f"         -> {finding.advice}")
            found[finding.status] += 1
    print(f"\n{_summary(found['error'], found['warning'])}")
    return 1 if found["error"] else 0


def _summary(errors: int, cautions: int) -> str:
    if errors:
        return "1 problem prevents training." if errors == 1 else f"{errors} problems prevent training."
    if cautions:
        return f"No problem found, but mind the {'warning' if cautions == 1 else f'{cautions} warnings'} above."
    return "No problem found."
