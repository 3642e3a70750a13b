"""The experiments behind docs/decisions.md: short trainings of the nano network that differ in one thing.

    python -m benchmarks.decisions RAW OUT [--choices NAME ...] [--seeds 0 1 2]
    python -m benchmarks.decisions --costs      # of the forms of the adapter: nothing is trained

RAW is the Medical Segmentation Decathlon's hippocampus task in nnU-Net's raw format, with ``labelsTs``. All its cases
make one data set: 30 are trained on, 20 are not, half of these from ``imagesTs``. Patches have 8 slices, a batch has
two. Each training starts from the same stage 1 unless its choice is about stage 1. The mean Dice of the unseen cases
is written to ``OUT/results.jsonl``, of the last epoch and of the one with the best moving average; what is there
already is not done again. An untrained nano ViT says little about DINOv3's: these are checks that nothing breaks.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.measure import flops, saved_bytes, seconds, training_step
from benchmarks.networks import build
from nnunetv2_dinomed3d.network_architecture import DINOMed3D, adapter, variants
from nnunetv2_dinomed3d.trainers.dinomed3d import slabs

DATASET = "Dataset004_Hippocampus"
PLANS = "nnUNetPlansSmall"
PATCH, BATCH = [8, 56, 40], 2
UNSEEN = 10
"""Cases of ``imagesTr`` that are not trained on, beside all of ``imagesTs``."""

Resampling = Callable[[int, int, int, Any], nn.Module]


def _coarser(make: Callable[[int, int], nn.Module]) -> Resampling:
    """The product's resampling, but coarser levels are made by ``make(channels, factor)``."""

    def resampling(channels: int, level_stride: int, token_stride: int, depth_alignment: Any) -> nn.Module:
        if level_stride > token_stride:
            return make(channels, level_stride // token_stride)
        return RESAMPLING(channels, level_stride, token_stride, depth_alignment)

    return resampling


def _strided(channels: int, factor: int) -> nn.Module:
    return nn.Conv3d(channels, channels, 3, stride=(1, factor, factor), padding=1)


def _wide(channels: int, factor: int) -> nn.Module:
    sides = (3, factor + 1, factor + 1)
    return nn.Conv3d(channels, channels, sides, stride=(1, factor, factor), padding=(1, factor // 2, factor // 2))


def _chain(channels: int, factor: int) -> nn.Module:
    return nn.Sequential(*(_strided(channels, 2) for _ in range(factor.bit_length() - 1)))


def _normalised_chain(channels: int, factor: int) -> nn.Module:
    between = [
        (adapter.InstanceNorm3d(channels), nn.PReLU(), _strided(channels, 2)) for _ in range(factor.bit_length() - 2)
    ]
    return nn.Sequential(_strided(channels, 2), *(part for parts in between for part in parts))


def _relative(channels: int, level_stride: int, token_stride: int, depth_alignment: Any) -> nn.Module:
    """The paper's relation to the token grid, x4, x2, 1 and 1/2, but never finer than 4 voxels."""
    return RESAMPLING(channels, max(4, level_stride * token_stride // 16), token_stride, depth_alignment)


RESAMPLING: Resampling = adapter._resample
FORMS: dict[str, Resampling] = {
    "strided": _coarser(_strided),  # one convolution of stride 2, 4 or 8: drops tokens
    "relative": _relative,
    "chain": _coarser(_chain),
    "normalised-chain": _coarser(_normalised_chain),
    "pooled": RESAMPLING,  # the product's: a mean over tokens, then a convolution of stride 2
    "wide": _coarser(_wide),
}


@dataclass(frozen=True)
class Choice:
    """Difference of a training from the product's.

    Attributes:
        form: of the adapter; None for the product's.
        scale: in-plane scale S; None for the product's.
        trainer: attributes of the trainer.
        stages: that are trained; with stage 1 alone its own predictions are measured.
    """

    form: str | None = None
    scale: int | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    stages: tuple[int, ...] = (1, 2)


def _as_nnunet(self: Any) -> tuple:
    """Stage 1's rotation by any angle and flips along all axes."""
    with mock.patch.multiple(slabs, IN_PLANE_ROTATION=(-np.pi, np.pi), FLIPPED_AXES=(0, 1, 2)):
        return super(type(self), self).configure_rotation_dummyDA_mirroring_and_inital_patch_size()


LONGER = {"stage1_epochs": 6}
CHOICES = {
    **{f"adapter-{form}": Choice(form) for form in FORMS},
    **{f"adapter-{form}-S2": Choice(form, scale=2) for form in FORMS},
    "stage1-15-degrees": Choice(trainer=LONGER, stages=(1,)),  # the product's
    "stage1-all-angles": Choice(
        trainer={**LONGER, "configure_rotation_dummyDA_mirroring_and_inital_patch_size": _as_nnunet}, stages=(1,)
    ),
}


def prepare(raw: Path, out: Path) -> None:
    """The data set, its plans with the small patch, and its split, in ``out``."""
    if (out / "prepared").exists():
        return
    target = out / "nnUNet_raw" / DATASET
    for kind in ("images", "labels"):
        (target / f"{kind}Tr").mkdir(parents=True)
        for part in ("Tr", "Ts"):
            for file in (raw / f"{kind}{part}").glob("*.nii.gz"):
                shutil.copy(file, target / f"{kind}Tr" / file.name)
    description = json.loads((raw / "dataset.json").read_text())
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (target / "labelsTr").iterdir())
    (target / "dataset.json").write_text(json.dumps({**description, "numTraining": len(cases)}))
    subprocess.run(["nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "2"], check=True)
    folder = out / "nnUNet_preprocessed" / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"]}
    plans["configurations"]["3d_fullres"] |= {"patch_size": PATCH, "batch_size": BATCH}
    (folder / f"{PLANS}.json").write_text(json.dumps({**plans, "plans_name": PLANS}))
    test = {file.name.removesuffix(".nii.gz") for file in (raw / "labelsTs").glob("*.nii.gz")}
    unseen = sorted(test) + [case for case in cases if case not in test][-UNSEEN:]
    split = {"train": [case for case in cases if case not in unseen], "val": unseen}
    (folder / "splits_final.json").write_text(json.dumps([split]))
    (out / "prepared").touch()


def _trainer(choice: Choice, name: str) -> Any:
    """A trainer of that choice; its name is that of the results folder."""
    from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano

    if choice.form:
        adapter._resample = FORMS[choice.form]  # type: ignore[assignment]
    if choice.scale:
        variants.in_plane_scale = lambda patch_size: cast(int, choice.scale)
    trainer_class = type(name, (nnUNetTrainerDINOMed3D_nano,), {"stages": choice.stages, **choice.trainer})
    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    description = json.loads((folder / "dataset.json").read_text())
    return trainer_class({**plans, "continue_training": False}, "3d_fullres", 0, description, torch.device("cpu"))


def _seed(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


def unseen_dice(trainer: Any) -> float:
    """Mean over the unseen cases and both labels, without mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    managers = trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json
    trainer.module.eval()
    predictor.manual_initialization(trainer.module, *managers, type(trainer).__name__, None)
    _, cases = trainer.do_split()
    data = trainer.dataset_class(trainer.preprocessed_dataset_folder, cases)
    found = []
    for case in cases:
        image, truth, *_ = data.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(image[:])))
        predicted, truth = logits.argmax(0).numpy(), np.asarray(truth[:])[0]
        for label in trainer.label_manager.foreground_labels:
            a, b = predicted == label, truth == label
            found.append(2 * np.sum(a & b) / max(1, a.sum() + b.sum()))
    return float(np.mean(found))


def train(name: str, seed: int, out: Path) -> None:
    """One training; writes a line of results."""
    choice = CHOICES[name]
    if choice.stages == (1, 2):
        os.environ["DINOMED3D_STAGE1"] = str(stage1(choice, out))
    trainer = _trainer(choice, f"nnUNetTrainer_{name}_{seed}".replace("-", "_"))
    _seed(seed)
    trainer.run_training()
    trainer.module.set_stage(max(choice.stages))
    result = {"choice": name, "seed": seed, "last": unseen_dice(trainer)}
    best = torch.load(Path(trainer.output_folder) / "checkpoint_best.pth", weights_only=False)
    result["best"] = result["last"]
    if best["current_epoch"] < trainer.num_epochs:
        trainer.module.load_state_dict(best["network_weights"])
        result["best"] = unseen_dice(trainer)
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def stage1(choice: Choice, out: Path) -> Path:
    """The checkpoint of stage 1 that all trainings of an in-plane scale start from; trained if it is not there."""
    name = f"nnUNetTrainer_start_S{choice.scale or 0}"
    folder = out / "nnUNet_results" / DATASET / f"{name}__{PLANS}__3d_fullres" / "fold_0"
    if not (folder / "checkpoint_final.pth").is_file():
        words = ["--stage1", str(choice.scale or 0), str(out)]
        subprocess.run([sys.executable, "-m", "benchmarks.decisions", *words], check=True)
    return folder / "checkpoint_final.pth"


def train_stage1(scale: int, out: Path) -> None:
    """Stage 1 alone."""
    _seed(0)
    _trainer(Choice(scale=scale or None, stages=(1,)), f"nnUNetTrainer_start_S{scale}").run_training()


def table(out: Path) -> str:
    """Mean and standard deviation of the Dice over the seeds of each choice."""
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    lines = ["| choice | seeds | Dice, last epoch | | best epoch | |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(result["choice"] for result in results):
        of_choice = [result for result in results if result["choice"] == name]
        cells = []
        for key in ("last", "best"):
            values = [result[key] for result in of_choice]
            spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
            cells += [f"{mean(values):.3f} +- {spread}", ", ".join(f"{value:.3f}" for value in values)]
        lines.append(f"| {name} | {len(of_choice)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs() -> str:
    """Costs of a training step of nano on a batch of the experiments, for each form of the adapter."""
    lines = ["| S | form | parameters (M) | step GFLOP | saved MB | step s |", "|---|---|---|---|---|---|"]
    for scale in (2, 4):
        steps, counts = [], []
        for form, resampling in FORMS.items():
            with mock.patch.object(adapter, "_resample", resampling):
                net = build(DINOMed3D, "nano", scale)
            net.set_stage(2)
            x = torch.randn(BATCH, 1, *PATCH)
            steps.append(training_step(net, x))
            parameters = sum(parameter.numel() for parameter in net.adapter.parameters()) / 1e6
            kept = saved_bytes(lambda net=net, x=x: net(x)) / 1e6  # type: ignore[misc]
            counts.append(f"| {scale} | {form} | {parameters:.2f} | {flops(steps[-1]) / 1e9:.1f} | {kept:.0f} |")
        times = seconds(steps, rounds=9)  # in turns
        lines += [f"{count} {time:.2f} |" for count, time in zip(counts, times, strict=True)]
    return "\n".join(lines)


def main() -> None:
    words = sys.argv[1:]
    if words == ["--costs"]:
        print(costs())
        return
    if words[:1] == ["--stage1"]:
        train_stage1(int(words[1]), Path(words[2]))
        return
    if words[:1] == ["--train"]:
        train(words[1], int(words[2]), Path(words[3]))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions")
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    out = args.out.resolve()
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str(out / f"nnUNet_{kind}")
        (out / f"nnUNet_{kind}").mkdir(parents=True, exist_ok=True)
    prepare(args.raw, out)
    os.environ["nnUNet_n_proc_DA"] = "0"
    log = out / "results.jsonl"
    log.touch()
    for seed in args.seeds:
        for name in args.choices:
            done = [json.loads(line) for line in log.read_text().splitlines()]
            if not any((result["choice"], result["seed"]) == (name, seed) for result in done):
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.decisions", "--train", name, str(seed), str(out)], check=True
                )
    print(table(out))


if __name__ == "__main__":
    main()
