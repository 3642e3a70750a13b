"""Trainings as a user names them: trainers or a table of the paper, with plans and configuration of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_dinomed3d.nnunet_files import model_folder
from nnunetv2_dinomed3d.trainer_names import SLICES, VOLUMES, expanded, takes_slices


class Training(NamedTuple):
    """The training of one trainer on one data set."""

    trainer: str
    plans: str
    configuration: str

    def folder(self, dataset: str) -> Path:
        """Its folder in ``nnUNet_results``; it need not exist."""
        return model_folder(dataset, self.trainer, self.plans, self.configuration)


def trainings_of(trainers: Sequence[str], plans: Sequence[str], configurations: Sequence[str]) -> list[Training]:
    """The trainings that ``-tr``, ``-p`` and ``-c`` name.

    Args:
        trainers: names, or tables of the paper such as ``TABLE1``.
        plans: one for all, or one for each trainer.
        configurations: likewise; one for all is for trainers of volumes, those of slices take ``2d``. None of them is
            ``3d_fullres``.

    Raises:
        ValueError: the numbers differ, or a training is named twice.
    """
    trainers = expanded(trainers)
    plans = _for_each("-p", "plans", plans, trainers)
    if len(configurations) > 1:
        configurations = _for_each("-c", "configurations", configurations, trainers)
    else:
        for_volumes = configurations[0] if configurations else VOLUMES
        configurations = [SLICES if takes_slices(trainer) else for_volumes for trainer in trainers]
    found = [Training(*words) for words in zip(trainers, plans, configurations, strict=True)]
    if len(set(found)) < len(found):
        raise ValueError(
            f"{' '.join(trainers)}: the same training twice; leave one out, or give each its plans with -p or its "
            "configuration with -c"
        )
    return found


def _for_each(option: str, what: str, words: Sequence[str], trainers: Sequence[str]) -> list[str]:
    if len(words) not in (1, len(trainers)):
        raise ValueError(f"{option} names {len(words)} {what} for {len(trainers)} trainers: give one, or one for each")
    return list(words) * len(trainers) if len(words) == 1 else list(words)


def names_of(trainings: Sequence[Training]) -> list[str]:
    """A name for each, for the report: the trainer's, with plans and configuration where it is there twice."""
    trainers = [training.trainer for training in trainings]
    names = []
    for training in trainings:
        others = [other for other in trainings if other.trainer == training.trainer]
        told = [part for part in ("plans", "configuration") if len({getattr(other, part) for other in others}) > 1]
        more = ", ".join(getattr(training, part) for part in told)
        names.append(training.trainer if trainers.count(training.trainer) == 1 else f"{training.trainer} ({more})")
    return names
