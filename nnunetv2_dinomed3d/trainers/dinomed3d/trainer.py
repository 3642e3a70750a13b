"""DINO-Med3D on nnU-Net's hooks: one training that runs stage 1, switches, and runs stage 2.

All here is a delta to the harness and to `nnUNetTrainer`. Hyper-parameters are class attributes, the paper's; other
trainers of `variants` change some of them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.options import DepthAlignment, NetworkOptions, Proxy
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.planning.step_memory import Step
from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import (
    Augmentation,
    CropSlab,
    check_mirroring,
    slab_augmentation,
    slab_configuration,
    slab_loaders,
)
from nnunetv2_dinomed3d.trainers.dinomed3d.staged import StagedTrainer
from nnunetv2_dinomed3d.trainers.dinomed3d.start_weights import (
    Start,
    leak_warning,
    start_from_pretrained,
    start_from_stage1,
)
from nnunetv2_dinomed3d.trainers.harness.input_checks import require_axes
from nnunetv2_dinomed3d.trainers.harness.loader_workers import stop_workers
from nnunetv2_dinomed3d.trainers.harness.whole_cases import only_rows, whole_loader
from nnunetv2_dinomed3d.weights.stage1 import stage1_setting


class nnUNetTrainerDINOMed3D(StagedTrainer):
    """DINO-Med3D with DINOv3's ViT-B/16.

    Attributes:
        variant: size of the network, one of `network_architecture.VARIANTS`.
        slab_depth: K.
        depth_alignment, rope_rescale, rope_rescale_frozen, lora_on_ice, train_encoder, stage1_lora, proxy,
            detail_stream, mixed_precision: see `network_architecture.DINOMed3D`.
        slab_batch_size: slabs in a batch of stage 1, over all GPUs; if these do not divide it, the next number they do.
        checkpoint_activations: on CUDA, whether the network is recomputed in the backward pass: less memory, more time.
        whole_validation: whether an epoch is validated on all slices of all validation cases (if they are very many, on
            evenly spaced ones: no more batches than it was trained on), instead of nnU-Net's random patches.
    """

    variant: str = "base"
    slab_depth: int = NetworkOptions.slab_depth
    depth_alignment: DepthAlignment = NetworkOptions.depth_alignment
    rope_rescale: float | None = NetworkOptions.rope_rescale
    rope_rescale_frozen: bool = NetworkOptions.rope_rescale_frozen
    lora_on_ice: bool = NetworkOptions.lora_on_ice
    train_encoder: bool = NetworkOptions.train_encoder
    stage1_lora: bool = NetworkOptions.stage1_lora
    proxy: Proxy = NetworkOptions.proxy
    detail_stream: bool = NetworkOptions.detail_stream
    slab_batch_size: int = 24
    checkpoint_activations: bool = True
    whole_validation: bool = False

    takes_chosen_patch = True

    # nnU-Net's, which ships no types
    inference_allowed_mirroring_axes: tuple[int, ...] | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        require_axes(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

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
            NetworkOptions.of(cls),
        )

    @classmethod
    def training_steps(
        cls, plans: PlansManager, configuration: ConfigurationManager, in_channels: int, num_classes: int
    ) -> list[Step]:
        """The steps of the stages that are trained, for the estimate of memory."""

        def build(stage: Stage) -> nn.Module:
            network = cls.build_network_architecture(plans, configuration, in_channels, num_classes, False)
            network = cast(DINOMed3D, network)
            network.checkpoint_activations(cls.checkpoint_activations)
            network.set_stage(stage, single_slab_input=stage == 1)
            return network

        depth, *in_plane = configuration.patch_size
        shapes = {
            1: (cls.slab_batch_size, in_channels, cls.slab_depth, *in_plane),
            2: (configuration.batch_size, in_channels, depth, *in_plane),
        }
        epochs = {1: cls.stage1_epochs, 2: cls.stage2_epochs}
        return [
            Step(
                f"stage {stage}",
                partial(build, stage),
                shapes[stage],
                mixed_precision=cls.mixed_precision,
                count=epochs[stage] * cls.iterations_per_epoch,
            )
            for stage in cls.stages
        ]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to switch: the decoder has one output."""

    def initialize(self) -> None:
        super().initialize()
        self.module.checkpoint_activations(self.checkpoint_activations and self.device.type == "cuda")

    def apply_stage_mode(self) -> None:
        self.module.set_stage(self.stage, single_slab_input=self.stage == 1)

    def configuration_of_stage(self) -> ConfigurationManager:
        """Stage 1's batches are slabs, as many on each rank: nnU-Net's Dice over the batch gathers equal shapes."""
        if self.stage == 2:
            return self.configuration_manager
        _, ranks = self.rank_and_ranks()
        slabs = math.ceil(self.slab_batch_size / ranks) * ranks
        return slab_configuration(self.configuration_manager, self.slab_depth, slabs)

    def tell_start(self) -> None:
        """Say in the log which stage is trained, in which mode the network is now: weights brought their own along."""
        self.apply_stage_mode()
        batch = f"{self.batch_size} {'slabs' if self.stage == 1 else 'patches'} a batch on this device"
        self.tell_stage(self.stage, batch)

    # ---- data ----

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Augmentation:
        """nnU-Net's; in stage 1 for slabs. The mirroring axes of inference are the last stage's."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.slab_depth % 2 == 0 and mirror_axes is not None:
            # a mirrored slab of even K has its central slice elsewhere
            mirror_axes = tuple(axis for axis in mirror_axes if axis != 0)
            self.inference_allowed_mirroring_axes = mirror_axes
        if self.stage == 2:
            return Augmentation(rotation, dummy_2d, initial_patch_size, mirror_axes)
        with self.stage_configuration() as configuration:
            augmentation = slab_augmentation(configuration, mirror_axes)
        if 2 not in self.stages:
            self.inference_allowed_mirroring_axes = augmentation.mirror_axes
        return augmentation

    def make_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Loaders of the current stage for training and validation."""
        train, val = super().make_dataloaders() if self.stage == 2 else self._slab_dataloaders()
        if self.whole_validation:
            stop_workers(val)
            val = self._whole_dataloader()
        return train, val

    def _whole_dataloader(self) -> Iterator[dict]:
        """Batches of the stage that cover the validation cases in one epoch, in a fixed order."""
        augmentation = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        with self.stage_configuration() as configuration:
            _, transforms = self._transforms(configuration.patch_size, augmentation)
            if self.stage == 1:
                transforms = ComposeTransforms([transforms, CropSlab(self.slab_depth)])
            loader, self.num_val_iterations_per_epoch = whole_loader(
                self.get_tr_and_val_datasets()[1],
                configuration,
                self.rank_and_ranks(),
                every_slice=self.stage == 1,
                at_most=self.num_iterations_per_epoch,
                transforms=transforms,
                **self._loader_arguments(),
            )
        return loader

    def _slab_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        augmentation = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        with self.stage_configuration() as configuration:
            return slab_loaders(
                self.get_tr_and_val_datasets(),
                self._transforms(configuration.patch_size, augmentation),
                augmentation.initial_patch_size,
                configuration,
                slab_depth=self.slab_depth,
                oversample_foreground_percent=self.oversample_foreground_percent,
                probabilistic_oversampling=self.probabilistic_oversampling,
                **self._loader_arguments(),
            )

    def _loader_arguments(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "label_manager": self.label_manager,
            "processes": get_allowed_n_proc_DA(),
            "pin_memory": self.device.type == "cuda",
        }

    def _transforms(self, size: Sequence[int], augmentation: Augmentation) -> tuple[BasicTransform, BasicTransform]:
        """nnU-Net's transforms of training and validation, without deep supervision."""
        labels = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        rotation, dummy_2d, _, mirror_axes = augmentation
        masked = self.configuration_manager.use_mask_for_norm
        train = self.get_training_transforms(
            size, rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=masked, **labels
        )
        return train, self.get_validation_transforms(None, **labels)

    def check_data(self) -> None:
        *_, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        check_mirroring(self.slab_depth, mirror_axes)
        super().check_data()

    # ---- start ----

    def load_start_weights(self) -> None:
        """Fill the network, unless it was: on resume, or by -pretrained_weights."""
        stage1_file = stage1_setting()
        if self._resumed:
            if stage1_file:
                self.print_to_log_file("The training is resumed: DINOMED3D_STAGE1 is not looked at.")
        elif stage1_file:
            self._take(start_from_stage1(self.module, stage1_file, self.stages))
        elif not self.module.weights_loaded:
            self._take(start_from_pretrained(self.module, self.variant, type(self).__name__))

    def _take(self, start: Start) -> None:
        self._started_from = start.origin
        self.print_to_log_file(start.message)
        if start.stage1 is None:
            return
        self.record_stage1(start.stage1_record())
        if self.fold != "all":  # validated on its training cases anyway
            splits = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
            _, cases = self.do_split()
            warning = leak_warning(start.stage1, self.plans_manager.dataset_name, splits, self.fold, cases)
            if warning:
                self._warn(warning)

    # ---- validation ----

    def validation_step(self, batch: dict) -> dict:
        real = batch.get("real", len(batch["data"]))
        with only_rows(self.network, batch["target"], real, self.label_manager.has_regions):
            return super().validation_step(batch)

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """On volumes, with LoRA merged into the frozen weights and slabs encoded once."""
        self.module.set_stage(self.stage)
        with self.module.merged_lora(), self.module.cached_slab_features():
            yield
