"""Files of weights, made up: as other programs save them, as nnU-Net does, and as somebody hostile writes them."""

import os
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Malicious:
    """Unpickled by the book, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def dump_pickle(content: object, path: Path) -> None:
    Path(path).write_bytes(pickle.dumps(content, protocol=2))


def global_(name: str) -> bytes:
    module, name = name.rsplit(".", 1)
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def row_of(dtype: str = "Float", count: int = 4, key: str = "0") -> bytes:
    """A storage."""
    parts = [text("storage"), global_(f"torch.{dtype}Storage"), text(key), text("cpu"), number(count)]
    return pickle.MARK + b"".join(parts) + pickle.TUPLE + pickle.BINPERSID


def view(size: Iterable[int], stride: Iterable[int], offset: int = 0, row: bytes | None = None) -> bytes:
    """A tensor."""
    shape = [pickle.MARK + b"".join(map(number, part)) + pickle.TUPLE for part in (size, stride)]
    parts = [row or row_of(), number(offset), *shape, pickle.NEWFALSE, pickle.EMPTY_DICT]
    return global_("torch._utils._rebuild_tensor_v2") + pickle.MARK + b"".join(parts) + pickle.TUPLE + pickle.REDUCE


def call(function: str, *arguments: bytes) -> bytes:
    return global_(function) + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def item(value: bytes, key: bytes | None = None) -> bytes:
    """A dict with one item."""
    return pickle.EMPTY_DICT + (key or text("a")) + value + pickle.SETITEM


def write_archive(path: Path, pickled: bytes, **members: str) -> None:
    """An archive as torch.save writes it, with this pickle and a storage of four numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.PROTO + b"\x02" + pickled + pickle.STOP)
        archive.writestr("x/version", "3")
        archive.writestr("x/byteorder", members.get("byteorder", "little"))
        archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())


def checkpoint() -> dict[str, Any]:
    """A checkpoint as nnU-Net's save_checkpoint makes it, with the types that are in a real one."""
    return {
        "network_weights": {"encoder.ice.conv.bias": torch.randn(8), "_extra_state": torch.tensor(1)},
        "optimizer_state": {
            "state": {0: {"step": torch.tensor(2.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 1)}],
        },
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float32(0.5)],
            "dice_per_class_or_region": [[np.float64(0.25), np.float64("nan")]],
            "lrs": [1e-4],
        },
        "_best_ema": np.float32(0.5),
        "current_epoch": 3,
        "init_args": {"plans": {"dataset_name": "Dataset901"}, "fold": 0, "device": torch.device("cuda", 0)},
        "trainer_name": "nnUNetTrainerDINOMed3D",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
