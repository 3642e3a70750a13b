"""The cost of a whole training before it starts: GPU hours and disk, estimated from the network's operations."""

from dataclasses import dataclass

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_dinomed3d.planning.step_memory import Step, leave_meta
from nnunetv2_dinomed3d.planning.training_memory import training_steps

SUSTAINED_TFLOPS = 40.0
"""Operations per second that a training is assumed to reach: an eighth of an A100's peak in bfloat16. Not measured."""


@dataclass(frozen=True)
class TrainingCost:
    """What a training takes.

    Attributes:
        hours: on one GPU, of the steps alone: no validation, no waiting for data.
        disk: bytes of its checkpoints.
    """

    hours: float
    disk: int


def training_cost(trainer: type, plans: dict, configuration: str, dataset_json: dict) -> TrainingCost:
    """The cost of a trainer on nnU-Net's plans.

    Args:
        trainer: its class.
        plans: nnU-Net's.
        configuration: name of one.
        dataset_json: content of the file.

    Raises:
        ValueError: the trainer does not say how many steps a training has.
    """
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset_json)
    classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    flops, files = 0, []
    for step in training_steps(trainer, manager, chosen, channels, classes):
        if step.count is None:
            raise ValueError(f"{trainer.__name__} does not say how many steps of its {step.name} a training has.")
        with torch.device("meta"):
            network = step.build()
        files.append(_checkpoint_bytes(network, step))
        flops += step.count * _step_flops(network, step)
    # the best epoch's of each stage, and the last one's
    return TrainingCost(flops / (SUSTAINED_TFLOPS * 1e12) / 3600, sum(files) + files[-1])


def _checkpoint_bytes(network: nn.Module, step: Step) -> int:
    """Bytes of weights and the optimiser's state, in float32."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    moments = 2 if "betas" in step.optimizer(trained).defaults else 1
    everything = sum(parameter.numel() for parameter in network.parameters())
    return 4 * (everything + moments * sum(parameter.numel() for parameter in trained))


def _step_flops(network: nn.Module, step: Step) -> int:
    """Multiplications and additions of a forward and backward pass, counted on tensors without data."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        leave_meta(network)
        network.train()
        with FlopCounterMode(display=False) as counter:
            outputs = network(torch.empty(step.batch_shape))
            torch.stack([o.sum() for o in ([outputs] if isinstance(outputs, Tensor) else outputs)]).sum().backward()
    return counter.get_total_flops()
