"""The rules of the comparison in words; docs/evaluation.md has them with their reasons."""

from nnunetv2_dinomed3d.evaluation.cases import Cases, listed
from nnunetv2_dinomed3d.evaluation.measure import Rules
from nnunetv2_dinomed3d.evaluation.statistics import RESAMPLES, SEED

SURFACE = (
    "The surface is the voxels with a face on something else; distances are in mm between their centres, with the "
    "image's spacing. HD95: 95th percentile of both directions pooled (MedPy's). Surface Dice: share of both "
    "surfaces' voxels within the tolerance (MONAI's): "
)
FIXED = (
    "Volume difference: prediction less truth.",
    "Mean of labels: each case's mean over the labels that have a value; in a comparison, over those in which both "
    "models do.",
    f"Intervals: 95% percentile bootstrap of the mean over cases, {RESAMPLES} resamples, seed {SEED}. They say how "
    "much the choice of cases matters, not how much another training would differ.",
    "Comparisons are paired by case, with the first model; cases in which only one has a value are left out. p: "
    "Wilcoxon's signed-rank test, two-sided; Holm's correction over labels, their mean and models, within each metric.",
    "A win is a case in which the model is better than the first one, by more than rounding.",
)


def rule_texts(rules: Rules, cases: Cases) -> list[str]:
    """One sentence or two for each rule, as this comparison applied it."""
    different = len(set(rules.tolerances.values())) > 1
    tolerances = [f"{name} {mm:g} mm" if different else f"{mm:g} mm" for name, mm in rules.tolerances.items()]
    one_empty = (
        "excluded from HD95 (--exclude-empty); the table of failures says how many"
        if rules.exclude_empty
        else "HD95 is the image's diagonal"
    )
    texts = [
        "Truth and prediction both empty: excluded from Dice, HD95 and surface Dice, and counted.",
        f"One of them empty: Dice and surface Dice are 0, {one_empty}.",
        SURFACE + ", ".join(dict.fromkeys(tolerances)) + ".",
        *FIXED,
    ]
    if rules.description.ignore is not None:
        texts.append(f"Voxels whose truth is the ignore label ({rules.description.ignore}) count for nothing.")
    if cases.left_out:
        count, which = len(cases.left_out), listed(cases.left_out, 20)
        texts.append(f"--common: {count} case(s) that some model did not predict are left out: {which}.")
    if any(model.folds for model in cases.models):
        texts.append("Every case was predicted by a fold that was not trained on it (splits_final.json).")
    else:
        texts.append("Predictions were given as folders: whether a model was trained on these cases is not known here.")
    return texts
