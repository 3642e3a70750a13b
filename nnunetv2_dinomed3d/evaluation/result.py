"""All that is known when everything is measured."""

from dataclasses import dataclass
from typing import Any

from nnunetv2_dinomed3d.evaluation.cases import Cases
from nnunetv2_dinomed3d.evaluation.measure import Measured, Measurement, Rules
from nnunetv2_dinomed3d.training_log import TrainingLog


@dataclass(frozen=True)
class Result:
    """A comparison.

    Attributes:
        measured: of each case, what was measured.
        logs: of each model and fold; empty for given predictions.
        provenance: for summary.json.
    """

    title: str
    dataset: str | None
    cases: Cases
    rules: Rules
    measured: dict[str, Measured]
    logs: dict[str, dict[str, TrainingLog]]
    provenance: dict[str, Any]

    @property
    def measurements(self) -> list[Measurement]:
        """In the order of the cases."""
        return [measurement for case in self.measured.values() for measurement in case.measurements]

    @property
    def warnings(self) -> list[str]:
        """What was left out, and cases that lie oddly."""
        odd = [warning for case in self.measured.values() for warning in case.warnings]
        return [model.note for model in self.cases.models if model.note] + odd
