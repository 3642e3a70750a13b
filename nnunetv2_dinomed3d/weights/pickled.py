"""Files of ``torch.save``, read without PyTorch's loader: nothing in them runs, none takes much more than its size.

PyTorch's own loader of plain tensors runs no code either, but it makes whatever a file asks for: a view of
four numbers as wide as the memory, ``torch.Tensor(10**10)``, a bytearray of any length. Here tensors are views of the
mapped file, and the few other things that checkpoints hold are listed below.
"""

import io
import mmap
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from nnunetv2_dinomed3d.weights.archive import Member, members_of

PICKLE_LIMIT = 16 << 20
"""Most bytes of the description of the tensors; nnU-Net's log of 1000 epochs and 100 labels has 4 million."""

OPCODE_LIMIT = 2_500_000
"""Most steps of the description; that log has 1.3 million. They take some seconds and 200 MB at most."""

SHARED_LIMIT = 8
"""Most uses of the bytes of a file, in float32: nnU-Net's networks list their encoders' tensors four times."""

MAX_DIMENSIONS = 16
MAX_KEY = 1 << 32

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
"""dtypes of PyTorch's storages; weights have no quantised ones."""

UNTYPED = [
    getattr(torch, name)
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
    if hasattr(torch, name)
]
"""dtypes without a storage of their own."""

NUMBERS = {kind + size for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248"), ("b", "1")) for size in sizes}
"""numpy's names of the numbers that a checkpoint's log holds."""


class NotPlainError(Exception):
    """The file holds something that this reader does not make; the message says what."""


@dataclass
class Storage:
    """Numbers in the file, as one row."""

    row: Tensor


@dataclass
class NumpyType:
    """numpy's dtype: name, and whether the first byte is the smallest (``<``)."""

    name: str
    order: str = "<"


def read_archive(file: BinaryIO) -> Any:
    """Read an archive of ``torch.save``; its tensors are views of the file. All checksums are compared.

    Raises:
        NotPlainError: something else than plain data is in it.
        Exception: it is damaged, of many classes.
    """
    content = _map(file)
    members = members_of(file)
    root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
    if root is None or root.count("/") != 1:
        raise ValueError("is damaged or of another program: it has no data.pkl")
    order = members.get(f"{root}byteorder", Member(0, 0, 0))
    if content[order.start : order.start + order.size] not in (b"", b"little"):
        raise NotPlainError("numbers with the largest byte first")
    pickled = members[f"{root}data.pkl"]
    _require_small(pickled.size)
    for name, member in members.items():
        with memoryview(content)[member.start : member.start + member.size] as stored:
            if zlib.crc32(stored) != member.crc32:
                raise ValueError(f"the checksum of its member {name!a} does not fit")
    rows: dict[str, Tensor] = {}

    def row(key: Any, dtype: torch.dtype, count: int) -> Tensor:
        name = f"{root}data/{key}"
        if name not in members or members[name].size != count * dtype.itemsize:
            raise ValueError(f"tensor {key!a} has another size than its description says")
        if key not in rows:
            rows[key] = _row(content, members[name].start, dtype, count)
        if rows[key].dtype != dtype:
            raise ValueError(f"tensor {key!a} has two dtypes")
        return rows[key]

    return _Unpickler(content[pickled.start : pickled.start + pickled.size], row, len(content)).load()


def read_legacy(file: BinaryIO) -> Any:
    """Read a file that PyTorch before 1.6 wrote, as `read_archive`: pickles, then the tensors' bytes. No checksums."""
    content = _map(file)
    described = content[:PICKLE_LIMIT]
    declared: dict[str, tuple[torch.dtype, int]] = {}

    def nothing(key: Any, dtype: torch.dtype, count: int) -> Tensor:
        if declared.setdefault(key, (dtype, count)) != (dtype, count) or count * dtype.itemsize > len(content):
            raise ValueError(f"tensor {key!a} has another size than its description says")
        return torch.empty(count, dtype=dtype, device="meta")

    reader = _Unpickler(described, nothing, len(content))
    if reader.load() != LEGACY_MAGIC:
        raise NotPlainError("a pickle that torch.save did not write")
    reader.load()  # version
    system = reader.load()
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise NotPlainError("numbers with the largest byte first")
    start = reader.place
    reader.load()
    keys = reader.load()
    place = reader.place
    starts: dict[str, int] = {}
    for key in keys:
        dtype, count = declared[key]
        if struct.unpack("<q", content[place : place + 8]) != (count,):
            raise ValueError(f"tensor {key!a} has another size than its description says")
        starts[key] = place + 8
        place += 8 + count * dtype.itemsize
    if place > len(content):
        raise ValueError("it ends too early")
    rows = {key: _row(content, starts[key], *declared[key]) for key in starts}
    return _Unpickler(described[start:], lambda key, dtype, count: rows[key], len(content)).load()


def _map(file: BinaryIO) -> mmap.mmap:
    # a copy on write, since PyTorch warns of memory that cannot be written
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _require_small(size: int) -> None:
    if size > PICKLE_LIMIT:
        raise NotPlainError(f"a description of {size:,} bytes, which of a network has less than {PICKLE_LIMIT:,}")


def _row(content: mmap.mmap, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if not count:
        return torch.empty(0, dtype=dtype)
    size = count * dtype.itemsize
    if start % dtype.itemsize:
        return torch.frombuffer(bytearray(content[start : start + size]), dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start)


class _Unpickler(pickle._Unpickler):  # in C, one opcode makes a memo of any length
    """Reader that makes plain data and views of given rows; it knows no class and calls only functions of `_made`."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, row: Callable[[Any, torch.dtype, int], Tensor], size: int) -> None:
        """Take the pickle, a function to a storage's row (from key, dtype and count), and the file's size in bytes."""
        self._content = io.BytesIO(content)
        super().__init__(self._content, encoding="utf-8")
        self.dispatch = _Opcodes()  # type: ignore[misc]  # the class has one for all
        self._row = row
        self._left = SHARED_LIMIT * size
        self._made: dict[tuple[str, str], Callable] = {
            **dict.fromkeys((("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")), self.tensor),
            ("torch._utils", "_rebuild_tensor_v3"): self.tensor_v3,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *rest: tensor,
            ("torch", "Size"): lambda sizes: tuple(sizes),
            ("torch", "device"): lambda *name: torch.device(*name),
            ("collections", "OrderedDict"): _mapping,
            ("_codecs", "encode"): _encode,
            ("numpy", "dtype"): lambda name, *rest: NumpyType(name),
            ("numpy.core.multiarray", "scalar"): _number,
            ("numpy._core.multiarray", "scalar"): _number,
        }

    @property
    def place(self) -> int:
        """Bytes of the pickle that have been read."""
        return self._content.tell()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._made:
            return self._made[module, name]
        if module in ("torch", "torch.storage", "torch.cuda") and name in DTYPES:
            return DTYPES[name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype) and (dtype in DTYPES.values() or dtype in UNTYPED):
            return dtype
        raise NotPlainError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or any(view):
            raise NotPlainError("something that is no tensor")
        if type(count) is not int or count < 0:
            raise ValueError("a tensor has no size")
        return Storage(self._row(key, dtype, count))

    def tensor(self, storage: Storage, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
        if any(rest[2:]):  # conjugate or negative
            raise NotPlainError("a tensor with something besides")
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor has {len(size)} dimensions")
        if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
            raise ValueError("a tensor has no shape")
        count, row = prod(size), storage.row
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (last >= len(row) or count > len(row)):
            raise ValueError(f"a tensor of shape {list(size)} shall be in {len(row)} numbers")
        self._left -= count * max(4, row.dtype.itemsize)
        if self._left < 0:
            raise ValueError("all tensors together are much larger than the file")
        return row.as_strided(size, stride, offset + row.storage_offset()) if count else row.new_empty(size)

    def tensor_v3(
        self, storage: Storage, offset: int, size: tuple, stride: tuple, grad: bool, hooks: Any, dtype: Any, *rest: Any
    ) -> Tensor:
        return self.tensor(Storage(storage.row.view(dtype)), offset, size, stride, grad, hooks, *rest)

    # ---- opcodes ----

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not callable(function) or not any(function is made for made in self._made.values()):
            raise NotPlainError("a call of something that is no function")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, NumpyType):
            made.order = state[1]
        elif type(made) is not dict:  # of an OrderedDict the attributes, which nothing here needs
            raise NotPlainError(f"attributes of a {type(made).__name__}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)


class _Opcodes(dict[int, Callable]):
    """Handlers of the opcodes that ``torch.save`` writes, but for those that make objects of classes and sets."""

    def __init__(self) -> None:
        theirs = pickle._Unpickler.dispatch
        plain = (
            pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT,
            pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING,
            pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST,
            pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT,
            pickle.LONG_BINPUT, pickle.GLOBAL, pickle.BINPERSID,
        )  # fmt: skip
        ours = {
            pickle.REDUCE: _Unpickler.load_reduce, pickle.BUILD: _Unpickler.load_build,
            pickle.SETITEM: _Unpickler.load_setitem, pickle.SETITEMS: _Unpickler.load_setitems,
        }  # fmt: skip
        super().__init__({code[0]: theirs[code[0]] for code in plain} | {code[0]: load for code, load in ours.items()})
        self.left = OPCODE_LIMIT

    def __getitem__(self, code: int) -> Callable:
        self.left -= 1
        if self.left < 0:
            raise NotPlainError(f"a description of more than {OPCODE_LIMIT:,} steps")
        if code not in self:
            raise NotPlainError(f"the opcode {bytes([code])!r}, which torch.save does not write")
        return super().__getitem__(code)


def _put(target: Any, items: list) -> None:
    """Fill a dict; keys whose hash could take for ever are refused."""
    if type(target) is not dict:
        raise NotPlainError(f"items of a {type(target).__name__}")
    for key in items[::2]:
        if type(key) not in (str, int, bool, type(None)) or (type(key) is int and abs(key) >= MAX_KEY):
            raise NotPlainError(f"a {type(key).__name__} as a key")
    target.update(zip(items[::2], items[1::2], strict=True))


def _mapping(pairs: Any = ()) -> dict:
    made: dict = {}
    for pair in pairs:
        _put(made, list(pair))
    return made


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise NotPlainError(f"text in {encoding}")
    return text.encode("latin-1")


def _number(kind: NumpyType, data: bytes) -> Any:
    if kind.name not in NUMBERS or kind.order not in ("<", "|", "="):
        raise NotPlainError(f"numpy's {kind.name}")
    (number,) = np.frombuffer(data, f"<{kind.name}")
    return number
