"""Records of a training: its text log, its numbers, and its run at Weights & Biases (W&B)."""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.logging import nnunet_logger
from nnunetv2.training.logging.nnunet_logger import MetaLogger, WandbLogger, get_cluster_job_id
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.trainers.harness.best_epoch import updated_ema
from nnunetv2_dinomed3d.trainers.harness.progress_plot import GuardedPlotLogger

WANDB_ENABLED = "nnUNet_wandb_enabled"
WANDB_ID = "wandb_id"
"""Name under which a checkpoint's ``init_args`` hold the training's run at W&B."""

LAST_OF_EPOCH = "epoch_end_timestamps"
"""Name of the last value that nnU-Net logs in an epoch."""

LEARNING_RATE = "Current learning rate: "
"""Beginning of nnU-Net's line."""

STAMP = re.compile(r"\n(?=\s*\d{4}-\d\d-\d\d )")
"""A line break before what looks like a line of the log."""


def wandb_is_wanted() -> bool:
    """Whether nnU-Net's setting asks for W&B.

    Raises:
        ValueError: it has no value of nnU-Net's, or W&B is not installed.
    """
    value = os.environ.get(WANDB_ENABLED, "0")
    if value in ("0", "False", "false"):
        return False
    if value not in ("1", "True", "true"):
        raise ValueError(f"{WANDB_ENABLED} is {value!r}: set it to 1 to log to W&B, or to 0.")
    if nnunet_logger.wandb is None:
        raise ValueError(f"{WANDB_ENABLED} is {value}, but W&B is not installed: pip install wandb, or set it to 0.")
    return True


@contextmanager
def _without_wandb() -> Iterator[None]:
    """While open, nnU-Net's loggers do without W&B."""
    before = os.environ.get(WANDB_ENABLED)
    os.environ[WANDB_ENABLED] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WANDB_ENABLED]
        else:
            os.environ[WANDB_ENABLED] = before


class WandbRun(WandbLogger):
    """nnU-Net's logger to W&B, with a run whose name is known: nnU-Net takes the newest one in the folder.

    A failure after the run has begun is warned of once. It ends the run, not the training.

    Args:
        identifier: of the run; one that is there already is gone on with.
        resumed: whether it is.
        warn: takes a message.

    Raises:
        ValueError: W&B does not begin.
    """

    def __init__(self, output_folder: str, identifier: str, resumed: bool, warn: Callable[[str], None]) -> None:
        self.output_folder, self.resume, self._warn = Path(output_folder), resumed, warn
        try:
            self.run = nnunet_logger.wandb.init(
                project=os.environ.get("nnUNet_wandb_project", "nnunet"),
                dir=output_folder,
                id=identifier,
                resume="allow",
                mode=os.environ.get("nnUNet_wandb_mode"),  # without one, W&B looks for WANDB_MODE
            )
        except Exception as error:  # W&B's own errors have no class in common
            raise ValueError(
                f"W&B does not begin ({_reason(error)}). Log in (wandb login), or set nnUNet_wandb_mode=offline, or "
                f"{WANDB_ENABLED}=0."
            ) from error
        self.wandb_init_step = self.run.step
        self._of_epoch: dict[str, Any] = {}
        self.update_config({"JobID": get_cluster_job_id()})

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # likewise
            self.run = None
            self._warn(f"W&B failed ({_reason(error)}): nothing more is logged there.")

    def update_config(self, config: dict) -> None:
        """nnU-Net's; a resumed run's configuration may differ."""
        if self.run is not None:
            with self._guarded():
                self.run.config.update(config, allow_val_change=True)

    def log(self, key: str, value: Any, step: int) -> None:
        """nnU-Net's, when the epoch is over: of one that is broken off, W&B would keep the first values."""
        self._of_epoch[key] = value
        if key == LAST_OF_EPOCH:
            values, self._of_epoch = self._of_epoch, {}
            for name, known in values.items():
                if self.run is not None:
                    with self._guarded():
                        super().log(name, known, step)

    def log_summary(self, key: str, value: Any) -> None:
        if self.run is not None:
            with self._guarded():
                super().log_summary(key, value)

    def finish(self, exit_code: int, preempted: bool) -> None:
        """End the run at W&B, with all that was logged."""
        run, self.run = self.run, None
        if run is not None:
            with self._guarded():
                if preempted:
                    run.mark_preempting()
                run.finish(exit_code=exit_code)


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class TrainingLogger(MetaLogger):
    """nnU-Net's loggers, with an average of each part of a training, and W&B only when training begins.

    nnU-Net's average would run on from one part to the next, whose Dice can be of something else.

    Args:
        nnunets: the trainer's.
        config: told to nnU-Net's loggers before.
        numbers: of the training, and their picture.
        first_epoch: gives the first epoch of the part that an epoch belongs to.
        average: gives the average after an epoch: of those of the part's epochs before, and the epoch's Dice.
        warn: takes a message.
    """

    def __init__(
        self,
        nnunets: MetaLogger,
        config: dict,
        *,
        numbers: GuardedPlotLogger,
        first_epoch: Callable[[int], int],
        average: Callable[[list[float], float], float],
        warn: Callable[[str], None],
    ) -> None:
        self.output_folder, self.resume, self.loggers = nnunets.output_folder, nnunets.resume, nnunets.loggers
        self.local_logger = numbers
        self._configs, self._first_epoch, self._average, self._warn = [config], first_epoch, average, warn
        self._run: WandbRun | None = None

    def update_config(self, config: dict) -> None:
        self._configs.append(config)
        super().update_config(config)

    def log(self, key: str, value: Any, step: int) -> None:
        """nnU-Net's; it logs ``ema_fg_dice`` itself, which is replaced by the part's before any logger has it."""
        if key == "ema_fg_dice":
            first = self._first_epoch(step)
            value = self._average(self.get_value(key, step=None)[first:step], self.get_value("mean_fg_dice", step))
        super().log(key, value, step)

    def begin_run(self, identifier: str, resumed: bool) -> None:
        """Log to W&B from now on, what was told of the configuration too."""
        if self._run is None:
            self._run = WandbRun(self.output_folder, identifier, resumed, self._warn)
            for config in self._configs:
                self._run.update_config(config)
            self.loggers.append(self._run)

    def end_run(self, exit_code: int = 0, preempted: bool = False) -> None:
        """End the run at W&B, if there is one."""
        run, self._run = self._run, None
        if run is not None:
            self.loggers.remove(run)
            run.finish(exit_code, preempted)


class LoggedTrainer(nnUNetTrainer):
    """nnU-Net's trainer with `TrainingLogger`, and a text log whose lines cannot be forged.

    A training has one run at W&B, which its checkpoints name: ``--c`` and ``--val`` go on with it.
    """

    logger: TrainingLogger
    my_init_kwargs: dict[str, Any]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        self._wandb_is_wanted = wandb_is_wanted()
        with _without_wandb():  # nnU-Net would begin a run on every rank, also of a training that cannot start
            super().__init__(plans, configuration, fold, dataset_json, device)
        config = {"plans": plans, "configuration": configuration, "fold": fold, "dataset": dataset_json}
        self.logger = TrainingLogger(
            self.logger,
            config,
            numbers=self._make_numbers(self.logger.local_logger.verbose),
            first_epoch=self._first_epoch_of_part,
            average=self._average_dice,
            warn=self._warn,
        )

    def _make_numbers(self, verbose: bool) -> GuardedPlotLogger:
        """The logger that keeps the training's numbers."""
        return GuardedPlotLogger(verbose, self._warn)

    def _first_epoch_of_part(self, epoch: int) -> int:
        """First epoch of the part of the training that ``epoch`` belongs to. One part, unless a trainer has more."""
        return 0

    def _average_dice(self, past: list[float], dice: float) -> float:
        """The average that the best epoch is chosen by, after an epoch of this Dice; ``past`` are those before."""
        return updated_ema(past, dice)

    def _warn(self, message: str) -> None:
        self.print_to_log_file(f"WARNING: {message}")

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """nnU-Net's; control characters are escaped, and the learning rate has significant digits."""
        words = [str(arg) for arg in args]
        if words and words[0].startswith(LEARNING_RATE):
            words = [f"{LEARNING_RATE}{self.optimizer.param_groups[0]['lr']:.4g}"]  # nnU-Net's: 5 decimals
        if add_timestamp:
            words = [printable(word) for word in words]
        else:  # of nnU-Net's own, some have several lines
            words = ["\n".join(map(printable, STAMP.sub(r"\\n", word).split("\n"))) for word in words]
        super().print_to_log_file(*words, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    # ---- W&B ----

    def _begin_wandb(self) -> None:
        if not self._wandb_is_wanted or self.local_rank != 0:
            return
        known = self.my_init_kwargs.get(WANDB_ID)
        identifier = known or secrets.token_hex(4)
        self.logger.begin_run(identifier, known is not None)
        self.my_init_kwargs = {**self.my_init_kwargs, WANDB_ID: identifier}

    @contextmanager
    def _ending_wandb(self) -> Iterator[None]:
        """While open, a failure ends the run with the exit code that the process will have."""
        try:
            yield
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            self.logger.end_run(code, preempted=isinstance(error, SystemExit) and code != 0)
            raise

    def on_train_start(self) -> None:
        self._begin_wandb()
        super().on_train_start()

    def run_training(self) -> None:
        with self._ending_wandb():
            super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, the end of a training's run at W&B."""
        with self._ending_wandb():
            self._begin_wandb()
            super().perform_actual_validation(save_probabilities)
        self.logger.end_run()
