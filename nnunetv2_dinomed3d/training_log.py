"""The text logs of a training (``training_log_*.txt``): the line about a stage is written and read here.

Everything else in a log is nnU-Net's own. What a log does not say is NaN or absent.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

LINE = 100_000
"""Characters of a line that are read at a time."""
STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: "
EPOCH = re.compile(STAMP + r"Epoch ([0-9]{1,9})\s*$")
STAGE = re.compile(STAMP + r"Stage ([1-9]): ([0-9,]{1,20}) of ([0-9,]{1,20}) parameters trained\b")
OLD_STAGE = re.compile(STAMP + r"DINO-Med3D stage ([12]): ([0-9,]{1,20}) parameters are trained")
"""The line of earlier versions, which did not say how many parameters there are."""
DONE = re.compile(STAMP + r"Training done\.\s*$")
VALUES = re.compile(STAMP + r"(train_loss|val_loss|Pseudo dice|Epoch time:) (.*)$")


def stage_line(stage: int, trained: int, parameters: int, note: str = "") -> str:
    """The log's line that opens a stage of a training, without nnU-Net's date.

    Args:
        stage: counted from 1; a network that is trained in one go has stage 1 only.
        trained: parameters that the stage trains.
        parameters: all parameters of the network.
        note: appended, such as "24 slabs a batch".
    """
    assert 1 <= stage <= 9, "read_log knows stages 1 to 9"
    return f"Stage {stage}: {trained:,} of {parameters:,} parameters trained{', ' if note else ''}{note}."


@dataclass
class Epoch:
    """One epoch. NaN is what the log does not say, as of an epoch that was interrupted.

    Attributes:
        stage: of the training, from 1; 0 if the log names none (nnU-Net's own trainers).
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
        epochs: by number; an epoch that was repeated after a resumption stands as it was last.
        trained: parameters that each stage trains.
        parameters: all parameters of the network, by stage.
        done: whether the training reached its end.
    """

    epochs: dict[int, Epoch] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    parameters: dict[int, int] = field(default_factory=dict)
    done: bool = False

    @property
    def finished(self) -> dict[int, Epoch]:
        """The complete epochs, in order."""
        return {n: e for n, e in sorted(self.epochs.items()) if not math.isnan(e.seconds)}

    @property
    def switch(self) -> int | None:
        """The first epoch of stage 2; None if the log does not show both stages."""
        stages = {n: e.stage for n, e in self.finished.items()}
        return next((n for n, stage in stages.items() if stage == 2 and 1 in stages.values()), None)

    def seconds(self) -> dict[int, float]:
        """The median duration of an epoch in seconds, by stage."""
        groups: dict[int, list[float]] = {}
        for epoch in self.finished.values():
            groups.setdefault(epoch.stage, []).append(epoch.seconds)
        return {stage: median(times) for stage, times in groups.items()}


def _numbers(text: str) -> list[float]:
    """The numbers in ``0.1``, ``7.52 s`` or ``[np.float32(0.1), nan]``; infinite ones become NaN."""
    plain = re.sub(r"np\.\w+\(([^)]*)\)", r"\1", text)
    numbers = [float(word) for word in re.findall(r"[-+]?[0-9]+\.?[0-9]*(?:e[-+]?[0-9]+)?|nan|inf", plain)]
    return [number if math.isfinite(number) else float("nan") for number in numbers]


def _count(text: str) -> int:
    return int(text.replace(",", "") or 0)


def _read_stage(line: str, log: TrainingLog) -> int | None:
    """The stage that a line opens, its counts noted in the log; None if it opens none."""
    if match := STAGE.match(line):
        log.parameters[int(match[1])] = _count(match[3])
    elif not (match := OLD_STAGE.match(line)):
        return None
    log.trained[int(match[1])] = _count(match[2])
    return int(match[1])


def _read_value(name: str, text: str, epoch: Epoch) -> None:
    """Note in the epoch what a line says of it."""
    numbers = _numbers(text)
    if name == "Pseudo dice":
        known = [number for number in numbers if not math.isnan(number)]
        epoch.pseudo_dice = fmean(known) if known else float("nan")
    elif numbers:
        setattr(epoch, {"Epoch time:": "seconds"}.get(name, name), numbers[0])


def _read_lines(lines: Iterable[str]) -> TrainingLog:
    """The log of one process. Epochs count up by one: a line that breaks the count is not nnU-Net's."""
    log, stage, following = TrainingLog(), 0, None
    epoch = Epoch(0)  # takes the values that stand before the first epoch, and is dropped
    for line in lines:
        if (opened := _read_stage(line, log)) is not None:
            stage = opened
        elif match := EPOCH.match(line):
            if following in (None, int(match[1])):
                epoch = log.epochs[int(match[1])] = Epoch(stage)
                following = int(match[1]) + 1
        elif DONE.match(line):
            log.done = True
        elif match := VALUES.match(line):
            _read_value(match[1], match[2], epoch)
    return log


def log_files(fold: Path) -> list[Path]:
    """The logs in a fold's folder, oldest first."""
    files = [path for path in fold.glob("training_log_*.txt") if path.is_file()]
    return sorted(files, key=lambda path: ([int(n) for n in re.findall(r"[0-9]+", path.name)], path.name))


def read_log(path: Path) -> TrainingLog:
    """The log of one process: a training, or a part of one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _read_lines(iter(lambda: file.readline(LINE), ""))


def read_logs(fold: Path) -> TrainingLog:
    """The last training in a fold's folder, from all its logs; empty if there are none.

    A process that starts at epoch 0 starts a new training: earlier logs belong to another one. A process that starts
    later resumes, and the epochs beyond its first one were not kept.
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
