"""Files of ``torch.save``: read as PyTorch reads them, refused where they would hang or fill the memory."""

import pickle

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d.weights.files import read_checkpoint, read_content, read_tensors
from tests.made_up_weights import (
    call,
    checkpoint,
    global_,
    item,
    number,
    row_of,
    save_legacy,
    text,
    view,
    write_archive,
)

pytestmark = pytest.mark.own


def test_what_the_hostile_files_are_made_of(tmp_path):
    """The tests below would prove nothing with pickles that are wrong for other reasons."""
    write_archive(tmp_path / "file.pth", item(view((2, 2), (1, 2))))
    assert read_tensors(tmp_path / "file.pth")["a"].tolist() == [[0, 2], [1, 3]]
    assert torch.equal(torch.load(tmp_path / "file.pth")["a"], read_tensors(tmp_path / "file.pth")["a"])


HUGE = 10**11
HOSTILE = {
    "expanded": item(view((HUGE,), (0,))),
    "expanded a little": item(view((3, 2), (0, 1))),
    "beyond the end": item(view((2,), (1,), offset=3)),
    "overlapping": item(view((HUGE, 1), (1, 1))),
    "of another size": item(view((5,), (1,), row=row_of(count=5))),
    "of a storage that is not there": item(view((4,), (1,), row=row_of(key="1"))),
    "of a member outside": item(view((4,), (1,), row=row_of(key="../byteorder"))),
    "with a negative stride": item(view((2,), (-1,), offset=2)),
    "with many dimensions": item(view((1,) * 40, (1,) * 40)),
    "a tensor of any size": item(call("torch.Tensor", number(HUGE))),
    "bytes of any size": item(call("builtins.bytearray", number(HUGE))),
    "a number of any size": item(
        call(
            "numpy.core.multiarray.scalar",
            call("numpy.dtype", text("V99999999999"), pickle.NEWFALSE, pickle.NEWTRUE),
        )
    ),
    "without storage": item(call("torch._utils._rebuild_meta_tensor_no_storage", global_("torch.float32"))),
    "sparse": item(call("torch._utils._rebuild_sparse_tensor", global_("torch.sparse_coo"))),
    "a slow codec": item(call("_codecs.encode", text("a" * 100), text("punycode"))),
    "a key without end": item(
        pickle.NONE, key=pickle.EMPTY_TUPLE + 100 * (pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2)
    ),
    "keys of one hash": item(pickle.NONE, key=number((2**61 - 1) * 2)),
    "a memo of any size": item(pickle.NONE + pickle.PUT + b"4000000000\n"),
    "attributes": item(view((4,), (1,)) + pickle.EMPTY_DICT + text("a") + pickle.NONE + pickle.SETITEM + pickle.BUILD),
    "numbers the other way round": item(view((4,), (1,), row=row_of() + pickle.NEWTRUE + pickle.BUILD)),
}


@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archive(pickled, tmp_path):
    """A file of 1 kB must not take the memory of the machine, or its time, whatever it claims to hold."""
    write_archive(tmp_path / "file.pth", pickled)
    with pytest.raises(ValueError, match=r"file.pth (is damaged|holds) .*Download it again") as raised:
        read_tensors(tmp_path / "file.pth")
    assert len(str(raised.value).splitlines()) == 1


def test_many_views(tmp_path):
    """Each would be copied when it becomes float32; nnU-Net's networks list a tensor four times."""
    half = torch.zeros(10_000).half()
    torch.save({name: half.view(100, 100) for name in "abcd"}, tmp_path / "file.pth")
    assert read_tensors(tmp_path / "file.pth").keys() == set("abcd")
    torch.save({str(i): half.view(100, 100) for i in range(20)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="all tensors together are much larger than the file"):
        read_tensors(tmp_path / "file.pth")


def test_large_description(tmp_path):
    """The pickle itself is the bomb."""
    write_archive(tmp_path / "file.pth", item(pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_DICT * (17 << 20)))
    with pytest.raises(ValueError, match="a description of 17,"):
        read_tensors(tmp_path / "file.pth")
    write_archive(tmp_path / "file.pth", item(pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_DICT * (15 << 20)))
    with pytest.raises(ValueError, match="a description of more than 2,500,000 steps"):
        read_tensors(tmp_path / "file.pth")


def test_long_log(tmp_path):
    """nnU-Net's own, after 1000 epochs with 100 labels, is no bomb."""
    content = checkpoint()
    content["logging"]["dice_per_class_or_region"] = [list(np.random.rand(100)) for _ in range(1000)]
    torch.save(content, tmp_path / "checkpoint.pth")
    read = read_checkpoint(tmp_path / "checkpoint.pth")
    assert read["logging"]["dice_per_class_or_region"] == content["logging"]["dice_per_class_or_region"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4).expand(1000, 4),
        torch.zeros(1000, device="meta"),
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.tensor([1 + 2j]).conj(),
    ],
    ids=["expanded", "meta", "sparse", "csr", "quantised", "nested", "conjugate"],
)
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_tensors_of_no_weights(tensor, save, tmp_path):
    """PyTorch writes them, and no program that reads weights expects them."""
    save({"a": tensor}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file.pth (is damaged|holds) .*Download it again"):
        read_tensors(tmp_path / "file.pth")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_what_is_read_is_what_was_saved(dtype, save, tmp_path):
    """Views, parameters, empty and shared tensors, numbers and texts: as PyTorch's own loader gives them."""
    whole = (torch.arange(24) % 7).reshape(4, 6).to(dtype)
    content = {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:3, ::2],
        "empty": whole[:0],
        "scalar": whole[2, 2],
        "wide": torch.zeros(1, 6, dtype=dtype)[:, None],
        "parameter": torch.nn.Parameter(whole.float()) if dtype == torch.float64 else whole,
        "other": {
            "numbers": [1, -(2**40), 2.5, None, True, "\u00e9", (1, (2, 3)), torch.Size([3])],
            "more": {"x": b""[:0].hex()},
        },
    }
    save(content, tmp_path / "file.pth")
    read, expected = read_content(tmp_path / "file.pth"), torch.load(tmp_path / "file.pth")
    assert read.keys() == expected.keys()
    assert read["other"] == expected["other"]
    for name in expected.keys() - {"other"}:
        assert read[name].dtype == expected[name].dtype
        assert torch.equal(read[name], expected[name])


@pytest.mark.skipif(not hasattr(torch, "uint16"), reason="an older PyTorch")
def test_newer_dtypes(tmp_path):
    """Some have no storage of their own: LightlyTrain and others export 8-bit floats."""
    content = {"a": torch.ones(3, 2).to(torch.float8_e4m3fn), "b": torch.ones(3, dtype=torch.uint16)}
    torch.save(content, tmp_path / "file.pth")
    read = read_tensors(tmp_path / "file.pth")
    assert torch.equal(read["a"].float(), torch.ones(3, 2))
    assert read["b"].dtype == torch.uint16
