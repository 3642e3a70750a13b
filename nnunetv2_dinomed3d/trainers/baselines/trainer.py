"""The trainer of any baseline: a network of Table 1 and its official recipe on nnU-Net's hooks."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork
from nnunetv2_dinomed3d.planning.step_memory import Step
from nnunetv2_dinomed3d.settings import WEIGHTS_VARIABLE
from nnunetv2_dinomed3d.trainers.baselines.recipe import Recipe
from nnunetv2_dinomed3d.trainers.harness.input_checks import require_axes
from nnunetv2_dinomed3d.trainers.harness.trainer import HarnessTrainer


class BaselineTrainer(HarnessTrainer):
    """A network of another paper, trained as its official code trains it, on nnU-Net's plans, folds and data.

    Attributes:
        network_name: one of `network_architecture.baselines.BASELINES`.
        recipe: the official one.
        deep_supervision: whether the coarser outputs are trained too.
        deep_supervision_weights: of the outputs in the loss, the finest first; None for nnU-Net's.
        epochs: length of the training; the paper's, not the official one.
    """

    network_name: str
    recipe: Recipe = Recipe()
    deep_supervision: bool = False
    deep_supervision_weights: tuple[float, ...] | None = None
    epochs: int = 100

    takes_chosen_patch = True
    gradient_clip = 12.0  # nnU-Net's

    enable_deep_supervision: bool  # nnU-Net's, which ships no types

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        require_axes(plans, configuration, self.axes)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.epochs
        self.initial_lr, self.weight_decay = self.recipe.lr, self.recipe.weight_decay
        self.enable_deep_supervision = self.deep_supervision

    # ---- network ----

    @classmethod
    def network_options(cls, configuration: ConfigurationManager) -> Mapping[str, Any]:
        """Keyword arguments of the network that depend on nnU-Net's plans."""
        return {}

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network with random weights; nnU-Net calls this for training and for prediction."""
        network = build_baseline(
            cls.network_name,
            num_input_channels,
            num_output_channels,
            configuration_manager.patch_size,
            **cls.network_options(configuration_manager),
        )
        network.deep_supervision = cls.deep_supervision and enable_deep_supervision
        network.mixed_precision = cls.mixed_precision
        return network

    @classmethod
    def training_steps(
        cls, plans: PlansManager, configuration: ConfigurationManager, in_channels: int, num_classes: int
    ) -> list[Step]:
        """The one step of the training, for the estimate of memory."""
        build = partial(cls.build_network_architecture, plans, configuration, in_channels, num_classes)
        shape = (configuration.batch_size, in_channels, *configuration.patch_size)
        steps = cls.epochs * cls.iterations_per_epoch
        return [Step("training", build, shape, cls.recipe.make_optimizer, cls.mixed_precision, steps)]

    @classmethod
    def patch_divisor(
        cls, plans: PlansManager, configuration: ConfigurationManager, in_channels: int, num_classes: int
    ) -> tuple[int, ...]:
        """Numbers of which the patch's sides should be multiples: other patches are padded, which costs for nothing."""
        with torch.device("meta"):
            network = cls.build_network_architecture(plans, configuration, in_channels, num_classes)
        return cast(AnySizeNetwork, network).divisor

    @property
    def module(self) -> AnySizeNetwork:
        """The network without the wrappers of DDP and torch.compile."""
        return cast(AnySizeNetwork, super().module)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the coarser outputs on for training, off for prediction."""
        self.module.deep_supervision = self.deep_supervision and enabled

    # ---- recipe ----

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The recipe's optimiser over what is trained, and its schedule."""
        optimizer = self.recipe.make_optimizer([p for p in self.network.parameters() if p.requires_grad])
        return optimizer, self.recipe.make_scheduler(optimizer, self.num_epochs)

    def deep_supervision_scales(self) -> Sequence[Sequence[float]]:
        """Size of each output as a share of the patch's sides, the finest first."""
        scales: Sequence[Sequence[float]] = super()._get_deep_supervision_scales()
        return scales

    def _get_deep_supervision_scales(self) -> Sequence[Sequence[float]] | None:
        return self.deep_supervision_scales() if self.enable_deep_supervision else None

    def _build_loss(self) -> nn.Module:
        with np.errstate(invalid="ignore"):
            loss = super()._build_loss()
        if self.enable_deep_supervision:
            if self.deep_supervision_weights is not None:
                loss.weight_factors = self.deep_supervision_weights
            elif len(self.deep_supervision_scales()) == 1:  # plans of two stages, for which nnU-Net computes 0 / 0
                loss.weight_factors = (1.0,)
        return loss

    # ---- start ----

    def load_start_weights(self) -> None:
        """Fill the network, unless it was: on resume, or by -pretrained_weights."""
        if not self._resumed and not self.module.weights_loaded:
            self._started_from, message = self.start()
            self.print_to_log_file(message)

    def start(self) -> tuple[str, str]:
        """Fill the network; return the origin of the weights, for the record, and a message for the log."""
        ignored = f" {WEIGHTS_VARIABLE} is not looked at." if os.environ.get(WEIGHTS_VARIABLE) else ""
        return "random weights", f"{self.network_name} has no pretrained weights: it starts from random ones.{ignored}"

    def tell_start(self) -> None:
        """Say in the log what is trained, and how."""
        super().tell_start()
        weights = self.deep_supervision_weights
        how = (
            "on, with nnU-Net's weights"
            if weights is None
            else f"on, with weights {', '.join(f'{w:.3f}' for w in weights)}"
        )
        self.print_to_log_file(
            f"Recipe of {self.network_name}: {self.recipe.describe(self.num_epochs)}; gradients clipped to norm "
            f"{self.gradient_clip:g}; deep supervision {how if self.deep_supervision else 'off'}."
        )
