"""Weights of each format give the features that independent code computes from them."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTModel

from nnunetv2_dinomed3d.network_architecture.encoder import SlabEncoder
from nnunetv2_dinomed3d.weights import load_weights, read_pretrained
from nnunetv2_dinomed3d.weights.formats import to_timm
from tests.networks import network_of

WIDTH, DEPTH = 96, 4
SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3}
PLAIN, PLUS = "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"


def randomise(model):
    """Every parameter random, so that no two tensors can be swapped unseen; the qkv biases zero, as released."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape)
            if any(part in name for part in ("q_proj.bias", "k_proj.bias", "v_proj.bias", "q_bias", "v_bias")):
                values.zero_()
            elif parameter.ndim == 1:
                values = 0.1 * values + ("weight" in name or "lambda" in name or "gamma" in name)
            elif "token" not in name:
                values /= parameter[0].numel() ** 0.5
            parameter.copy_(values)
    return model.eval()


def transformers_vit(gated, model_class=DINOv3ViTModel):
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        intermediate_size=4 * WIDTH,
        num_register_tokens=4,
        image_size=64,
        key_bias=gated,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    return randomise(model_class(config))


def timm_vit(name):
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=0, global_pool="", **SMALL))


def as_meta(state, gated):
    """The tensors of a transformers file as Meta's checkpoint has them, with all that Meta's has besides."""
    meta = {
        "cls_token": state["embeddings.cls_token"],
        "storage_tokens": state["embeddings.register_tokens"],
        "mask_token": torch.zeros(1, WIDTH),
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.bias"],
        "rope_embed.periods": torch.full((8,), torch.nan),
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
        "local_cls_norm.weight": torch.ones(WIDTH),
        "local_cls_norm.bias": torch.ones(WIDTH),
    }
    mlp = {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj"} if gated else {"fc1": "up_proj", "fc2": "down_proj"}
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}", f"layer.{i}"
        meta[f"{ours}.attn.qkv.weight"] = torch.cat([state[f"{theirs}.attention.{p}_proj.weight"] for p in "qkv"])
        meta[f"{ours}.attn.qkv.bias"] = torch.zeros(3 * WIDTH)
        meta[f"{ours}.attn.qkv.bias_mask"] = torch.full((3 * WIDTH,), torch.nan)
        meta[f"{ours}.ls1.gamma"] = state[f"{theirs}.layer_scale1.lambda1"]
        meta[f"{ours}.ls2.gamma"] = state[f"{theirs}.layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            meta[f"{ours}.attn.proj.{kind}"] = state[f"{theirs}.attention.o_proj.{kind}"]
            for norm in ("norm1", "norm2"):
                meta[f"{ours}.{norm}.{kind}"] = state[f"{theirs}.{norm}.{kind}"]
            for name, other in mlp.items():
                meta[f"{ours}.mlp.{name}.{kind}"] = state[f"{theirs}.mlp.{other}.{kind}"]
    return meta


def our_features(path, vit_name, image, monkeypatch, qkv_bias=False):
    """Block outputs ``(E, h, w)`` of our encoder with the file's weights; the colours are its three slices."""
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(path))
    encoder = SlabEncoder(1, 3, vit_name, SMALL, lora_rank=2, lora_alpha=2, lora_dropout=0.0, qkv_bias=qkv_bias).eval()
    weights = read_pretrained(vit_name, encoder.pretrained_shapes())
    encoder.load_pretrained(weights.tensors)
    with torch.no_grad():
        features = encoder(image[:, None], pad_depth=False)
    return weights.format, [feature[0, :, 0] for feature in features]


IMAGE = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def as_teacher(meta):
    """The same as the teacher of a training with DINOv3's code, with its two heads."""
    heads = {f"{head}_head.mlp.0.weight": torch.ones(2, 2) for head in ("dino", "ibot")}
    return {f"backbone.{name}": tensor for name, tensor in meta.items()} | heads


FORMATS = {
    "transformers": lambda meta, path: None,  # already saved
    "meta": torch.save,
    "teacher": lambda meta, path: torch.save(as_teacher(meta), path),
    "teacher in a checkpoint": lambda meta, path: torch.save(
        {"iteration": np.int64(3), "optimizer": {"lr": 0.1}, "teacher": as_teacher(meta)}, path
    ),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_features_are_those_of_transformers(layout, gated, tmp_path, monkeypatch):
    """One tensor under a wrong name, and training starts from a ViT that is not DINOv3, without a word."""
    theirs = transformers_vit(gated)
    with torch.no_grad():
        states = theirs(IMAGE, output_hidden_states=True).hidden_states[1:]
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if layout != "transformers":
        FORMATS[layout](as_meta(load_file(path), gated), tmp_path / "vit.pth")
        path = tmp_path / "vit.pth"
    found, ours = our_features(path, PLUS if gated else PLAIN, IMAGE, monkeypatch)
    assert found == layout.split()[0]
    assert_are_states(ours, states)


@pytest.mark.parametrize("layout", ["meta", "dinomed3d"])
def test_a_qkv_bias_that_was_trained(layout, tmp_path, monkeypatch):
    """LightlyTrain's ViT-T has one: it is used where Meta's model uses it, and stays when we save."""
    theirs = transformers_vit(gated=False)
    with torch.no_grad():
        for name, bias in theirs.named_parameters():
            if name.endswith(("q_proj.bias", "v_proj.bias")):
                bias.normal_()
        states = theirs(IMAGE, output_hidden_states=True).hidden_states[1:]
    theirs.save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    meta = as_meta(file, gated=False)
    for i in range(DEPTH):
        query, value = (file[f"layer.{i}.attention.{part}_proj.bias"] for part in "qv")
        meta[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, torch.full_like(query, 7), value])
        mask = torch.ones(3, WIDTH)
        mask[1] = 0
        meta[f"blocks.{i}.attn.qkv.bias_mask"] = mask.flatten()
    path = tmp_path / "vit.pth"
    torch.save(meta, path)
    if layout == "dinomed3d":
        encoder = SlabEncoder(1, 3, PLAIN, SMALL, lora_rank=2, lora_alpha=2, lora_dropout=0.0, qkv_bias=True)
        encoder.load_pretrained(load_weights(path, PLAIN, encoder.pretrained_shapes()).tensors)
        torch.save({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, path)
    found, ours = our_features(path, PLAIN, IMAGE, monkeypatch, qkv_bias=True)
    assert found == layout
    assert_are_states(ours, states)


def assert_are_states(features, states):
    """Our maps ``(E, h, w)`` are transformers' tokens ``(1, 5 + h w, E)``."""
    for feature, state in zip(features, states, strict=True):
        assert feature.shape == (WIDTH, 3, 4)
        torch.testing.assert_close(feature, state[0, 5:].T.reshape(WIDTH, 3, 4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shard_size", ["1GB", "200KB"])
@pytest.mark.parametrize("model_class", [DINOv3ViTModel, DINOv3ViTBackbone])
def test_folder_of_transformers(model_class, shard_size, tmp_path, monkeypatch):
    """A file of save_pretrained is used as it is, whichever class wrote it and in however many files."""
    transformers_vit(False, model_class).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").is_file() == (shard_size == "1GB")
    with torch.no_grad():
        states = DINOv3ViTModel.from_pretrained(tmp_path)(IMAGE, output_hidden_states=True).hidden_states[1:]
    found, ours = our_features(tmp_path, PLAIN, IMAGE, monkeypatch)
    assert found == "transformers"
    assert_are_states(ours, states)


def our_network(**options):
    torch.manual_seed(0)
    settings = {"in_channels": 1, "num_classes": 2, "decoder_channels": 16, "detail_channels": 8, "lora_rank": 2}
    return randomise(network_of(**{**settings, "vit_name": PLAIN, "vit_kwargs": SMALL, **options}))


@pytest.mark.parametrize("vit_name", [PLAIN, PLUS])
@pytest.mark.parametrize("in_a_checkpoint", [False, True])
def test_our_own_checkpoint_as_a_2d_vit(vit_name, in_a_checkpoint, tmp_path, monkeypatch):
    """An encoder aligned on one data set starts the training on another; LoRA, of stage 2, stays behind."""
    network = our_network(vit_name=vit_name)
    network.set_stage(1)
    with torch.no_grad():
        features = network.encoder(IMAGE[:, None], pad_depth=False)
    content = network.state_dict()
    if in_a_checkpoint:
        content = {
            "network_weights": content,
            "trainer_name": "t",
            "init_args": {"fold": 0},
            "_best_ema": np.float64(1),
        }
    torch.save(content, tmp_path / "checkpoint_best_stage1.pth")
    found, ours = our_features(tmp_path / "checkpoint_best_stage1.pth", vit_name, IMAGE, monkeypatch)
    assert found == "dinomed3d"
    for feature, expected in zip(ours, features, strict=True):
        torch.testing.assert_close(feature, expected[0, :, 0])


@pytest.mark.parametrize("options", [{"slab_depth": 5}, {"in_channels": 2}])
def test_our_own_checkpoint_that_is_no_2d_vit(options):
    """Five slices are no three colours; there are ways to use the checkpoint all the same."""
    state = our_network(**options).state_dict()
    with pytest.raises(ValueError, match=r"shape \(96, .*K = 3 .*DINOMED3D_STAGE1=FILE.*-pretrained_weights FILE"):
        to_timm(state)


@pytest.mark.parametrize(
    ("stage", "name"),
    [(1, "backbone.model.storage_tokens"), (2, "encoder.backbone.model.base_model.model.storage_tokens")],
)
def test_checkpoint_of_the_released_code(stage, name):
    """The authors' file is no 2D ViT, but it can be used: the user learns how."""
    with pytest.raises(ValueError, match=rf"stage {stage} checkpoint of the released .*dinomed3d convert"):
        to_timm({name: torch.zeros(1, 4, WIDTH), "head.weight": torch.zeros(1)})


def test_teacher_with_something_unknown():
    """Only its two heads are known to be of no use; anything else stays, for the check of names to find."""
    state = as_teacher(released("meta")) | {"gram.weight": torch.zeros(1)}
    names = to_timm(state)[1].keys()
    assert "gram.weight" in names
    assert not any("head" in name for name in names)
    assert names - {"gram.weight"} == to_timm(released("meta"))[1].keys()


@pytest.mark.parametrize("file_of", [PLAIN, "vit_small_patch16_dinov3_qkvb", PLUS])
@pytest.mark.parametrize("save", [save_file, torch.save])
def test_features_are_those_of_timm(file_of, save, tmp_path, monkeypatch):
    """The default weights are timm's; a user may also have those of its qkvb variant, or a .pth of either."""
    theirs = timm_vit(file_of)
    with torch.no_grad():
        states = theirs.forward_intermediates(IMAGE, intermediates_only=True)
    path = tmp_path / "weights"
    save(theirs.state_dict(), path)
    found, ours = our_features(path, file_of.removesuffix("_qkvb"), IMAGE, monkeypatch)
    assert found == "timm"
    for feature, state in zip(ours, states, strict=True):
        torch.testing.assert_close(feature, state[0], atol=1e-4, rtol=1e-4)


def test_state_dict_of_a_live_transformers_model():
    """transformers 5 has another name for the blocks in memory than in its files; both are saved by users."""
    model = transformers_vit(gated=False)
    in_file = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    in_memory = {f"model.{name}" if name.startswith("layer.") else name: tensor for name, tensor in in_file.items()}
    assert in_memory.keys() != in_file.keys()
    (_, renamed), (_, expected) = to_timm(in_memory), to_timm(in_file)
    assert renamed.keys() == expected.keys()
    assert "blocks.0.attn.qkv.weight" in renamed


def released(layout):
    """A file's content in each layout, with a zero qkv bias."""
    if layout == "timm":
        return timm_vit("vit_small_patch16_dinov3_qkvb").state_dict()
    model = transformers_vit(gated=True)
    state = {name.replace("model.layer", "layer"): tensor for name, tensor in model.state_dict().items()}
    return state if layout == "transformers" else as_meta(state, gated=True)


LAYOUTS = {
    "meta": lambda: released("meta"),
    "timm": lambda: timm_vit(PLUS).state_dict(),
    "transformers": lambda: released("transformers"),
    "teacher": lambda: as_teacher(released("meta")),
    "dinomed3d": lambda: our_network(vit_name=PLUS).state_dict(),
}


def expected_shapes(**size):
    encoder = SlabEncoder(1, 3, PLUS, {**SMALL, **size}, lora_rank=2, lora_alpha=2, lora_dropout=0.0)
    return encoder.pretrained_shapes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_renamed_tensor(layout, tmp_path, monkeypatch):
    """A tensor under another name is missing, in every format, and the training does not begin without it."""
    state = dict(LAYOUTS[layout]())
    name = next(name for name in state if name.endswith("1.norm2.weight"))
    state[f"{name}_"] = state.pop(name)
    torch.save(state, tmp_path / "vit.pth")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "vit.pth"))
    with pytest.raises(ValueError, match=r"2 tensors .*blocks.1.norm2.weight: expected \(96,\), found no such tensor"):
        read_pretrained(PLUS, expected_shapes())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [{"embed_dim": 192}, {"depth": 8}])
def test_weights_of_another_size(layout, size, tmp_path, monkeypatch):
    """The sizes are told from the tensors, whatever the format."""
    torch.save(dict(LAYOUTS[layout]()), tmp_path / "vit.pth")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "vit.pth"))
    with pytest.raises(ValueError, match=r"ViT of width 96 and depth 4, the trainer needs width \d+ and depth \d"):
        read_pretrained(PLUS, expected_shapes(**size))


@pytest.mark.parametrize(
    ("layout", "name", "where"),
    [
        ("meta", "blocks.1.attn.qkv.bias", 0),
        ("meta", "blocks.1.attn.qkv.bias", 3 * WIDTH - 1),
        ("teacher", "blocks.1.attn.qkv.bias", 0),
        ("timm", "blocks.1.attn.q_bias", 3),
        ("timm", "blocks.1.attn.v_bias", 3),
        ("transformers", "layer.1.attention.q_proj.bias", 3),
        ("transformers", "layer.1.attention.k_proj.bias", 3),
        ("transformers", "layer.1.attention.v_proj.bias", 3),
    ],
)
@pytest.mark.parametrize("value", [0.01, torch.nan])
def test_qkv_bias_that_is_not_zero_is_refused(layout, name, where, value):
    """Weights trained further with a qkv bias would silently compute something else without it."""
    state = released("meta" if layout == "teacher" else layout)
    state[name][where] = value
    state = as_teacher(state) if layout == "teacher" else state
    with pytest.raises(ValueError, match=rf"{name} is not zero .*no qkv bias. These weights were trained with one"):
        to_timm(state)


def test_what_metas_mask_takes_out_of_the_bias_does_not_count():
    """Meta's model never adds k's part, nor what the mask marks with 0 (in the released files: everything)."""
    state = released("meta")
    state["blocks.1.attn.qkv.bias"][WIDTH : 2 * WIDTH] = torch.nan
    state["blocks.2.attn.qkv.bias"][:] = 1
    state["blocks.2.attn.qkv.bias_mask"][:] = 0
    assert not any("bias_mask" in name or "qkv.bias" in name for name in to_timm(state)[1])
    del state["blocks.1.attn.qkv.bias_mask"]
    with pytest.raises(ValueError, match=r"blocks.1.attn.qkv.bias is not zero"):
        to_timm(state)


@pytest.mark.parametrize("layout", ["meta", "timm", "transformers"])
def test_renaming_leaves_its_input_alone(layout):
    """A caller's tensors stay what they were."""
    state = released(layout)
    before = {name: tensor.clone() for name, tensor in state.items()}
    assert to_timm(state)[0] == layout
    assert list(state) == list(before)
    for name, tensor in before.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_unknown_format():
    """DINOv2's file has similar names: the user learns that the file is of another model."""
    with pytest.raises(ValueError, match=r"storage_tokens, reg_token.*the first of 2 are register_tokens, pos_embed"):
        to_timm({"register_tokens": torch.zeros(1), "pos_embed": torch.zeros(1)})


def test_two_tensors_of_one_name():
    """Luck would decide which of the two is used."""
    state = released("transformers")
    state["model.layer.2.norm1.weight"] = torch.zeros(WIDTH)
    with pytest.raises(ValueError, match=r"two tensors are blocks.2.norm1.weight"):
        to_timm(state)
