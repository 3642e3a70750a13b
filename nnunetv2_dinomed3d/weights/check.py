"""The check of a file's tensors: all of them fit the network exactly, or the file is refused."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import Shape, misfit


def check_vit_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], vit_name: str) -> None:
    """Compare names and shapes of a 2D ViT.

    Args:
        found: name (timm's) and shape of every tensor of the file.
        expected: the same, of every tensor that the network needs.
        vit_name: timm's name of the network's ViT.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    if wrong := misfit(found, expected):
        raise ValueError(f"{wrong} {_about_size(vit_size(found), vit_size(expected), vit_name)}")


def vit_size(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Width and depth of the ViT that has these tensors, by timm's names; 0 if they do not tell."""
    width = (shapes.get("norm.weight") or (0,))[0]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    return width, depth


def _about_size(found: tuple[int, int], wanted: tuple[int, int], vit_name: str) -> str:
    if found == wanted:
        return (
            f"Width ({found[0]}) and depth ({found[1]}) are those of {vit_name}: is the file incomplete, or that of a "
            "plus-sized ViT, which has another MLP?"
        )
    return (
        f"The file is a ViT of width {found[0]} and depth {found[1]}, the trainer needs width {wanted[0]} and depth "
        f"{wanted[1]}: use the weights of {vit_name}, or the trainer of the file's size (another -tr)."
    )


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in float32, on the CPU.

    Raises:
        ValueError: a tensor holds NaN, infinity, or something other than floating-point numbers.
    """
    converted = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}: weights must be floating-point numbers, not quantised.")
        converted[name] = tensor.detach().to("cpu", torch.float32)
        if not bool(converted[name].isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite (NaN or infinity): download the file again.")
    return converted
