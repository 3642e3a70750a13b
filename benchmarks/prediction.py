"""``python -m benchmarks.prediction``: `dinomed3d predict` beside nnUNetv2_predict, seconds and memory, as a table.

Both run as processes on the same model with random weights and the same images, in turns; peak memory is the largest
sum of the resident memory of a process and its children, ten times a second. The last row is the prediction of a
preprocessed case alone, in this process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from benchmarks.measure import seconds
from benchmarks.random_models import configuration, labels, plans, write_model
from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder
from nnunetv2_dinomed3d.evaluation.document import Grid, Heading, Paragraph, to_markdown

ROOT = Path(__file__).parents[1]
HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "Dataset004_Hippocampus" / "imagesTs"
ROWS = ("hippocampus", "ct", "base")
COLUMNS = ["row", "nnU-Net s", "ours s", "ratio", "at most", "nnU-Net GB", "ours GB", "ratio", "at most", "different"]
MAX_TIME, MAX_MEMORY, MAX_TIME_BASE = 0.6, 0.5, 0.8
CT_SPACING = (1.5, 0.8, 0.8)
BASE_DEPTH, BASE_PATCH = 64, (16, 128, 128)
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Measured:
    """Seconds and peak bytes of one run of a command."""

    seconds: float
    peak: int


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and of all its descendants."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            resident[int(folder.name)] = int((folder / "statm").read_text().split()[1]) * PAGE
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(resident.get(member, 0) for member in family)


def run(command: Sequence[str | Path]) -> Measured:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; the message ends with what it printed last.
    """
    settings = {
        name: str(Path(tempfile.gettempdir())) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    settings |= {"nnUNet_extTrainer": str(trainer_folder()), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.1)
        taken = time.perf_counter() - begin
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{output.read()[-2000:]}")
    return Measured(taken, peak)


def ct_like(folder: Path) -> Path:
    """Write an image of 120 x 512 x 512 voxels: tissue of soft blobs and noise in air; its folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    depth, height, width = 120, 512, 512
    tissue = ndimage.zoom(rng.normal(40, 100, (15, 32, 32)).astype(np.float32), (8, 16, 16), order=1)
    y, x = np.mgrid[:height, :width]
    body = ((y - 256) / 200) ** 2 + ((x - 256) / 240) ** 2 < 1
    image = np.where(body, tissue + rng.normal(0, 20, tissue.shape), -1000).astype(np.int16)
    volume = sitk.GetImageFromArray(image)
    assert image.shape == (depth, height, width)
    volume.SetSpacing(CT_SPACING[::-1])
    sitk.WriteImage(volume, str(folder / "ct_0000.nii.gz"))
    return folder


def different_voxels(first: Path, second: Path) -> str:
    """How many voxels of all segmentations of two folders differ."""
    different = total = 0
    for file in sorted(first.glob("*.nii.gz")):
        arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / file.name))) for folder in (first, second)]
        different, total = different + int((arrays[0] != arrays[1]).sum()), total + arrays[0].size
    return f"{different} of {total:,}"


def paired(model: Path, images: Path, folder: Path, rounds: int, *options: str) -> list[str]:
    """Cells of a row: medians of both commands, run in turns, and the median of the rounds' ratios."""
    scripts = Path(sys.executable).parent
    commands: list[list[str | Path]] = [
        [scripts / "nnUNetv2_predict_from_modelfolder"],
        [sys.executable, "-m", "nnunetv2_dinomed3d", "predict"],
    ]
    measured: list[list[Measured]] = [[], []]
    for number in range(rounds):
        for index, command in enumerate(commands):
            out = folder / f"out_{index}_{number}"
            words: list[str | Path] = [
                "-i",
                images,
                "-o",
                out,
                "-m",
                model,
                "-f",
                "0",
                "-device",
                "cpu",
                "--disable_progress_bar",
            ]
            measured[index].append(run(command + words + list(options)))
    theirs, ours = measured
    times, peaks = ([[getattr(one, name) for one in runs] for runs in measured] for name in ("seconds", "peak"))
    time_ratio = median(own.seconds / their.seconds for own, their in zip(ours, theirs, strict=True))
    memory_ratio = median(own.peak / their.peak for own, their in zip(ours, theirs, strict=True))
    return [
        *(f"{median(numbers):.0f}" for numbers in times),
        f"{time_ratio:.2f}",
        f"{MAX_TIME:.2f}",
        *(f"{median(numbers) / 1e9:.1f}" for numbers in peaks),
        f"{memory_ratio:.2f}",
        "",
        different_voxels(folder / "out_0_0", folder / "out_1_0"),
    ]


def hippocampus(folder: Path, rounds: int, images: Path) -> list[str]:
    """Real images, our smallest network, mirrored windows, nnU-Net's own patch."""
    made = plans({"3d_fullres": configuration((1, 1, 1), (40, 56, 40))})
    model = write_model(folder / "model", made, "3d_fullres", trainer="nnUNetTrainerDINOMed3D_nano", labels=labels(3))
    return [
        f"{len(list(images.glob('*_0000.nii.gz')))} cases of hippocampus, nano",
        *paired(model, images, folder, rounds),
    ]


def ct(folder: Path, rounds: int, images: Path) -> list[str]:
    """A whole case of a CT in 3d_lowres: nnU-Net's U-Net of 4 stages, 15 labels, no mirrored windows.

    nnU-Net plans 3d_lowres so that a case has about four times as many voxels as a patch.
    """
    made = plans({"3d_lowres": configuration((3, 2.6, 2.6), (32, 96, 96), (32, 64, 128, 256))})
    model = write_model(folder / "model", made, "3d_lowres", labels=labels(15))
    cells = paired(model, ct_like(folder / "images"), folder, rounds, "--disable_tta")
    cells[-2] = f"{MAX_MEMORY:.2f}"
    return ["CT of 120 x 512 x 512, 15 labels, U-Net", *cells]


def base(folder: Path, rounds: int, images: Path) -> list[str]:
    """Windows of a preprocessed case, with LoRA merged and slabs encoded once, beside nnU-Net's predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_dinomed3d.prediction.cases import Case, Preprocessed
    from nnunetv2_dinomed3d.prediction.model import load_model, make_predictor
    from nnunetv2_dinomed3d.prediction.pipeline import CasePredictor, Resources

    made = plans({"3d_fullres": configuration((1, 1, 1), BASE_PATCH)})
    model = write_model(folder / "model", made, "3d_fullres", trainer="nnUNetTrainerDINOMed3D", labels=labels(3))
    shape = (BASE_DEPTH, *BASE_PATCH[1:])
    image = torch.randn(1, *shape, generator=torch.manual_seed(0))
    box = [[0, side] for side in shape]
    properties = {
        "spacing": [1, 1, 1],
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": shape,
    }
    predictor: nnUNetPredictor = make_predictor("cpu", mirror=False)
    load_model(predictor, model, ["0"], "checkpoint_final.pth")
    theirs = make_predictor("cpu", mirror=False)
    load_model(theirs, model, ["0"], "checkpoint_final.pth")
    ours = CasePredictor(predictor, folder, Resources(int(4e9)))
    case = Preprocessed(Case("case", (), None), image, properties)
    calls: list[Callable[[], object]] = [
        lambda: theirs.predict_logits_from_preprocessed_data(image),
        lambda: ours.predict(case),
    ]
    taken = seconds(calls, rounds, warm_up=[])
    ratio = f"{taken[1] / taken[0]:.2f}"
    name = f"windows of {BASE_DEPTH} x 128 x 128, base, not mirrored"
    return [name, *(f"{number:.0f}" for number in taken), ratio, f"{MAX_TIME_BASE:.2f}", "", "", "", "", ""]


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each command (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, help="rows (default: all)")
    parser.add_argument("--images", type=Path, default=HIPPOCAMPUS, help="of the hippocampus (default: %(default)s)")
    arguments = parser.parse_args()
    makers = {"hippocampus": hippocampus, "ct": ct, "base": base}
    rows = []
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            if name == "hippocampus" and not arguments.images.is_dir():
                print(f"{arguments.images} is not there: no row of the hippocampus.", file=sys.stderr)
                continue
            rows.append(makers[name](Path(folder), arguments.rounds, arguments.images))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    about = (
        f"torch {torch.__version__}, {os.cpu_count()} cores; medians of {arguments.rounds} runs of each command, taken "
        "in turns, and of their ratios. Random weights."
    )
    print(to_markdown([Heading("Prediction"), Paragraph(about), Grid(COLUMNS, rows)], Path()))


if __name__ == "__main__":
    main()
