"""DINO-Med3D on nnU-Net's hooks: one training that runs stage 1, switches, and runs stage 2.

All here is a delta to `nnUNetTrainer`. Hyper-parameters are class attributes, the paper's; what `variants` changes of
them gives the other trainers.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from os.path import basename, dirname, isfile, join
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.adapter import DepthAlignment
from nnunetv2_dinomed3d.network_architecture.dinomed3d import Proxy, has_bfloat16
from nnunetv2_dinomed3d.planning.training_memory import TrainingMemory, memory_warning, visible_gpu_memory
from nnunetv2_dinomed3d.settings import check_environment
from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import (
    PlateauLRScheduler,
    Recipe,
    Schedule,
    StagePolyLRScheduler,
)
from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import (
    CutSlab,
    seed_workers,
    slab_configuration,
    slab_loader,
    start_workers,
    stop_workers,
)
from nnunetv2_dinomed3d.trainers.dinomed3d.start_weights import leaked_cases, require_one_start
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import (
    LATEST,
    instead_of_reading,
    read_own_checkpoint,
    read_verified,
)
from nnunetv2_dinomed3d.trainers.harness.fault_tolerant import RobustTrainer
from nnunetv2_dinomed3d.trainers.harness.identity import (
    ForeignCheckpointError,
    identity_of,
    new_record,
    read_record,
    record_of_checkpoint,
    require_own,
    unmarked_record,
    write_record,
)
from nnunetv2_dinomed3d.trainers.harness.in_plane_blur import BLUR_DEPTH, blur_in_plane
from nnunetv2_dinomed3d.trainers.harness.input_checks import (
    Expected,
    check_cases,
    check_dataset_json,
    check_folder,
    check_mirroring,
    check_split,
    largest_raw_value,
    once,
)
from nnunetv2_dinomed3d.trainers.harness.log import LoggedTrainer
from nnunetv2_dinomed3d.trainers.harness.randomness import derived_seed, seed_all
from nnunetv2_dinomed3d.trainers.harness.training_folder import move_aside
from nnunetv2_dinomed3d.trainers.harness.whole_cases import WholeLoader, evenly, fill_up, only_rows, windows_of_cases
from nnunetv2_dinomed3d.training_log import stage_line
from nnunetv2_dinomed3d.weights import load_pretrained_weights
from nnunetv2_dinomed3d.weights.stage1 import Stage1Checkpoint, load_stage1, stage1_setting

STAGE1_BEST = "checkpoint_best_stage1.pth"

IN_PLANE_ROTATION = (-np.pi / 12, np.pi / 12)
"""Rotation of slabs: within the released code's 15 degrees, since a ViT knows up from down (docs/decisions.md)."""
IN_PLANE_SCALING = (0.85, 1.25)
"""Scaling of nnU-Net's in-plane ('dummy 2D') augmentation, the range its loader reserves room for."""
FLIPPED_AXES = (2,)
"""Spatial axes along which slabs are mirrored: the last one, horizontally."""


def _require_3d(plans: dict, configuration: str) -> None:
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"The plans have no configuration {configuration!r}, but {', '.join(plans['configurations'])}. Train one "
            "that is 3D; if there is none, plan it: nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres."
        )
    patch_size = PlansManager(plans).get_configuration(configuration).patch_size
    if len(patch_size) != 3:
        raise ValueError(
            f"Configuration {configuration!r} has the patch size {list(patch_size)}: it is 2D, and DINO-Med3D segments "
            "volumes. Train 3d_fullres, 3d_lowres or 3d_cascade_fullres."
        )


@contextmanager
def autocast_dtype(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """While open, ``torch.autocast`` without a dtype (nnU-Net's) means this one."""
    before = torch.get_autocast_dtype(device_type)
    torch.set_autocast_dtype(device_type, dtype)
    try:
        yield
    finally:
        torch.set_autocast_dtype(device_type, before)


class nnUNetTrainerDINOMed3D(LoggedTrainer, RobustTrainer):
    """DINO-Med3D with DINOv3's ViT-B/16.

    Attributes:
        variant: size of the network, one of `network_architecture.VARIANTS`.
        slab_depth: K.
        depth_alignment, rope_rescale, rope_rescale_frozen, lora_on_ice, train_encoder, proxy, detail_stream,
            mixed_precision: see `network_architecture.DINOMed3D`.
        stages: those that are trained.
        stage1_epochs, stage2_epochs: their lengths.
        stage1_lr, stage2_lr: AdamW's initial learning rates.
        slab_batch_size: slabs in a batch of stage 1, over all GPUs; if these do not divide it, the next number they do.
        checkpoint_activations: on CUDA, whether the network is recomputed in the backward pass: less memory, more time.
        adamw_weight_decay: of both stages.
        ce_weight, dice_weight: of both stages' loss.
        iterations_per_epoch, val_iterations_per_epoch: of both stages.
        whole_validation: whether an epoch is validated on all slices of all validation cases (if they are very many, on
            evenly spaced ones: no more batches than it was trained on), instead of nnU-Net's random patches.
        stage: 1 or 2, the one that is trained now.
        schedule: length and learning rate of both stages in this training.
    """

    variant: str = "base"
    slab_depth: int = 3
    depth_alignment: DepthAlignment = "exact"
    rope_rescale: float | None = 2.0
    rope_rescale_frozen: bool = False
    lora_on_ice: bool = False
    train_encoder: bool = True
    proxy: Proxy = "linear"
    detail_stream: bool = True
    mixed_precision: bool = True
    stages: tuple[int, ...] = (1, 2)
    stage1_epochs: int = 50
    stage2_epochs: int = 50
    stage1_lr: float = 1e-5
    stage2_lr: float = 1e-4
    slab_batch_size: int = 24
    checkpoint_activations: bool = True
    adamw_weight_decay: float = 0.01
    ce_weight: float = 0.2
    dice_weight: float = 0.8
    iterations_per_epoch: int = 250
    val_iterations_per_epoch: int = 50
    whole_validation: bool = False

    # nnU-Net's, which ships no types
    my_init_kwargs: dict[str, Any]
    _best_ema: float | None
    inference_allowed_mirroring_axes: tuple[int, ...] | None
    network: nn.Module
    configuration_manager: ConfigurationManager
    oversample_foreground_percent: float

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        _require_3d(plans, configuration)
        check_dataset_json(dataset_json, PlansManager(plans).get_configuration(configuration))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        schedule = Schedule(Recipe(self.stage1_epochs, self.stage1_lr), Recipe(self.stage2_epochs, self.stage2_lr))
        for stage in {1, 2} - set(self.stages):
            schedule = schedule.without(stage)
        self._own_schedule = schedule
        self._set_schedule(schedule)
        self.num_iterations_per_epoch = self.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.val_iterations_per_epoch
        self.weight_decay = self.adamw_weight_decay
        self.my_init_kwargs = {**self.my_init_kwargs, "version": __version__}
        self._resumed = False
        self._first_stage: int | None = None  # the schedule's, unless a checkpoint says another
        self._identity = identity_of(plans, configuration, fold, dataset_json, type(self).__name__)
        self._training: dict[str, Any] | None = None  # what the folder's file says of this training
        self._started_from = "-pretrained_weights"
        self.stage = max(self.stages)  # until the first one begins

    def _set_schedule(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.num_epochs = schedule.epochs

    # ---- network ----

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network in stage 2 with random weights; nnU-Net calls this for training and for prediction."""
        return build_dinomed3d(
            cls.variant,
            num_input_channels,
            num_output_channels,
            configuration_manager.patch_size,
            slab_depth=cls.slab_depth,
            depth_alignment=cls.depth_alignment,
            rope_rescale=cls.rope_rescale,
            rope_rescale_frozen=cls.rope_rescale_frozen,
            lora_on_ice=cls.lora_on_ice,
            train_encoder=cls.train_encoder,
            proxy=cls.proxy,
            detail_stream=cls.detail_stream,
            mixed_precision=cls.mixed_precision,
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The decoder has one output; there is nothing to switch."""

    @property
    def module(self) -> DINOMed3D:
        """The network without the wrappers of DDP and torch.compile."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return cast(DINOMed3D, module._orig_mod if isinstance(module, OptimizedModule) else module)

    def initialize(self) -> None:
        check_folder(Path(self.preprocessed_dataset_folder))
        if self._seed is not None:
            seed_all(derived_seed(self._seed, self.local_rank))
            self.print_to_log_file(f"DINOMED3D_SEED: {self._seed}")
        self._oversample_foreground_percent = self.oversample_foreground_percent
        self._aim_at(self._first_stage or self.schedule.stage(self.current_epoch))
        super().initialize()  # builds this stage's optimiser and loss: configure_optimizers enters it
        self.module.checkpoint_activations(self.checkpoint_activations and self.device.type == "cuda")
        if self.is_ddp or self.module.stage != self.stage:  # nnU-Net's wrapper is not ours; an override enters no stage
            self._begin_stage(self.stage)

    # ---- stages ----

    def _begin_stage(self, stage: int) -> None:
        """Everything that differs between the stages, except the loaders: mode, batch, optimiser, wrappers, loss."""
        self._aim_at(stage)
        module = self.module
        self._enter_stage()
        self._set_batch_size_and_oversample()
        # wrapped anew: torch.compile and DDP fix at wrapping time what is computed and which gradients are reduced
        self.network = cast(nn.Module, torch.compile(module)) if self._do_i_compile() else module
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            device_ids = [self.local_rank] if self.device.type == "cuda" else None
            # no buffer changes; to broadcast them, a rank with a case to validate would wait for one without
            self.network = DistributedDataParallel(self.network, device_ids=device_ids, broadcast_buffers=False)
        self.loss = self._build_loss()

    def _aim_at(self, stage: int) -> None:
        self.stage = stage
        self.initial_lr = self.schedule.recipe(stage).lr

    def _tell_stage(self) -> None:
        parameters = list(self.module.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        everything = sum(parameter.numel() for parameter in parameters)
        batch = f"{self.batch_size} {'slabs' if self.stage == 1 else 'patches'} a batch on this device"
        self.print_to_log_file(stage_line(self.stage, trained, everything, batch))

    def _enter_stage(self) -> None:
        self.module.set_stage(self.stage, bare_slabs=self.stage == 1)

    @contextmanager
    def _stage_configuration(self) -> Iterator[None]:
        """While open, `configuration_manager` describes the batches of the current stage."""
        plans_configuration = self.configuration_manager
        if self.stage == 1:
            ranks = dist.get_world_size() if self.is_ddp else 1
            # as many on each rank: nnU-Net's Dice over the batch gathers them, and needs equal shapes
            slabs = math.ceil(self.slab_batch_size / ranks) * ranks
            self.configuration_manager = slab_configuration(plans_configuration, self.slab_depth, slabs)
        try:
            yield
        finally:
            self.configuration_manager = plans_configuration

    def _set_batch_size_and_oversample(self) -> None:
        # with several GPUs nnU-Net replaces the percentage by this rank's share of it
        self.oversample_foreground_percent = self._oversample_foreground_percent
        with self._stage_configuration():
            super()._set_batch_size_and_oversample()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, StagePolyLRScheduler | PlateauLRScheduler]:
        """AdamW over what the stage trains."""
        self._enter_stage()
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.initial_lr, weight_decay=self.weight_decay)
        scheduler = StagePolyLRScheduler(
            optimizer, self.schedule.recipe(self.stage), self.schedule.first_epoch(self.stage)
        )
        return optimizer, scheduler

    def _build_loss(self) -> nn.Module:
        with self._stage_configuration():
            loss = super()._build_loss()
        loss.weight_ce, loss.weight_dice = self.ce_weight, self.dice_weight
        return loss

    # ---- data ----

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's; in stage 1 for slabs. The mirroring axes of inference are the last stage's."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.slab_depth % 2 == 0 and mirror_axes is not None:
            # a mirrored slab of even K has its central slice elsewhere
            mirror_axes = tuple(axis for axis in mirror_axes if axis != 0)
            self.inference_allowed_mirroring_axes = mirror_axes
        if self.stage == 2:
            return rotation, dummy_2d, initial_patch_size, mirror_axes
        mirror_axes = tuple(axis for axis in mirror_axes or () if axis in FLIPPED_AXES) or None
        if 2 not in self.stages:
            self.inference_allowed_mirroring_axes = mirror_axes
        with self._stage_configuration():
            depth, *in_plane = self.configuration_manager.patch_size
        in_plane = get_patch_size(in_plane, IN_PLANE_ROTATION, (0, 0), (0, 0), IN_PLANE_SCALING)
        return IN_PLANE_ROTATION, True, [depth, *in_plane], mirror_axes

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Loaders of the current stage for training and validation."""
        with self.preemption.put_off():  # workers are always those of a loader that is known, and can be stopped
            train, val = super().get_dataloaders() if self.stage == 2 else self._slab_dataloaders()
            if self.whole_validation:
                stop_workers(val)
                val = self._whole_dataloader()
            if self._seed is not None:
                for number, loader in enumerate((train, val)):
                    # another one after each start: the batches of the epochs before shall not come again
                    key = self.local_rank, self.stage, self.current_epoch, number
                    seed_workers(loader, derived_seed(self._seed, *key))
            return train, val

    def _whole_dataloader(self) -> Iterator[dict]:
        """Batches of the stage that cover the validation cases in one epoch, in a fixed order."""
        rank, ranks = self._rank_and_ranks()
        with self._stage_configuration():
            patch_size = self.configuration_manager.patch_size
            rows = self.configuration_manager.batch_size // ranks  # nnU-Net gives some ranks one more
        transforms = self.get_validation_transforms(None, **self._label_arguments())
        if self.stage == 1:
            transforms = ComposeTransforms([transforms, CutSlab(self.slab_depth)])
        _, dataset = self.get_tr_and_val_datasets()
        windows = evenly(
            windows_of_cases(dataset, patch_size, every_slice=self.stage == 1),
            at_most=self.num_iterations_per_epoch * rows * ranks,
        )
        self.num_val_iterations_per_epoch = math.ceil(math.ceil(len(windows) / ranks) / rows)
        share = fill_up(windows[rank::ranks], windows[0], self.num_val_iterations_per_epoch * self.batch_size)
        loader = WholeLoader(dataset, share, self.batch_size, patch_size, self.label_manager, transforms)
        return start_workers(loader, min(1, get_allowed_n_proc_DA()), 3, self.device.type == "cuda")

    def _rank_and_ranks(self) -> tuple[int, int]:
        return (dist.get_rank(), dist.get_world_size()) if self.is_ddp else (0, 1)

    def _slab_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Batches of ``data`` ``(b, C, K, h, w)`` and ``target`` ``(b, 1 or regions, 1, h, w)``."""
        with self._stage_configuration():
            patch_size = self.configuration_manager.patch_size
        augmentation = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        train_data, val_data = self.get_tr_and_val_datasets()
        loaders = []
        for data, initial_patch_size, transforms in zip(
            (train_data, val_data),
            (augmentation[2], patch_size),
            self._slab_transforms(patch_size, augmentation),
            strict=True,
        ):
            loader = slab_loader(
                data,
                self.batch_size,
                initial_patch_size,
                patch_size,
                self.label_manager,
                transforms,
                self.slab_depth,
                self.oversample_foreground_percent,
                self.probabilistic_oversampling,
            )
            loaders.append(loader)
        processes, pin_memory = get_allowed_n_proc_DA(), self.device.type == "cuda"
        return (
            start_workers(loaders[0], processes, max(6, processes // 2), pin_memory),
            start_workers(loaders[1], min(processes, max(1, processes // 2)), max(3, processes // 4), pin_memory),
        )

    def _label_arguments(self) -> dict[str, Any]:
        """Of nnU-Net's `get_training_transforms` and `get_validation_transforms`."""
        return {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }

    def _slab_transforms(self, patch_size: list[int], augmentation: tuple) -> tuple[BasicTransform, BasicTransform]:
        """nnU-Net's transforms of training and validation for patches that slabs are cut from."""
        rotation, dummy_2d, _, mirror_axes = augmentation
        labels = self._label_arguments()
        masked = self.configuration_manager.use_mask_for_norm
        return (
            self.get_training_transforms(
                patch_size, rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=masked, **labels
            ),
            self.get_validation_transforms(None, **labels),
        )

    @staticmethod
    def get_training_transforms(patch_size: Sequence[int], *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's; where a patch has too few slices to be blurred across them, they are blurred within."""
        transforms = RobustTrainer.get_training_transforms(patch_size, *args, **kwargs)
        if patch_size[0] < BLUR_DEPTH:
            blur_in_plane(transforms)
        return transforms

    # ---- training ----

    def on_train_start(self) -> None:
        check_environment()
        if not self.was_initialized:
            self.initialize()
        self._check_memory()
        if not self._resumed:
            once(self._check_split)
        self._start()  # what is wrong with the weights is told before minutes of reading cases
        if self._resumed:
            self._require_same_epochs()
            self._claim_folder()
            self._take_up_best()
            self._save_missed_best()
        else:
            self._check_data()
            self._claim_folder()
        self._enter_stage()  # weights that were loaded brought their own stage along
        self._tell_stage()
        super().on_train_start()
        if self._folder is not None:
            self._folder.began = True

    def _claim_folder(self) -> None:
        """Say in the folder which training it is of; what another one left there is moved aside, with its date."""
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
                self.print_to_log_file(f"What another training left in {self._folder.path} is now in {aside.name}.")

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

    def _check_data(self) -> None:
        *_, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        check_mirroring(self.slab_depth, mirror_axes)
        once(self._check_cases)

    def _check_split(self) -> None:
        if self.fold != "all":
            file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
            cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
            for warning in check_split(file, self.fold, cases):
                self.print_to_log_file(f"WARNING: {warning}.")
        self.do_split()  # which may write the file that all read

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

    def _check_memory(self) -> None:
        available = visible_gpu_memory() if self.device.type == "cuda" and self.local_rank == 0 else None
        if available is None or self.is_ddp:  # the estimate is of one GPU
            return
        memory = TrainingMemory(type(self), self.plans_manager.plans, self.configuration_name, self.dataset_json)
        warning = memory_warning(memory, available)
        if warning:
            self.print_to_log_file(f"WARNING: {warning}")

    def _start(self) -> None:
        """Fill the network, unless it was: on resume, or by -pretrained_weights."""
        stage1_file = stage1_setting()
        if self._resumed:
            if stage1_file:
                self.print_to_log_file("The training is resumed: DINOMED3D_STAGE1 is not looked at.")
        elif stage1_file:
            require_one_start(self.stages, self.module.has_weights)
            self._start_from_stage1(stage1_file)
        elif not self.module.has_weights:
            self._load_pretrained_vit()

    def _start_from_stage1(self, file: Path) -> None:
        """Skip stage 1: take its result from another training's checkpoint, or from a converted one."""
        checkpoint = load_stage1(file)
        self.module.load_stage1(checkpoint.network_weights)
        self._set_schedule(self.schedule.without(1))
        self._record_stage1({"epochs": 0, "file": checkpoint.file, "sha256": checkpoint.sha256})
        self._started_from = f"stage 1 of {checkpoint.file}, SHA-256 {checkpoint.sha256}"
        self.print_to_log_file(f"Stage 1 is skipped. {checkpoint.report()}")
        self._warn_of_leak(checkpoint)
        self._begin_stage(2)

    def _warn_of_leak(self, checkpoint: Stage1Checkpoint) -> None:
        if self.fold == "all":
            return  # validated on its training cases anyway
        _, cases = self.do_split()
        splits = load_json(join(self.preprocessed_dataset_folder_base, "splits_final.json"))
        leaked = leaked_cases(checkpoint, self.plans_manager.dataset_name, splits, cases)
        if leaked:
            self.print_to_log_file(
                f"WARNING: {checkpoint.file} was trained on {len(leaked)} of the {len(cases)} validation cases of fold "
                f"{self.fold} ({', '.join(leaked[:5])}{', ...' if len(leaked) > 5 else ''}): the validation of this "
                "training will look better than the model is. Use the stage 1 of the same fold."
            )

    def _record_stage1(self, record: dict[str, Any]) -> None:
        """Say in the checkpoints, under ``init_args``, what stage 2 started from."""
        self.my_init_kwargs = {**self.my_init_kwargs, "stage1": record}

    def _load_pretrained_vit(self) -> None:
        name = VARIANTS[self.variant].weights_name
        self._started_from = "random weights"
        if name is None:
            self.print_to_log_file(f"{type(self).__name__} starts from random weights: there are none of its size.")
            return
        weights = load_pretrained_weights(name, self.module.pretrained_shapes())
        if weights is None:
            self.print_to_log_file("DINOMED3D_WEIGHTS=random: training starts from random weights, as asked for.")
            return
        self.module.load_pretrained(weights.tensors)
        self._started_from = weights.report()
        self.print_to_log_file(weights.report())

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
        real = batch.get("real", len(batch["data"]))
        rows = only_rows(self.network, batch["target"], real, self.label_manager.has_regions)
        with self._autocast(), rows:
            return super().validation_step(batch)

    def on_epoch_start(self) -> None:
        self.between_epochs()
        self._go_on()
        if self.schedule.stage(self.current_epoch) != self.stage:
            self._switch_to_stage2()
        super().on_epoch_start()

    def _switch_to_stage2(self) -> None:
        self.network.zero_grad(set_to_none=True)  # of what stage 2 freezes: memory, and nnU-Net clips by all gradients
        stop_workers(self.dataloader_train)
        stop_workers(self.dataloader_val)
        self._load_best_of_stage1()
        self._best_ema = None
        self._begin_stage(2)
        self._tell_stage()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def _load_best_of_stage1(self) -> None:
        if self.disable_checkpointing:
            self.print_to_log_file("Checkpointing is disabled: stage 2 starts from the last epoch of stage 1.")
            self._record_stage1({"epochs": self.current_epoch, "best_epoch": self.current_epoch - 1})
            return
        if self.is_ddp:
            dist.barrier()  # rank 0 wrote the file
        try:
            checkpoint = self._read_best()
        except ValueError as error:
            raise ValueError(f"{error} {self._missing_stage1()}") from error
        if checkpoint is None:
            raise FileNotFoundError(self._missing_stage1())
        self.module.load_state_dict(checkpoint["network_weights"])
        best_epoch = checkpoint["current_epoch"] - 1
        self._record_stage1({"epochs": self.current_epoch, "best_epoch": best_epoch})
        self.print_to_log_file(f"Stage 2 starts from epoch {best_epoch}, the best of stage 1.")

    def _ends_stage1(self) -> bool:
        """Whether this epoch is the last of stage 1, before stage 2."""
        return self.stage == 1 and self.schedule.stage(self.current_epoch + 1) == 2

    def on_epoch_end(self) -> None:
        """nnU-Net's; the last epoch of stage 1 is saved in any case."""
        self.save_every = 1 if self._ends_stage1() else self.latest_every
        super().on_epoch_end()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        self._forget_nan()

    def _forget_nan(self) -> None:
        """No epoch is better than NaN: until there is a Dice, the last epoch is the best."""
        if self._best_ema is not None and np.isnan(self._best_ema):
            self._best_ema = None

    # ---- checkpoints and validation ----

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's; the best epoch of stage 1 has a file of its own, so that ``checkpoint_best.pth`` is stage 2's."""
        super().save_checkpoint(join(dirname(filename), self._checkpoint_name(basename(filename))))

    def _checkpoint_name(self, name: str) -> str:
        of_stage1 = self.stage == 1 and self.schedule.stage2.epochs > 0
        return STAGE1_BEST if of_stage1 and name == "checkpoint_best.pth" else name

    def load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        """nnU-Net's, in the stage of the checkpoint: its last epoch's, also at the boundary.

        A file of the training's own folder has to be this training's.
        """
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
        stage = int(checkpoint["network_weights"]["_extra_state"])
        self._set_schedule(self._schedule_of(checkpoint))
        if not self.was_initialized:
            self._first_stage = stage
            self.initialize()
        elif stage != self.stage:
            self._begin_stage(stage)
        self._require_fit(checkpoint, filename)
        with instead_of_reading(checkpoint):
            super().load_checkpoint(filename)
        self._training = record_of_checkpoint(checkpoint) or unmarked_record(checkpoint, self._identity)
        self._keep_state_to_resume_from()
        self._resumed = True
        self._forget_nan()

    def _schedule_of(self, checkpoint: dict[str, Any]) -> Schedule:
        """With the lengths of the stages in the training that wrote it."""
        args, own = checkpoint["init_args"], self._own_schedule
        epochs, record = args.get("epochs"), args.get("stage1")
        if epochs is not None:
            return Schedule(replace(own.stage1, epochs=epochs[0]), replace(own.stage2, epochs=epochs[1]))
        # of a version that did not say
        if not record:
            return own
        schedule = own.without(1) if "file" in record else own.with_stage1_ended(record["epochs"])
        trained = checkpoint["current_epoch"] - schedule.stage1.epochs
        return replace(schedule, stage2=replace(own.stage2, epochs=max(schedule.stage2.epochs, trained, 1)))

    def _require_same_epochs(self) -> None:
        """Refuse to go on with other lengths of the stages than the training began with."""
        began, own = self.schedule, self._own_schedule
        record = self.my_init_kwargs.get("stage1") or {}
        if "file" in record:
            own = own.without(1)
        ended_early = "epochs" in record and began.epochs == own.epochs and began.stage1.epochs < own.stage1.epochs
        if began != own and not ended_early:
            raise ValueError(
                f"This training began with {began.stage1.epochs} + {began.stage2.epochs} epochs (stage 1 + stage 2), "
                f"and {type(self).__name__} now has {own.stage1.epochs} + {own.stage2.epochs}: the learning rate would "
                "jump. Set its stage1_epochs and stage2_epochs back to go on with --c, or train anew (without --c)."
            )

    def _more_init_args(self) -> dict[str, Any]:
        return {"training": self._training, "epochs": [self.schedule.stage1.epochs, self.schedule.stage2.epochs]}

    def _require_fit(self, checkpoint: dict[str, Any], filename: str) -> None:
        own = {name: tensor.shape for name, tensor in self.module.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in checkpoint["network_weights"].items()}
        wrong = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
        if wrong:
            written = checkpoint["init_args"].get("version", "unknown")
            raise ValueError(
                f"{filename} does not fit the network of {type(self).__name__}: {len(wrong)} tensors differ, the first "
                f"is {wrong[0]}. It was written by nnunetv2_dinomed3d {written}, this is {__version__}. Use the "
                "version and the trainer that wrote it, or train anew (without --c) into another folder of results."
            )

    def _best_filename(self) -> str:
        return join(self.output_folder, self._checkpoint_name("checkpoint_best.pth"))

    def _read_best(self) -> dict[str, Any] | None:
        """The stage's best epoch that was saved; None if none was.

        Raises:
            ValueError: the file is damaged, or of another training.
        """
        filename = self._best_filename()
        if not isfile(filename):
            return None
        checkpoint = read_verified(Path(filename), mmap=True)
        require_own(checkpoint, filename, self._identity, self._training)
        return checkpoint if int(checkpoint["network_weights"]["_extra_state"]) == self.stage else None

    def _take_up_best(self) -> None:
        """On resume: what the checkpoint says of the best can be an epoch old. What was saved as the best counts.

        Stage 2 starts from stage 1's best: without it, training stops here and not at the switch. Stage 2's own is
        written anew.
        """
        if self.disable_checkpointing:
            return
        is_needed = basename(self._best_filename()) == STAGE1_BEST
        was_saved = self._best_ema is not None
        try:
            best = self._read_best()
        except ValueError as error:
            if is_needed:
                raise ValueError(f"{error} {self._missing_stage1()}") from error
            self.print_to_log_file(f"WARNING: {error} It is not needed to go on, and written anew.")
            if isinstance(error, ForeignCheckpointError) and self._folder is not None:
                move_aside(self._folder.path, [basename(self._best_filename())])
            best = None
        if best is None and was_saved:
            if is_needed:
                raise FileNotFoundError(self._missing_stage1())
            self.print_to_log_file(f"WARNING: {self._best_filename()} is written anew: there is no sound one.")
        self._best_ema = None if best is None else best["logging"]["ema_fg_dice"][-1]
        self._forget_nan()

    def _missing_stage1(self) -> str:
        return (
            f"{self._best_filename()} is missing, damaged or of another training: the best epoch of stage 1, where "
            f"stage 2 starts. Put it back, or take the last epoch that was saved for the best (in that folder: cp "
            f"{LATEST} {STAGE1_BEST}) and go on with --c, or train from the beginning (without --c)."
        )

    def _save_missed_best(self) -> None:
        """On resume: nnU-Net writes ``checkpoint_latest.pth`` first, and was killed before it wrote the best."""
        averages = self.logger.get_value("ema_fg_dice", step=None)[self.schedule.first_epoch(self.stage) :]
        if averages and (self._best_ema is None or averages[-1] > self._best_ema):
            self._best_ema = averages[-1]
            self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
            self.save_checkpoint(join(self.output_folder, "checkpoint_best.pth"))
            self.current_epoch += 1
            self._forget_nan()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, on volumes, with LoRA merged into the frozen weights and slabs encoded once."""
        self.module.set_stage(self.stage)
        with (
            self.preemption.listening(),
            self._in_folder(),
            self.module.merged_lora(),
            self.module.slices_encoded_once(),
        ):
            super().perform_actual_validation(save_probabilities)
        self._leave_folder()
