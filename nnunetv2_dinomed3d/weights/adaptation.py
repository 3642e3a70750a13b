"""Weights for a network with other channels, classes or slabs than the one that they were trained in.

Each tensor of the new network is taken, spread or left random; each of the checkpoint that has no place in it is not
used. All are named. `Trained` and `Target` say what only nnU-Net and the trainers know.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from nnunetv2_dinomed3d.network_architecture.state_dict import ICE, STAGE_KEY, is_lora
from nnunetv2_dinomed3d.weights.spreading import Channels, spread_over_channels, spread_over_slices
from nnunetv2_dinomed3d.weights.trained_network import require_finite
from nnunetv2_dinomed3d.weights.trained_part import RESAMPLING, TrainedPart, trained_part

Fate = Literal["taken", "spread", "left random", "not used"]
FATES: tuple[Fate, ...] = get_args(Fate)

BIAS = ".bias"
SAME_NETWORK = 0.1
"""Share of a backbone's numbers that has to fit; with less, the checkpoint is of another network. Tables of position
biases fit between sizes of a network, and are no more than a hundredth."""


@dataclass(frozen=True)
class Trained:
    """The weights of a checkpoint.

    Attributes:
        state: the network's state dict.
        channels: of its input; None if unknown: then all are the image's.
        stage1_lora: whether its stage 1 trains LoRA in the ViT's place, see `NetworkOptions`.
    """

    state: Mapping[str, Tensor]
    channels: Channels | None = None
    stage1_lora: bool = False


@dataclass(frozen=True)
class Target:
    """The network that the weights are for.

    Attributes:
        state: its state dict with random weights.
        channels: of its input.
        inputs: convolutions that see the input: the second axis of these tensors is its channels.
        heads: tensors whose shape depends on the number of classes.
        redrawn: heads that a training draws anew, whatever a file has.
        lora_scaling: factor of its LoRA, and of the checkpoint's.
    """

    state: Mapping[str, Tensor]
    channels: Channels
    inputs: frozenset[str]
    heads: frozenset[str] = frozenset()
    redrawn: frozenset[str] = frozenset()
    lora_scaling: float = 1.0


@dataclass(frozen=True)
class Entry:
    """What became of a tensor.

    Attributes:
        name: in the network; of one that is not used, in the checkpoint. A tensor with several names has one entry.
        module: part of the network that it is in.
        fate: what became of it.
        numel: how many numbers it holds.
        note: what was done to it, or why nothing could be; empty if it was taken as it is.
    """

    name: str
    module: str
    fate: Fate
    numel: int
    note: str = ""


@dataclass(frozen=True)
class Adaptation:
    """The result.

    Attributes:
        state: all tensors of the network but those that a training draws anew.
        entries: what became of each, in the network's order; at the end those of the checkpoint that are not used.
    """

    state: dict[str, Tensor]
    entries: list[Entry]

    def of(self, *fates: Fate) -> list[Entry]:
        """The entries of these fates."""
        return [entry for entry in self.entries if entry.fate in fates]

    @property
    def share(self) -> float:
        """Share of the network's numbers that come from the checkpoint."""
        return numbers(self.of("taken", "spread")) / max(numbers(self.of("taken", "spread", "left random")), 1)

    def record(self) -> dict[str, Any]:
        """All names, and the notes of those that were not taken as they are: plain data for a checkpoint."""
        noted: tuple[Fate, ...] = ("spread", "left random", "not used")
        return {
            "taken": [entry.name for entry in self.of("taken")],
            **{fate: {entry.name: entry.note for entry in self.of(fate)} for fate in noted},
        }


def adapt(old: Trained, new: Target) -> Adaptation:
    """Fit the weights of a checkpoint to a network.

    - A tensor of the same name and shape is taken, a bias only with its weight.
    - Convolutions of the input are spread over other channels (`spread_over_channels`), ICE over another number of
      slices (`spread_over_slices`).
    - Heads for other classes, and whatever has another shape or is missing, keep their random weights.
    - LoRA where the network has none, or that stage 1 trained, is added to the weights beside it.
    - Parts that the checkpoint's stage 1 has not trained are not used.

    Raises:
        ValueError: the checkpoint is of another network, or holds numbers that are not finite.
    """
    given = trained_part(old.state, old.stage1_lora, new.state, new.lora_scaling)
    first_names, wrapper = _first_names(new.state), _wrapper(new.state)
    state: dict[str, Tensor] = {}
    entries: list[Entry] = []
    used = set(given.lora)
    for name in dict.fromkeys(first_names.values()):
        own, source = new.state[name], given.name_of(name)
        fitted = _fitted_layer(name, given, old.channels, new)
        if source and fitted:
            tensor, how = fitted
            require_finite(source, tensor)
            notes = [how, f"named {source} in the checkpoint" if source != name else ""]
            notes.append("with its LoRA added" if source in given.with_lora else "")
            fate: Fate = "spread" if how else "taken"
            note = ", ".join(filter(None, notes))
            used.add(source)
        else:
            tensor, fate, note = own, "left random", _why_random(name, source, given, new)
        entries.append(Entry(name, _module(name, wrapper), fate, own.numel(), note))
        if name not in new.redrawn:
            state[name] = tensor.to(own.device, own.dtype, copy=True)
    _require_same_network(entries, old.state, new)
    used |= {name for name, first in first_names.items() if first in used}
    for name in dict.fromkeys(_first_names(old.state).values()):
        if name not in used:
            note = _why_unused(name, given, new)
            entries.append(Entry(name, _module(name, wrapper), "not used", old.state[name].numel(), note))
    return Adaptation({name: state[first] for name, first in first_names.items() if first in state}, entries)


def numbers(entries: Iterable[Entry]) -> int:
    """How many numbers the tensors hold."""
    return sum(entry.numel for entry in entries)


def _weight_of(name: str) -> str:
    """The name of the weight that a bias goes with; of other tensors, their own."""
    return f"{name[: -len(BIAS)]}.weight" if name.endswith(BIAS) else name


def _fitted_layer(name: str, given: TrainedPart, channels: Channels | None, new: Target) -> tuple[Tensor, str] | None:
    """`_fitted`, or None where there is no such tensor, or the weight beside a bias does not fit."""
    weight, source = _weight_of(name), given.name_of(name)
    if source is None or name in new.redrawn:
        return None
    if weight != name and weight in new.state and _fitted_layer(weight, given, channels, new) is None:
        return None
    return _fitted(name, given.tensors[source], channels, new)


def _fitted(name: str, tensor: Tensor, channels: Channels | None, new: Target) -> tuple[Tensor, str] | None:
    """The tensor for a place in the network, and how it was spread; None if it does not fit."""
    own, notes = new.state[name], []
    if tensor.is_floating_point() != own.is_floating_point() or tensor.ndim != own.ndim:
        return None
    if name in new.inputs:
        before = channels or Channels(tensor.shape[1])
        if before != new.channels and before.total == tensor.shape[1]:
            tensor = spread_over_channels(tensor, before, new.channels)
            notes.append(before.change_to(new.channels))
        if name.startswith(ICE) and tensor.shape[2] != own.shape[2]:
            notes.append(f"K = {tensor.shape[2]} to {own.shape[2]} slices")
            tensor = spread_over_slices(tensor, own.shape[2])
    return (tensor, ", ".join(notes)) if tensor.shape == own.shape else None


# ---- what is told ----

UNTRAINED = "the checkpoint is of stage 1, which does not train it"
RESAMPLED = "resampling of another in-plane scale S or depth alignment"
BIAS_ALONE = "bias of a layer whose weight does not fit"


def _why_random(name: str, source: str | None, given: TrainedPart, new: Target) -> str:
    if name in new.redrawn:
        return "segmentation layer, which each training draws anew"
    if name in given.untrained:
        return UNTRAINED
    if name in new.heads and source:
        return "segmentation layer for other classes"
    if RESAMPLING.search(name):
        return RESAMPLED
    if source and given.tensors[source].shape == new.state[name].shape:
        return BIAS_ALONE
    if source:
        return f"of the shape {tuple(given.tensors[source].shape)} in the checkpoint"
    return "LoRA, which starts anew" if is_lora(name) else "not in the checkpoint"


def _why_unused(name: str, given: TrainedPart, new: Target) -> str:
    if name in new.heads:
        return "segmentation layer"
    if name in given.untrained:
        return UNTRAINED
    if RESAMPLING.search(name):
        return RESAMPLED
    if name in new.state and given.tensors[name].shape == new.state[name].shape:
        return BIAS_ALONE
    return "of another shape in the network" if name in new.state else "not in the network"


def _wrapper(names: Iterable[str]) -> str:
    """The word that all names begin with, if there is one: of a module that only holds the network."""
    words = {name.partition(".")[0] for name in names if "." in name}
    return f"{words.pop()}." if len(words) == 1 else ""


def _module(name: str, wrapper: str) -> str:
    return "setting" if name == STAGE_KEY else name.removeprefix(wrapper).partition(".")[0]


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name -> the first name of the same tensor. The decoder of nnU-Net's network holds the encoder, too."""
    first: dict[tuple, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr() or name, tensor.shape, tensor.stride()), name)
        for name, tensor in state.items()
    }


# ---- what is refused ----


def _require_same_network(entries: list[Entry], old: Mapping[str, Tensor], new: Target) -> None:
    """The backbone, the first module, has to fit by more than a few tensors."""
    weights = [e for e in entries if new.state[e.name].ndim > 1 and e.name not in new.inputs | new.heads]
    backbone = [e for e in weights if e.module == weights[0].module]
    taken = [e for e in backbone if e.fate == "taken"]
    if numbers(taken) >= SAME_NETWORK * numbers(backbone):
        return
    first = next(e.name for e in backbone if e.fate != "taken")
    there = tuple(old[first].shape) if first in old else "missing"
    raise ValueError(
        f"it is of another network. Of the {len(backbone)} weights of {backbone[0].module}, {len(taken)} fit; {first} "
        f"is {there} there and {tuple(new.state[first].shape)} here."
    )
