"""The cost of a whole training before it starts: GPU hours and disk, estimated from the network's operations."""

import math
import re
from dataclasses import dataclass

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_dinomed3d.planning.step_memory import Step, leave_meta
from nnunetv2_dinomed3d.planning.training_memory import training_steps

SUSTAINED_TFLOPS = 40.0
"""Operations per second that a training is assumed to reach: an eighth of an A100's peak in bfloat16. Not measured."""

CHECKPOINTS = 2
"""Files that a training leaves: the best epoch's and the last one's."""

STOCK_EPOCHS, ITERATIONS = 1000, 250


@dataclass(frozen=True)
class TrainingCost:
    """What a training takes.

    Attributes:
        hours: on one GPU, of the steps alone: no validation, no waiting for data.
        disk: bytes of its checkpoints.
    """

    hours: float
    disk: int


def step_flops(step: Step) -> int:
    """Multiplications and additions of a forward and backward pass, counted on tensors without data."""
    with torch.device("meta"):
        network = step.build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        leave_meta(network)
        network.train()
        with FlopCounterMode(display=False) as counter:
            outputs = network(torch.empty(step.batch_shape))
            torch.stack([o.sum() for o in ([outputs] if isinstance(outputs, Tensor) else outputs)]).sum().backward()
    return counter.get_total_flops()


def number_of_steps(trainer: type, step: Step) -> int:
    """How often a trainer takes a step: its class says, or a stock trainer's name."""
    epochs = getattr(trainer, "epochs", None)
    if epochs is None and step.name.startswith("stage "):
        epochs = getattr(trainer, f"stage{step.name[-1]}_epochs")
    if epochs is None:
        found = re.search(r"_(\d+)epochs?$", trainer.__name__)
        epochs = int(found[1]) if found else STOCK_EPOCHS
    return int(epochs) * int(getattr(trainer, "iterations_per_epoch", ITERATIONS))


def training_cost(trainer: type, plans: dict, configuration: str, dataset_json: dict) -> TrainingCost:
    """The cost of a trainer on nnU-Net's plans.

    Args:
        trainer: its class.
        plans: nnU-Net's.
        configuration: name of one.
        dataset_json: content of the file.
    """
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset_json)
    classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    flops, largest = 0, 0
    for step in training_steps(trainer, manager, chosen, channels, classes):
        flops += step_flops(step) * number_of_steps(trainer, step)
        with torch.device("meta"):
            network = step.build()
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = step.optimizer(trained)
        moments = 2 if "betas" in optimizer.defaults else 1
        everything = sum(p.numel() for p in network.parameters())
        largest = max(largest, 4 * (everything + moments * sum(p.numel() for p in trained)))
    return TrainingCost(flops / (SUSTAINED_TFLOPS * 1e12) / 3600, CHECKPOINTS * math.ceil(largest))
