"""Files that are not what they should be are refused with the reason, and nothing in them is run."""

import hashlib
import json
import os
import pickle
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nnunetv2_dinomed3d.weights.archive import require_sound_archive
from nnunetv2_dinomed3d.weights.files import (
    read_checkpoint,
    read_content,
    read_tensors,
    sha256,
    verify_meta_checksum,
    weight_files,
)

pytestmark = pytest.mark.own


class Malicious:
    """Unpickled by the book, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def dump_pickle(content, path):
    Path(path).write_bytes(pickle.dumps(content, protocol=2))


SAVERS = {"safetensors": save_file, "zip": torch.save, "legacy": save_legacy}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_content_decides_not_the_name(save, name, tmp_path):
    """A file that was renamed, or has no ending, loads all the same."""
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16()}
    save(tensors, tmp_path / name)
    read = read_tensors(tmp_path / name)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("save", [torch.save, save_legacy, dump_pickle])
def test_code_in_a_file_is_not_run(save, tmp_path):
    """Weights are downloaded from anywhere: loading them must not execute what somebody put inside."""
    made = tmp_path / "made_by_the_code"
    save({"a": Malicious(made)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth .*more than plain tensors.*never run.* set DINOMED3D_WEIGHTS"):
        read_tensors(tmp_path / "weights.pth")
    assert not made.exists()


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize("part", [0.001, 0.5, 0.98])
def test_truncated_file(save, part, tmp_path):
    """A download that broke off is named as such, whatever PyTorch's own complaint."""
    path = tmp_path / "weights.pth"
    save({"a": torch.randn(100, 100)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"weights.pth is damaged.*Download it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "neither a safetensors nor a PyTorch file: it starts with b'<!DOCTYPE"),
        (b"version https://git-lfs.github.com/spec/v1", "it starts with b'version https"),
    ],
)
def test_not_weights_at_all(content, reason, tmp_path):
    """A failed download often leaves this: nothing, an error page, a Git LFS pointer."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{reason}.*Download it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list, not a dict"),
        ({"student": {"a": torch.zeros(1)}, "epoch": 3}, "2 top-level keys are student, epoch.* save that part alone"),
        ({"teacher": {"a": 3}, "epoch": 3}, "2 top-level keys are teacher, epoch"),
        ({1: torch.zeros(1)}, "top-level keys are 1"),
    ],
)
def test_not_a_dict_of_tensors(content, reason, tmp_path):
    """A training checkpoint: the user sees what is in it, instead of 300 missing tensors."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=reason):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("key", ["teacher", "network_weights", "model_state_dict"])
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_network_in_a_checkpoint(key, save, tmp_path):
    """Other things that a training saved (numpy's numbers, an optimiser) are no reason to refuse its network."""
    tensors = {"a": torch.randn(2, 3)}
    save({"iteration": 3, "best": np.float64(0.5), "optimizer": {"state": {}}, key: tensors}, tmp_path / "file.pth")
    read = read_tensors(tmp_path / "file.pth")
    assert read.keys() == {"a"}
    assert torch.equal(read["a"], tensors["a"])


# ---- files made to hang or to fill the memory ----


def global_(name):
    module, name = name.rsplit(".", 1)
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value):
    data = value.to_bytes(9, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def row_of(dtype="Float", count=4, key="0"):
    """A storage."""
    parts = [text("storage"), global_(f"torch.{dtype}Storage"), text(key), text("cpu"), number(count)]
    return pickle.MARK + b"".join(parts) + pickle.TUPLE + pickle.BINPERSID


def view(size, stride, offset=0, row=None):
    """A tensor."""
    shape = [pickle.MARK + b"".join(map(number, part)) + pickle.TUPLE for part in (size, stride)]
    parts = [row or row_of(), number(offset), *shape, pickle.NEWFALSE, pickle.EMPTY_DICT]
    return global_("torch._utils._rebuild_tensor_v2") + pickle.MARK + b"".join(parts) + pickle.TUPLE + pickle.REDUCE


def call(function, *arguments):
    return global_(function) + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def item(value, key=None):
    """A dict with one item."""
    return pickle.EMPTY_DICT + (key or text("a")) + value + pickle.SETITEM


def write_archive(path, pickled, **members):
    """An archive as torch.save writes it, with this pickle and a storage of four numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.PROTO + b"\x02" + pickled + pickle.STOP)
        archive.writestr("x/version", "3")
        archive.writestr("x/byteorder", members.get("byteorder", "little"))
        archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())


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


@pytest.mark.parametrize("place", ["a tensor", "the description", "the directory"])
def test_flipped_bit(place, tmp_path):
    """PyTorch reads such a file without a word, and trains from a wrong number."""
    path = tmp_path / "file.pth"
    torch.save({"a": torch.randn(1000)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = {info.filename.split("/", 1)[1]: info.header_offset for info in archive.infolist()}
    marks = {"a tensor": offsets["data/0"] + 2000, "the description": offsets["data.pkl"] + 70, "the directory": -150}
    content[marks[place]] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file.pth (is damaged|holds)"):
        read_tensors(path)
    with pytest.raises(ValueError, match=r"file.pth (is damaged|holds)"):
        require_sound_archive(path)


def test_sound_archive(tmp_path):
    """A file of torch.save is sound; half of it, another program's archive, and another file are not."""
    path = tmp_path / "file.pth"
    torch.save({"a": torch.randn(1000), "b": torch.empty(0)}, path)
    require_sound_archive(path)
    content = path.read_bytes()
    for wrong in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        b"PK",
        b"x" + content,
        content + b"x",
        b"\x80\x02N.",
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"file.pth is damaged"):
            require_sound_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match=r"holds the compressed member 'x/data.pkl'"):
        require_sound_archive(path)


@pytest.mark.parametrize("read", [read_tensors, read_checkpoint, require_sound_archive, sha256])
def test_no_regular_file(read, tmp_path):
    """A pipe nobody writes to, a device without end: refused, not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, reason in (
            ("pipe", "is a pipe"),
            ("link", "is a pipe"),
            ("socket", "is a socket"),
            ("/dev/zero", "is a device"),
            ("/dev/null", "is a device"),
            ("nothing", "does not exist"),
            ("loop", "cannot be read"),
        ):
            with pytest.raises(ValueError, match=reason):
                read(tmp_path / name)


def test_safetensors_header(tmp_path):
    """The header's length is the file's word."""
    for size in (2**63, 90 << 20):
        (tmp_path / "file").write_bytes(size.to_bytes(8, "little") + b'{"a":' + b" " * 100)
        with pytest.raises(ValueError, match="its header shall have"):
            read_tensors(tmp_path / "file")


# ---- folders ----


def save_shards(folder, **shards):
    """A folder as transformers writes it when weights are large."""
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors")
    weight_map = {key: f"{name}.safetensors" for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_folder_with_one_file(tmp_path):
    """The folder that save_pretrained wrote, or a snapshot of timm's repository."""
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert read_tensors(tmp_path).keys() == {"a"}


def test_folder_with_shards(tmp_path):
    """Every shard is read; the checksum is that of the shards one after another, as `cat` and sha256sum give it."""
    save_shards(tmp_path, b={"x": torch.ones(1)}, a={"y": torch.ones(2), "z": torch.ones(3)})
    assert read_tensors(tmp_path).keys() == {"x", "y", "z"}
    files = weight_files(tmp_path)
    assert [file.name for file in files] == ["a.safetensors", "b.safetensors"]
    assert sha256(*files) == hashlib.sha256(files[0].read_bytes() + files[1].read_bytes()).hexdigest()


def test_folder_without_weights(tmp_path):
    """The folder above, or one whose download did not get to the weights: what is needed is listed."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"without model.safetensors \(or model.safetensors.index.json.*in it: config.json"
    ):
        read_tensors(tmp_path)


def test_folder_with_a_shard_missing(tmp_path):
    """Half a download is named as such, not as 300 missing tensors."""
    save_shards(tmp_path, a={"x": torch.ones(1)}, b={"y": torch.ones(1)})
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks b.safetensors: 1 of the 2 files .*Download the whole folder"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "<!DOCTYPE html>", "{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 100_000]
    + [json.dumps({"weight_map": {"a": name}}) for name in ("../a.safetensors", "/dev/zero", "", "..", "a\0", "b\nc")],
)
def test_folder_with_a_broken_index(content, tmp_path):
    """An error page in place of the index."""
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json is no index of weights.*Download it again"):
        read_tensors(tmp_path)


def test_folder_with_a_tensor_in_two_files(tmp_path):
    """One of them would be used, and nobody know which."""
    save_shards(tmp_path, a={"x": torch.ones(1)}, b={"x": torch.ones(1)})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"tensor x in two files, b.safetensors"):
        read_tensors(tmp_path)


def test_folder_with_a_pipe(tmp_path):
    """In place of the weights, the index or a shard."""
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ValueError, match=r"index.json is a pipe"):
        read_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_shards(tmp_path, a={"x": torch.ones(1)})
    (tmp_path / "a.safetensors").unlink()
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors is a pipe"):
        read_tensors(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is a pipe"):
        read_tensors(tmp_path)


# ---- checkpoints of nnU-Net ----


def checkpoint():
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


def rename_in_pickle(path, old, new):
    """The same PyTorch file with another name in its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("written_by", ["numpy._core", "numpy.core"])
def test_checkpoint_of_nnunet(written_by, tmp_path):
    """It was trained on the cluster with numpy 1 and is used on a laptop with numpy 2, or the other way round."""
    path, content = tmp_path / "checkpoint_best_stage1.pth", checkpoint()
    torch.save(content, path)
    own = np.float32(0).__reduce__()[0].__module__.removesuffix(".multiarray")
    rename_in_pickle(path, f"{own}.multiarray".encode(), f"{written_by}.multiarray".encode())
    read = read_checkpoint(path)
    assert read.keys() == content.keys()
    assert torch.equal(
        read["network_weights"]["encoder.ice.conv.bias"], content["network_weights"]["encoder.ice.conv.bias"]
    )
    assert read["_best_ema"] == read["logging"]["mean_fg_dice"][0] == np.float32(0.5)
    assert read["logging"]["dice_per_class_or_region"][0][0] == 0.25
    assert read["init_args"] == content["init_args"]


@pytest.mark.parametrize("save", [torch.save, save_legacy, dump_pickle])
def test_code_in_a_checkpoint_is_not_run(save, tmp_path):
    """A checkpoint of somebody else is no safer than any download."""
    made = tmp_path / "made_by_the_code"
    save(checkpoint() | {"init_args": Malicious(made)}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"checkpoint.pth .*never run.*name another checkpoint_\*\.pth"):
        read_checkpoint(tmp_path / "checkpoint.pth")
    assert not made.exists()


@pytest.mark.parametrize("part", [0, 0.5, 0.98])
def test_truncated_checkpoint(part, tmp_path):
    """The job was killed while it saved."""
    path = tmp_path / "checkpoint_latest.pth"
    torch.save(checkpoint(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"checkpoint_latest.pth is (damaged|empty).*name another checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("missing", ["network_weights", "init_args", "trainer_name"])
def test_no_checkpoint_of_nnunet(missing, tmp_path):
    """The user named the DINOv3 weights, or another tool's file."""
    path, content = tmp_path / "vit.pth", checkpoint()
    del content[missing]
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"vit.pth is not a checkpoint of nnU-Net.*top-level keys are .*optimizer_state"
    ):
        read_checkpoint(path)


def test_error_page_in_place_of_a_checkpoint(tmp_path):
    """A failed download leaves such files."""
    (tmp_path / "checkpoint.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"neither a safetensors nor a PyTorch file.*name another checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pth")


# ---- checksums ----


def test_checksum_is_that_of_the_whole_file(tmp_path):
    """The log's SHA-256 is what sha256sum prints, also for files longer than one block."""
    content = os.urandom(3 * (1 << 20) + 17)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_checksum_in_metas_file_names():
    """A damaged download that still loads would train from wrong numbers; other names promise nothing."""
    meta, damaged = Path("dinov3_vitl16plus_pretrain_sat493m-0123abcd.pth"), "f" * 64
    verify_meta_checksum(meta, "0123abcd" + "f" * 56)
    verify_meta_checksum(Path("mine-20260101.pth"), damaged)
    with pytest.raises(ValueError, match=rf"starts with 0123abcd.*it is {damaged}.*repeat it.*another name"):
        verify_meta_checksum(meta, damaged)
