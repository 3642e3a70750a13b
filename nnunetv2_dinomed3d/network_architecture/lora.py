"""LoRA on the frozen ViT and ICE: where it is, and how it is merged for prediction (DINO-Med3D, section 2.3.1)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from nnunetv2_dinomed3d.network_architecture.efficiency.dropout import Dropout

VIT_TARGETS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc1_g|fc1_x|fc2))"
"""Linear layers of the Transformer blocks; ``fc1_g`` and ``fc1_x`` are a SwiGLU MLP's (plus-sized ViTs)."""

ICE_TARGET = "conv"


def add_lora(module: nn.Module, targets: str, *, rank: int, alpha: int, dropout: float) -> None:
    """Give the layers whose names match ``targets`` LoRA: ``W + alpha / rank * B A``, with B = 0 at first."""
    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
    inject_adapter_in_model(lora, module)
    if dropout:  # peft's own is PyTorch's
        for layer in lora_layers(module):
            layer.lora_dropout.update({name: Dropout(dropout) for name in layer.lora_dropout})


def lora_layers(module: nn.Module) -> list[LoraLayer]:
    """The layers that carry LoRA."""
    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


@torch.no_grad()
def fold_lora(module: nn.Module) -> None:
    """Add LoRA to the weights that it stands beside, for good; it starts anew, with B = 0."""
    for layer in lora_layers(module):
        for adapter in layer.active_adapters:
            layer.get_base_layer().weight.add_(layer.get_delta_weight(adapter))
            layer.reset_lora_parameters(adapter, init_lora_weights=True)


@contextmanager
def merged_lora(module: nn.Module) -> Iterator[None]:
    """While open, LoRA is folded into the weights of a module; afterwards these are what they were, bit by bit."""
    layers = [layer for layer in lora_layers(module) if not layer.disable_adapters and not layer.merged]
    weights = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            for adapter in layer.active_adapters:
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                layer.get_base_layer().weight.data = torch.addmm(weight, b, a, alpha=layer.scaling[adapter])
                layer.merged_adapters.append(adapter)  # as peft's own merge, which takes three times as long
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = weight


@contextmanager
def lora_merged_during_forward(block: nn.Module) -> Iterator[None]:
    """While open, each forward pass of a block runs with its LoRA merged, so that one block is merged at a time."""
    merged = ExitStack()
    before = block.register_forward_pre_hook(lambda *_: merged.enter_context(merged_lora(block)))
    after = block.register_forward_hook(lambda *_: merged.close(), always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        merged.close()
