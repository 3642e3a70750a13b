"""What nnU-Net's text logs (``training_log_*.txt``) say of a training. What they do not say is blank."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

LINE = 100_000
"""Characters of a line that are read at a time."""
STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: "
EPOCH = re.compile(STAMP + r"Epoch ([0-9]{1,9})\s*$")
STAGE = re.compile(STAMP + r"DINO-Med3D stage ([12]): ([0-9,]{1,20})(?: of ([0-9,]{1,20}))? parameters are trained")
DONE = re.compile(STAMP + r"Training done\.\s*$")
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
        done: whether the training came to its end.
        trained: of each stage, how many parameters are trained.
        parameters: of each stage, how many there are.
    """

    epochs: dict[int, Epoch] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    parameters: dict[int, int] = field(default_factory=dict)
    done: bool = False

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
    """Those of ``0.1``, ``7.52 s`` or ``[np.float32(0.1), nan]``; what is not finite is NaN."""
    plain = re.sub(r"np\.\w+\(([^)]*)\)", r"\1", text)
    numbers = [float(word) for word in re.findall(r"[-+]?[0-9]+\.?[0-9]*(?:e[-+]?[0-9]+)?|nan|inf", plain)]
    return [number if np.isfinite(number) else float("nan") for number in numbers]


def _count(text: str) -> int:
    return int(text.replace(",", "") or 0)


def _read_lines(lines: Iterable[str]) -> TrainingLog:
    """The log of one process. Epochs go up by one; a line that says otherwise is not nnU-Net's."""
    log, stage, epoch, following = TrainingLog(), 0, Epoch(0), None  # what stands before an epoch goes nowhere
    for line in lines:
        if match := STAGE.match(line):
            stage = int(match[1])
            log.trained[stage] = _count(match[2])
            if match[3]:
                log.parameters[stage] = _count(match[3])
        elif match := EPOCH.match(line):
            if following in (None, int(match[1])):
                epoch = log.epochs[int(match[1])] = Epoch(stage)
                following = int(match[1]) + 1
        elif DONE.match(line):
            log.done = True
        elif match := VALUES.match(line):
            numbers = _numbers(match[2])
            if match[1] == "Pseudo dice":
                known = [x for x in numbers if not np.isnan(x)]
                epoch.pseudo_dice = float(np.mean(known)) if known else float("nan")
            elif numbers:
                name = {"train_loss": "train_loss", "val_loss": "val_loss", "Epoch time:": "seconds"}[match[1]]
                setattr(epoch, name, numbers[0])
    return log


def log_files(fold: Path) -> list[Path]:
    """The logs in a fold's folder, oldest first."""
    files = [path for path in fold.glob("training_log_*.txt") if path.is_file()]
    return sorted(files, key=lambda path: ([int(n) for n in re.findall(r"[0-9]+", path.name)], path.name))


def read_log(path: Path) -> TrainingLog:
    """The log of one process, which is a training or a part of one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _read_lines(iter(lambda: file.readline(LINE), ""))


def read_logs(fold: Path) -> TrainingLog:
    """The last training of a fold's folder, of all its logs; empty if there are none.

    A process that begins at epoch 0 began anew: what was logged before is of another training. One that begins later
    goes on, and what was done beyond that epoch before was not kept.
    """
    log = TrainingLog()
    for part in map(read_log, log_files(fold)):
        first = min(part.epochs, default=None)
        if first == 0:
            log = part
        elif first is not None:
            kept = {number: epoch for number, epoch in log.epochs.items() if number < first}
            log = TrainingLog(
                kept | part.epochs, log.trained | part.trained, log.parameters | part.parameters, part.done
            )
    return log
