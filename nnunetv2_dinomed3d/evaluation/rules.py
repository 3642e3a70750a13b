"""The rules of a comparison in words. docs/evaluation.md gives them with their reasons."""

from nnunetv2_dinomed3d.evaluation.cases import PairedCases
from nnunetv2_dinomed3d.evaluation.measure import Rules
from nnunetv2_dinomed3d.evaluation.statistics import RESAMPLES, SEED
from nnunetv2_dinomed3d.text import join_first

SURFACE = (
    "Surface: the voxels of a structure with at least one face on something else. Distances are in mm between voxel "
    "centres, with the image's spacing. HD95: 95th percentile of the distances in both directions, pooled (as MedPy). "
    "Surface Dice: share of both surfaces' voxels that lie within the tolerance of the other surface (as MONAI). "
    "Tolerance: "
)
FIXED = (
    "Volume difference: prediction minus reference.",
    "Mean of labels: the mean over the labels that have a value, case by case; in a comparison, over the labels in "
    "which both models have one.",
    f"Intervals: 95% percentile bootstrap of the mean over cases, {RESAMPLES:,} resamples, seed {SEED}. They show how "
    "much the choice of cases matters, not how much another training would differ.",
    "Comparisons are paired by case, with the first model. Cases in which only one of the two has a value are left "
    "out. p: Wilcoxon's signed-rank test, two-sided. p (Holm): corrected over labels, their mean and models, within "
    "each metric.",
    "A win is a case in which the model is better than the first one by more than rounding.",
)
PAPER = (
    "The paper's rules (--rules paper; those of its released code) hold in the columns named paper alone. Both empty: "
    "Dice is 1 and HD95 0. One of them empty: Dice is 0, and the case is left out of HD95. HD95 has a spacing of 1 "
    "along every axis, so its unit is a voxel. A label's mean is taken over the cases, the mean of labels over those "
    "means."
)


def rule_texts(rules: Rules, cases: PairedCases) -> list[str]:
    """A sentence or two for each rule, as this comparison applied it."""
    different = len(set(rules.tolerances.values())) > 1
    tolerances = [f"{name} {mm:g} mm" if different else f"{mm:g} mm" for name, mm in rules.tolerances.items()]
    one_empty = "it is excluded from HD95 (--exclude-empty)" if rules.exclude_empty else "HD95 is the image's diagonal"
    texts = [
        "Reference and prediction both empty: excluded from Dice, HD95 and surface Dice, and counted.",
        f"One of them empty (a false negative or false positive structure): Dice and surface Dice are 0, {one_empty}, "
        "and it is counted.",
        SURFACE + ", ".join(dict.fromkeys(tolerances)) + ".",
        *FIXED,
    ]
    if rules.labels.ignore is not None:
        texts.append(f"Voxels whose reference is the ignore label ({rules.labels.ignore}) count for nothing.")
    if rules.paper:
        texts.append(PAPER)
    if cases.left_out:
        count, which = len(cases.left_out), join_first(cases.left_out, 20)
        texts.append(f"--common: {count} case(s) that some model did not predict are left out: {which}.")
    if any(model.folds for model in cases.models):
        texts.append("Every case was predicted by a fold that was not trained on it (splits_final.json).")
    else:
        texts.append(
            "Predictions were given as folders: it is not known here whether a model was trained on these cases."
        )
    return texts
