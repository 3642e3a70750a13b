"""What nnU-Net's text logs (``training_log_*.txt``) say of a training. What they do not say is blank."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: "
EPOCH = re.compile(STAMP + r"Epoch (\d+)\s*$")
STAGE = re.compile(STAMP + r"DINO-Med3D stage (\d): ([\d,]+)(?: of ([\d,]+))? parameters are trained")
VALUES = re.compile(STAMP + r"(train_loss|val_loss|Pseudo dice|Epoch time:) (.*)$")


@dataclass
class Epoch:
    """One epoch; NaN is what the log does not say (an epoch that was cut off).

    Attributes:
        stage: of DINO-Med3D; 0 for other trainers.
        pseudo_dice: mean over the labels.
    """

    stage: int
    train_loss: float = float("nan")
    val_loss: float = float("nan")
    pseudo_dice: float = float("nan")
    seconds: float = float("nan")


@dataclass
class TrainingLog:
    """A training, resumed or not.

    Attributes:
        epochs: by number; what was done again after a resumption stands as it was done last.
        trained: of each stage, how many parameters are trained.
        parameters: of each stage, how many there are.
    """

    epochs: dict[int, Epoch] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    parameters: dict[int, int] = field(default_factory=dict)

    @property
    def finished(self) -> dict[int, Epoch]:
        """The epochs that came to their end, in order."""
        return {n: e for n, e in sorted(self.epochs.items()) if not np.isnan(e.seconds)}

    @property
    def switch(self) -> int | None:
        """The first epoch of stage 2, if stage 1 is there too."""
        stages = {n: e.stage for n, e in self.finished.items()}
        return next((n for n, stage in stages.items() if stage == 2 and 1 in stages.values()), None)

    def seconds(self) -> dict[int, float]:
        """Of each stage, the median of its epochs' seconds."""
        groups: dict[int, list[float]] = {}
        for epoch in self.finished.values():
            groups.setdefault(epoch.stage, []).append(epoch.seconds)
        return {stage: median(times) for stage, times in groups.items()}


def _numbers(text: str) -> list[float]:
    """Those of ``0.1``, ``7.52 s`` or ``[np.float32(0.1), nan]``."""
    plain = re.sub(r"np\.\w+\(([^)]*)\)", r"\1", text)
    return [float(word) for word in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?|nan", plain)]


def _read_lines(lines: Iterator[str], log: TrainingLog) -> None:
    stage, epoch = 0, Epoch(0)  # what stands before the first epoch goes nowhere
    for line in lines:
        if match := STAGE.match(line):
            stage = int(match[1])
            log.trained[stage] = int(match[2].replace(",", ""))
            if match[3]:
                log.parameters[stage] = int(match[3].replace(",", ""))
        elif match := EPOCH.match(line):
            epoch = log.epochs[int(match[1])] = Epoch(stage)
        elif match := VALUES.match(line):
            numbers = _numbers(match[2])
            if match[1] == "Pseudo dice":
                known = [x for x in numbers if not np.isnan(x)]
                epoch.pseudo_dice = float(np.mean(known)) if known else float("nan")
            elif numbers:
                name = {"train_loss": "train_loss", "val_loss": "val_loss", "Epoch time:": "seconds"}[match[1]]
                setattr(epoch, name, numbers[0])


def read_logs(fold: Path) -> TrainingLog:
    """The logs in a fold's folder, oldest first; empty if there are none."""
    log = TrainingLog()
    for path in sorted(
        fold.glob("training_log_*.txt"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]
    ):
        with path.open(encoding="utf-8", errors="replace") as lines:
            _read_lines(lines, log)
    return log
