"""The harness: what a trainer of any network gets beyond nnU-Net's.

Checks before training starts, 16-bit arithmetic that suits the device, a memory warning, a folder that belongs to one
training, checkpoints that are verified and belong to this training, the best epoch also after a kill. A network's
trainer derives from `HarnessTrainer`, and overrides the hooks that it needs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from os.path import join
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets_trainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.network_architecture.efficiency.precision import has_bfloat16
from nnunetv2_dinomed3d.network_architecture.state_dict import misfit, shapes_of
from nnunetv2_dinomed3d.planning.training_memory import TrainingMemory, memory_warning, visible_gpu_memory
from nnunetv2_dinomed3d.settings import check_environment
from nnunetv2_dinomed3d.trainers.harness.best_epoch import BestEpoch
from nnunetv2_dinomed3d.trainers.harness.case_checks import Expected, check_cases, largest_raw_value
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import instead_of_reading, read_own_checkpoint
from nnunetv2_dinomed3d.trainers.harness.fault_tolerant import FaultTolerantTrainer
from nnunetv2_dinomed3d.trainers.harness.identity import (
    identity_of,
    new_record,
    read_record,
    record_of_checkpoint,
    require_own,
    unmarked_record,
    write_record,
)
from nnunetv2_dinomed3d.trainers.harness.in_plane_blur import BLUR_DEPTH, blur_in_plane
from nnunetv2_dinomed3d.trainers.harness.input_checks import check_dataset_json, check_folder, check_split, once
from nnunetv2_dinomed3d.trainers.harness.loader_workers import seed_workers
from nnunetv2_dinomed3d.trainers.harness.log import LoggedTrainer
from nnunetv2_dinomed3d.trainers.harness.randomness import derived_seed, seed_all
from nnunetv2_dinomed3d.trainers.harness.training_folder import move_aside
from nnunetv2_dinomed3d.training_log import stage_line

BEST = "checkpoint_best.pth"


@contextmanager
def autocast_dtype(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """While open, ``torch.autocast`` without a dtype (nnU-Net's) means this one."""
    before = torch.get_autocast_dtype(device_type)
    torch.set_autocast_dtype(device_type, dtype)
    try:
        yield
    finally:
        torch.set_autocast_dtype(device_type, before)


@contextmanager
def _wrapping_by(wrap: Callable[[nn.Module], nn.Module], sync_batch_norm: bool) -> Iterator[None]:
    """While open, nnU-Net's ``initialize`` wraps the network for DDP by this. It leaves no choice how.

    Args:
        wrap: makes the wrapper.
        sync_batch_norm: whether batch norm becomes PyTorch's synchronised one, which a CPU has not.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(nnunets_trainer, "DDP", lambda module, **_: wrap(module)))
        if not sync_batch_norm:
            stack.enter_context(patch.object(nn.SyncBatchNorm, "convert_sync_batchnorm", lambda module: module))
        yield


class HarnessTrainer(LoggedTrainer, FaultTolerantTrainer):
    """nnU-Net's trainer for a network of any paper.

    Attributes:
        mixed_precision: whether to train in 16 bits on CUDA: bfloat16 where the GPU has it, else float16.
        axes: spatial axes of the patches that the network takes: volumes, slices or both.
        takes_chosen_patch: whether `planning.patch_choice` may choose the patch for ``dinomed3d plan``.
        iterations_per_epoch, val_iterations_per_epoch: batches of an epoch.
    """

    mixed_precision: bool = True
    axes: tuple[int, ...] = (3,)
    takes_chosen_patch: bool = False
    iterations_per_epoch: int = 250
    val_iterations_per_epoch: int = 50

    # nnU-Net's, which ships no types
    _best_ema: float | None
    network: nn.Module
    configuration_manager: ConfigurationManager

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        check_dataset_json(dataset_json, PlansManager(plans).get_configuration(configuration))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = self.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.val_iterations_per_epoch
        self.my_init_kwargs = {**self.my_init_kwargs, "version": __version__}
        self._resumed = False
        self._identity = identity_of(plans, configuration, fold, dataset_json, type(self).__name__)
        self._training: dict[str, Any] | None = None  # this training, as the folder's file and checkpoints record it
        self._started_from = "-pretrained_weights"

    # ---- network ----

    @property
    def module(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return cast(nn.Module, module._orig_mod if isinstance(module, OptimizedModule) else module)

    def initialize(self) -> None:
        check_folder(Path(self.preprocessed_dataset_folder))
        if self._seed is not None:
            seed_all(derived_seed(self._seed, self.local_rank))
            self.print_to_log_file(f"DINOMED3D_SEED: {self._seed}")
        with _wrapping_by(self._wrap_for_ddp, sync_batch_norm=self.device.type == "cuda"):
            super().initialize()

    def _wrap_for_ddp(self, network: nn.Module) -> nn.Module:
        device_ids = [self.local_rank] if self.device.type == "cuda" else None
        # no buffer changes; to broadcast them, a rank with a case to validate would wait for one without
        return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)

    def rank_and_ranks(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (dist.get_rank(), dist.get_world_size()) if self.is_ddp else (0, 1)

    def _do_i_compile(self) -> bool:
        # compiled, the backward pass has the dtype of nnU-Net's autocast: float16 is not for a ViT
        return super()._do_i_compile() and has_bfloat16(self.device.type)

    def _autocast(self) -> AbstractContextManager[None]:
        """nnU-Net's float16 autocast becomes bfloat16, as in the network, where the device has it."""
        if self.device.type != "cuda":
            return nullcontext()
        if not self.mixed_precision:
            return autocast_dtype("cuda", torch.float32)
        return autocast_dtype("cuda", torch.bfloat16) if has_bfloat16("cuda") else nullcontext()

    def train_step(self, batch: dict) -> dict:
        with self._autocast():
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        with self._autocast():
            return super().validation_step(batch)

    # ---- data ----

    @staticmethod
    def get_training_transforms(patch_size: Sequence[int], *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's. A patch of too few slices to be blurred across them is blurred within them."""
        transforms = FaultTolerantTrainer.get_training_transforms(patch_size, *args, **kwargs)
        if len(patch_size) == 3 and patch_size[0] < BLUR_DEPTH:
            blur_in_plane(transforms)
        return transforms

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """The loaders of `make_dataloaders`, seeded where ``DINOMED3D_SEED`` is set."""
        with self.preemption.put_off():  # workers are always those of a loader that is known, and can be stopped
            loaders = self.make_dataloaders()
            if self._seed is not None:
                for number, loader in enumerate(loaders):
                    # another one after each start: the batches of the epochs before shall not come again
                    key = self.local_rank, self._first_epoch_of_part(self.current_epoch), self.current_epoch, number
                    seed_workers(loader, derived_seed(self._seed, *key))
            return loaders

    def make_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Loaders of training and validation; nnU-Net's."""
        return super().get_dataloaders()

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, with an error that says what to do about a data set that is too small for it."""
        try:
            with self.preemption.put_off():  # until splits_final.json is whole
                return super().do_split()
        except ValueError as error:
            raise ValueError(
                f"nnU-Net cannot split {self.plans_manager.dataset_name} into its 5 folds ({error}). Train with fold "
                f"all, or write your own splits_final.json into {self.preprocessed_dataset_folder_base}."
            ) from error

    def _check_split(self) -> None:
        if self.fold != "all":
            file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
            cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
            for warning in check_split(file, self.fold, cases):
                self.print_to_log_file(f"WARNING: {warning}.")
        self.do_split()  # which may write the file that all read

    def check_data(self) -> None:
        """Before a fresh training: refuse cases that it would stumble over."""
        once(self._check_cases)

    def _check_cases(self) -> None:
        training, validation = self.get_tr_and_val_datasets()
        expected = Expected.of(self.dataset_json, self.label_manager)
        for warning in check_cases(training, validation, expected, self._largest_raw_value):
            self.print_to_log_file(f"WARNING: {warning}")

    def _largest_raw_value(self, case: str) -> float | None:
        if not nnUNet_raw.is_set():
            return None
        folder = Path(nnUNet_raw, self.plans_manager.dataset_name)
        return largest_raw_value(folder, self.dataset_json, self.plans_manager.image_reader_writer_class(), case)

    def check_memory(self) -> None:
        """Warn where patch and batch do not fit the GPU."""
        available = visible_gpu_memory() if self.device.type == "cuda" and self.local_rank == 0 else None
        if available is None or self.is_ddp:  # the estimate is of one GPU
            return
        memory = TrainingMemory(type(self), self.plans_manager.plans, self.configuration_name, self.dataset_json)
        warning = memory_warning(memory, available)
        if warning:
            self.print_to_log_file(f"WARNING: {warning}")

    # ---- start ----

    def on_train_start(self) -> None:
        check_environment()
        if not self.was_initialized:
            self.initialize()
        self.check_memory()
        if not self._resumed:
            once(self._check_split)
        self.load_start_weights()  # what is wrong with the weights is told before minutes of reading cases
        if self._resumed:
            self.check_resumed()
            self._claim_folder()
            self._take_up_best()
            self._save_best_if_missing()
        else:
            self.check_data()
            self._claim_folder()
        self.tell_start()
        super().on_train_start()
        if self._folder is not None:
            self._folder.began = True

    def load_start_weights(self) -> None:
        """Fill the network before a fresh training, and say by ``_started_from`` with what. Here: random weights."""
        if not self._resumed:
            self._started_from = "random weights"

    def check_resumed(self) -> None:
        """Refuse to go on with a training that the trainer has changed since."""

    def tell_start(self) -> None:
        """Say in the log what is trained."""
        self.tell_stage(1, f"{self.batch_size} patches a batch on this device")

    def tell_stage(self, stage: int, note: str) -> None:
        """The log's line that opens a stage, with the number of parameters that it trains."""
        parameters = list(self.module.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        everything = sum(parameter.numel() for parameter in parameters)
        self.print_to_log_file(stage_line(stage, trained, everything, note))

    def _claim_folder(self) -> None:
        """Say in the folder which training it is of. Files of another one are moved aside, with their date."""
        if self._training is None:
            self._training = {
                **new_record(self._identity, __version__),
                "start": self._started_from,
                "seed": self._seed,
            }
            if self.is_ddp:
                of_rank_0 = [self._training]
                dist.broadcast_object_list(of_rank_0, src=0)
                (self._training,) = of_rank_0
        if self._folder is None:
            return
        known = read_record(self._folder.path)
        if self._resumed and known is None:
            write_record(self._folder.path, self._training)
        elif known is None or known["id"] != self._training["id"]:
            aside = self._folder.claim(self._training)
            if aside is not None:
                self.print_to_log_file(f"Files of another training in {self._folder.path} are now in {aside.name}.")

    # ---- checkpoints ----

    def load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        """nnU-Net's, read once and verified. A file of the training's own folder has to be this training's."""
        with self.starting():
            self._load_checkpoint(filename_or_checkpoint)

    def _load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        if isinstance(filename_or_checkpoint, dict):
            checkpoint, filename = filename_or_checkpoint, "The checkpoint"
        else:
            filename = str(filename_or_checkpoint)
            checkpoint = read_own_checkpoint(filename)
            if Path(filename).resolve().parent == Path(self.output_folder).resolve():
                require_own(checkpoint, filename, self._identity, read_record(Path(self.output_folder)))
        self.prepare_for_checkpoint(checkpoint, filename)
        with instead_of_reading(checkpoint):
            super().load_checkpoint(filename)
        self._training = record_of_checkpoint(checkpoint) or unmarked_record(checkpoint, self._identity)
        self._keep_state_to_resume_from()
        self._resumed = True
        self._reset_best_if_nan()

    def prepare_for_checkpoint(self, checkpoint: dict[str, Any], filename: str) -> None:
        """Bring the trainer into the state that takes the checkpoint. Raises ValueError where it does not fit."""
        if not self.was_initialized:
            self.initialize()
        self._check_matches_network(checkpoint, filename)

    def _check_matches_network(self, checkpoint: dict[str, Any], filename: str) -> None:
        if wrong := misfit(shapes_of(checkpoint["network_weights"]), shapes_of(self.module.state_dict())):
            written = checkpoint["init_args"].get("version", "unknown")
            raise ValueError(
                f"{filename} does not fit the network of {type(self).__name__}: {wrong} It was written by "
                f"nnunetv2_dinomed3d {written}, this is {__version__}. Use the version and trainer that wrote it, or "
                "train anew (without --c) into another folder of results."
            )

    def _more_init_args(self) -> dict[str, Any]:
        return {"training": self._training}

    # ---- the best epoch ----

    def best_epoch(self) -> BestEpoch:
        """The checkpoint of the best epoch of the part that is trained now."""
        return BestEpoch(Path(self.output_folder, BEST), self._identity)

    def _take_up_best(self) -> None:
        """On resume: the checkpoint can be an epoch behind the best one's file, which counts."""
        if self.disable_checkpointing:
            return
        file = self.best_epoch()
        best, is_foreign = file.take_up(self._training, was_saved=self._best_ema is not None, warn=self._warn)
        if is_foreign and self._folder is not None:
            move_aside(self._folder.path, [file.path.name])
        self._best_ema = None if best is None else best["logging"]["ema_fg_dice"][-1]
        self._reset_best_if_nan()

    def _save_best_if_missing(self) -> None:
        """On resume: nnU-Net writes ``checkpoint_latest.pth`` first, and was killed before it wrote the best."""
        first = self._first_epoch_of_part(self.current_epoch - 1)
        averages = self.logger.get_value("ema_fg_dice", step=None)[first:]
        if averages and (self._best_ema is None or averages[-1] > self._best_ema):
            self._best_ema = averages[-1]
            self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
            self.save_checkpoint(join(self.output_folder, BEST))
            self.current_epoch += 1
            self._reset_best_if_nan()

    def _reset_best_if_nan(self) -> None:
        """No epoch is better than NaN: until there is a Dice, the last epoch is the best."""
        if self._best_ema is not None and np.isnan(self._best_ema):
            self._best_ema = None

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        self._reset_best_if_nan()

    # ---- final validation ----

    def predicting(self) -> AbstractContextManager[None]:
        """Open while the validation cases are predicted."""
        return nullcontext()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, while the folder is this process's."""
        with self.preemption.listening(), self._in_folder(), self.predicting():
            super().perform_actual_validation(save_probabilities)
        self._leave_folder()
