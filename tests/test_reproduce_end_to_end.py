"""Made-up downloads through every command up to the paper's table."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.trainer_names import TABLES
from tests.conftest import preprocess
from tests.made_up_downloads import acdc, aisd, brats, msd
from tests.tiny_baselines import short_trainings

Run = Callable[..., str]

PATIENTS = tuple(range(1, 11))
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "aisd": partial(aisd, cases=("0091465", "0072723", "0226290", "0537908")),  # with all five labels
    "msd-pancreas": msd,
    "brats2020": brats,
    "acdc": acdc,
}
TRAINER = "nnUNetTrainerQuickUnmirrored"


def add_test_cases(raw: Path, names: list[str]) -> None:
    """Copies of training cases as labelled test cases."""
    for kind, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (raw / f"{kind}Ts").mkdir(exist_ok=True)
        for name in names:
            shutil.copy(raw / f"{kind}Tr" / f"{name}{ending}", raw / f"{kind}Ts")


@pytest.mark.long
def test_table_1_on_two_data_sets(run: Run, nnunet_environment: dict[str, str], tmp_path: Path) -> None:
    """One channel and labelled test cases; four channels, regions, and a validation alone."""
    raw = Path(nnunet_environment["nnUNet_raw"])
    for name, download in (
        ("acdc", acdc(tmp_path / "a", PATIENTS, ())),
        ("brats2020", brats(tmp_path / "b", PATIENTS)),
    ):
        run("dinomed3d", "dataset", name, download, "--plain", "--incomplete")
    datasets = sorted(folder.name for folder in raw.glob("Dataset51*"))
    (of_acdc,) = raw.glob("Dataset51*ACDC*")
    add_test_cases(of_acdc, sorted(file.name.removesuffix(".nii.gz") for file in (of_acdc / "labelsTr").iterdir())[:2])
    for dataset in datasets:
        preprocess(run, dataset.partition("_")[0].removeprefix("Dataset"), "2d", "3d_fullres")
    settings = {
        **short_trainings(tmp_path / "bin"),
        "DINOMED3D_WEIGHTS": "random",
        "nnUNet_compile": "f",
    }
    out = tmp_path / "table"
    run("dinomed3d", "reproduce", "table1", "-d", *datasets, "--run", "-o", out, **settings)
    with (out / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["trainer"]) for row in rows] == [(d, t) for d in datasets for t in TABLES["TABLE1"]]
    for row in rows:
        assert row["missing"] == "", row
        assert 0 <= float(row["DSC"]) <= 100
        assert row["M parameters"] or row["trainer"].startswith("nnUNetTrainer_")
        assert row["DSC, paper"] == "", "images as they are cannot stand beside the paper's"
    assert {row["cases"] for row in rows if row["dataset"] == of_acdc.name} == {"2 test"}
    print(f"kept: {os.listdir(out)}")


def take_small_patches(plans: Path) -> None:
    """At most 128 x 128 voxels in plane, which two cores train on in seconds."""
    content = json.loads(plans.read_text())
    patch = content["configurations"]["3d_fullres"]["patch_size"]
    content["configurations"]["3d_fullres"]["patch_size"] = [patch[0], *(min(128, side) for side in patch[1:])]
    plans.write_text(json.dumps(content))


@pytest.mark.long
@pytest.mark.parametrize("how", ["--as-paper", "--plain"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_up_to_the_comparison(
    run: Run, nnunet_environment: dict[str, str], tmp_path: Path, name: str, how: str
) -> None:
    """Converted, planned, trained for two iterations an epoch, predicted and compared, by the paper's rules too."""
    all_raw = Path(nnunet_environment["nnUNet_raw"])
    before = set(all_raw.iterdir())
    run("dinomed3d", "dataset", name, LAYOUTS[name](tmp_path / "download"), how, "--incomplete")
    (raw,) = set(all_raw.iterdir()) - before
    number = raw.name.partition("_")[0].removeprefix("Dataset")
    preprocess(run, number, "3d_fullres")
    take_small_patches(Path(nnunet_environment["nnUNet_preprocessed"], raw.name, "nnUNetPlans.json"))
    is_split = how == "--as-paper"
    fold, part = ("0", "Ts") if is_split else ("all", "Tr")
    model = ("-tr", TRAINER, "-c", "3d_fullres", "-f", fold)
    run("nnUNetv2_train", number, "3d_fullres", fold, "-tr", TRAINER, "-device", "cpu")
    images, predicted = raw / f"images{part}", tmp_path / "predicted"
    run("nnUNetv2_predict", "-d", number, "-i", images, "-o", predicted, *model, "-device", "cpu", "--disable_tta")
    by_paper = ("dinomed3d", "compare", number, "--rules", "paper")
    run(*by_paper, "--pred", f"{TRAINER}={predicted}", "--gt", raw / f"labels{part}", "-o", tmp_path / "test")
    assert compared(tmp_path / "test") == names_of(predicted)
    if is_split:
        run(*by_paper, *model, "-o", tmp_path / "validation")
        (validated,) = Path(nnunet_environment["nnUNet_results"], raw.name).glob("*/fold_0/validation")
        assert compared(tmp_path / "validation") == names_of(validated)


def compared(report: Path) -> set[str]:
    """The cases of a comparison that is by the paper's rules too."""
    assert "rules beside ours" in (report / "report.html").read_text()
    with (report / "cases.csv").open(newline="") as file:
        return {row["case"] for row in csv.DictReader(file)}


def names_of(folder: Path) -> set[str]:
    names = {path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")}
    assert names
    return names
