"""The result of a comparison, before it is written."""

from dataclasses import dataclass
from typing import Any

from nnunetv2_dinomed3d.evaluation.cases import PairedCases
from nnunetv2_dinomed3d.evaluation.measure import Measured, Measurement, Rules
from nnunetv2_dinomed3d.evaluation.paper_rules import grid_warning
from nnunetv2_dinomed3d.training_log import TrainingLog


@dataclass(frozen=True)
class Result:
    """A comparison.

    Attributes:
        title: of the report.
        dataset: nnU-Net's name of the data set; None if the predictions belong to none.
        measured: the measurements of each case.
        logs: the training logs by model and fold; without folds for given predictions.
        provenance: for summary.json.
    """

    title: str
    dataset: str | None
    cases: PairedCases
    rules: Rules
    measured: dict[str, Measured]
    logs: dict[str, dict[str, TrainingLog]]
    provenance: dict[str, Any]

    @property
    def measurements(self) -> list[Measurement]:
        """Every measurement, in the order of the cases."""
        return [measurement for case in self.measured.values() for measurement in case.measurements]

    @property
    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """The voxels of each case, (x, y, z)."""
        return {case: measured.size for case, measured in self.measured.items()}

    @property
    def warnings(self) -> list[str]:
        """A sentence for what was left out, for a grid that is not the paper's, for each case with an odd position."""
        notes = [model.note for model in self.cases.models if model.note]
        if self.rules.paper and (warning := grid_warning(self.sizes)):
            notes.append(f"--rules paper: {warning}")
        return notes + [warning for case in self.measured.values() for warning in case.warnings]
