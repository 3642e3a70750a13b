"""A table of the paper on a user's data sets: the commands of its rows, and its cells from what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunetv2_dinomed3d.evaluation.cases import files_of
from nnunetv2_dinomed3d.evaluation.crossval import FoldJob, plan_jobs, with_shared_stage1
from nnunetv2_dinomed3d.evaluation.dataset_labels import read_dataset_labels
from nnunetv2_dinomed3d.evaluation.paper_rules import PaperRow, paper_table_row
from nnunetv2_dinomed3d.evaluation.paper_tables import METHODS, PaperFigure, paper_figure, paper_parameters
from nnunetv2_dinomed3d.evaluation.statistics import bootstrap_interval
from nnunetv2_dinomed3d.evaluation.trainings import Training, trainings_of
from nnunetv2_dinomed3d.nnunet_files import find_dataset_json, folder_of, is_validated, reference_folder
from nnunetv2_dinomed3d.training_log import read_logs

FOLD = "0"
"""The paper's split is fold 0, and a tenth of the patients in imagesTs."""

DATE_TOLERANCE = 2.0
"""Seconds by which a copy may change a file's date."""

TEST_FOLDER = "predictions_imagesTs"
"""Folder of a fold with the predictions of the test cases."""


@dataclass(frozen=True)
class Column:
    """A data set of the table.

    Attributes:
        dataset: nnU-Net's name.
        paper_name: that of `paper_tables.DATASETS`; None for a data set that the paper does not have.
    """

    dataset: str
    paper_name: str | None

    @property
    def test_images(self) -> Path | None:
        """The folder of test images; None if the data set has no labelled test cases."""
        raw = folder_of("nnUNet_raw") / self.dataset
        has_both = all((raw / name).is_dir() and any((raw / name).iterdir()) for name in ("imagesTs", "labelsTs"))
        return raw / "imagesTs" if has_both else None


@dataclass(frozen=True)
class PredictionJob(FoldJob):
    """The prediction of the test cases by a finished training."""

    @property
    def name(self) -> str:
        """Trainer and what is predicted, for messages."""
        return f"{self.trainer} imagesTs of {self.model.parent.name}"

    @property
    def command(self) -> list[str]:
        """The command line, which begins anew if it was interrupted."""
        return list(self.words)

    @property
    def environment(self) -> dict[str, str]:
        """No settings of its own."""
        return {}

    def refreshed(self) -> FoldJob:
        """The same job in its present state."""
        return replace(self, state="finished" if self._is_done() else "new")

    def owner(self) -> None:
        """No process: nnU-Net's prediction locks nothing."""

    def seconds_since_written(self) -> None:
        """Not known: a prediction has no log."""

    def _is_done(self) -> bool:
        images = Path(self.words[2])
        ending = read_dataset_labels(find_dataset_json(self.model.parent.name)).ending
        cases = {name.rpartition("_")[0] for name in files_of(images, ending)}
        return cases <= set(predictions_of(self.model, ending))


def predictions_of(model: Path, ending: str) -> dict[str, Path]:
    """The test cases' predictions by the training that is there: older ones are another training's, and left out.

    Args:
        model: the training's folder.
        ending: of the label maps.
    """
    fold = model / f"fold_{FOLD}"
    folder, final = fold / TEST_FOLDER, fold / "checkpoint_final.pth"
    if not folder.is_dir() or not final.is_file():
        return {}
    trained = final.stat().st_mtime - DATE_TOLERANCE
    return {case: path for case, path in files_of(folder, ending).items() if path.stat().st_mtime >= trained}


def jobs_of(
    table: str, columns: Sequence[Column], plans: Sequence[str], configurations: Sequence[str]
) -> list[FoldJob]:
    """The trainings of a table's rows on the data sets, and the predictions of their test cases.

    Args:
        table: such as ``TABLE1``.
        columns: data sets.
        plans, configurations: as in `trainings_of`.

    Raises:
        ValueError: a data set is not preprocessed, or a folder is in no clear state.
    """
    jobs: list[FoldJob] = []
    for column in columns:
        trainings = trainings_of([table], plans, configurations)
        trained = with_shared_stage1(plan_jobs(column.dataset, trainings, [FOLD]))
        jobs += trained
        if column.test_images is not None:
            jobs += [
                _prediction(column.test_images, training, job) for training, job in zip(trainings, trained, strict=True)
            ]
    return jobs


def _prediction(images: Path, training: Training, job: FoldJob) -> FoldJob:
    out = job.model / f"fold_{FOLD}" / TEST_FOLDER
    dataset = job.model.parent.name
    words = ["nnUNetv2_predict", "-i", str(images), "-o", str(out), "-d", dataset, "-f", FOLD, "-tr", training.trainer]
    words += ["-p", training.plans, "-c", training.configuration]
    return PredictionJob(training.trainer, FOLD, job.model, words, "new", waits_for=job).refreshed()


# ---- the table ----


@dataclass(frozen=True)
class Cell:
    """One trainer on one data set.

    Attributes:
        measured: by the paper's rules; None where nothing is there to be measured.
        paper: the paper's figure; None where it has none.
        missing: what is missing, in words; empty if nothing.
        part: the cases that were measured: "test" or "validation".
    """

    measured: PaperRow | None
    paper: PaperFigure | None
    missing: str = ""
    part: str = "test"

    def difference(self, metric: str) -> tuple[float, tuple[float, float] | None] | None:
        """Ours minus the paper's, with the bootstrap interval of our mean over the cases; None where one is missing.

        Args:
            metric: ``dsc`` or ``hd95``.
        """
        paper = None if self.paper is None else getattr(self.paper, metric)
        if self.measured is None or paper is None:
            return None
        values = np.asarray(getattr(self.measured, f"case_{metric}"), dtype=float)
        values = values[~np.isnan(values)] - paper
        return (float(values.mean()), bootstrap_interval(values)) if len(values) else None


@dataclass(frozen=True)
class Row:
    """A trainer's row.

    Attributes:
        trainer: its name.
        method: its name in the paper.
        parameters: of the network, as the training log says; None before it was trained.
        paper_parameters: in millions; None where the paper has none.
        cells: by name of the data set.
    """

    trainer: str
    method: str
    parameters: int | None
    paper_parameters: float | None
    cells: Mapping[str, Cell]


def rows_of(
    table: str, columns: Sequence[Column], plans: Sequence[str], configurations: Sequence[str], processes: int
) -> list[Row]:
    """The table's rows from what is there. Nothing is trained or predicted.

    Args:
        table, columns, plans, configurations: as in `jobs_of`.
        processes: that measure.
    """
    rows = []
    for training in trainings_of([table], plans, configurations):
        cells = {column.dataset: _cell(table, column, training, processes) for column in columns}
        known = [
            log.parameters[stage]
            for column in columns
            for log in [read_logs(training.folder(column.dataset) / f"fold_{FOLD}")]
            for stage in log.parameters
        ]
        method = METHODS.get(training.trainer, training.trainer) if table == "TABLE1" else training.trainer
        parameters = paper_parameters(training.trainer) if table == "TABLE1" else None
        rows.append(Row(training.trainer, method, max(known, default=None), parameters, cells))
    return rows


def _cell(table: str, column: Column, training: Training, processes: int) -> Cell:
    name = column.paper_name
    figure = None if name is None else paper_figure(table, training.trainer, name)
    model = training.folder(column.dataset)
    if not is_validated(model, FOLD):
        return Cell(None, figure, "not trained" if not model.is_dir() else "training not finished")
    labels = read_dataset_labels(find_dataset_json(column.dataset))
    if column.test_images is None:
        predictions = files_of(model / f"fold_{FOLD}" / "validation", labels.ending)
        references, part = files_of(reference_folder(column.dataset), labels.ending), "validation"
    else:
        predictions = predictions_of(model, labels.ending)
        references, part = files_of(column.test_images.with_name("labelsTs"), labels.ending), "test"
        if missing := len(references.keys() - predictions.keys()):
            return Cell(None, figure, f"{missing} of {len(references)} test cases not predicted")
    return Cell(paper_table_row(predictions, references, labels, processes), figure, part=part)
