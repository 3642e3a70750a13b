"""The result of a comparison, before it is written."""

from dataclasses import dataclass
from typing import Any

from nnunetv2_dinomed3d.evaluation.cases import PairedCases
from nnunetv2_dinomed3d.evaluation.measure import Measured, Measurement, Rules
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
    def warnings(self) -> list[str]:
        """A sentence for everything that was left out, and for every case with an odd position."""
        odd = [warning for case in self.measured.values() for warning in case.warnings]
        return [model.note for model in self.cases.models if model.note] + odd
