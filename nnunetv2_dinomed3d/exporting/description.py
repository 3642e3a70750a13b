"""What a user of an exported network must know to feed it and to read its logits, as JSON."""

from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.exporting.files import Format
from nnunetv2_dinomed3d.exporting.model import TrainedModel
from nnunetv2_dinomed3d.exporting.program import INPUT, OUTPUT
from nnunetv2_dinomed3d.versions import DISTRIBUTION
from nnunetv2_dinomed3d.weights.files import sha256

AXES = {2: ["batch", "channel", "h", "w"], 3: ["batch", "channel", "d", "h", "w"]}


def describe(model: TrainedModel, kind: Format, half: bool) -> dict[str, Any]:
    """The description of a model that is exported. Where nnU-Net has a name for something, the name is nnU-Net's.

    All sides, spacings and axes are those of the network's input, after ``transpose_forward``.
    """
    plans, configuration, labels = model.planned.plans, model.planned.configuration, model.planned.labels
    dimensions = len(configuration.patch_size)
    return {
        "format": kind,
        "input": {
            "name": INPUT,
            "axes": AXES[dimensions],
            "shape": list(model.window),
            "dtype": "float16" if half else "float32",
            "channels": _channels(model),
            "previous_stage": _previous_stage(model),
        },
        "output": {
            "name": OUTPUT,
            "axes": AXES[dimensions],
            "shape": [1, model.planned.num_classes, *configuration.patch_size],
            "dtype": "float32",
            "values": _values(labels.foreground_regions if labels.has_regions else labels.all_labels),
            "activation": "sigmoid" if labels.has_regions else "softmax",
            "regions_class_order": labels.regions_class_order if labels.has_regions else None,
        },
        "labels": model.planned.dataset_json["labels"],
        "patch_size": configuration.patch_size,
        "spacing": configuration.spacing,
        "transpose_forward": plans.transpose_forward,
        "transpose_backward": plans.transpose_backward,
        "mirror_axes": list(model.mirror_axes),
        "image_reader_writer": plans.plans.get("image_reader_writer"),
        "preprocessor_name": configuration.preprocessor_name,
        "resampling": {
            what: _resampling(configuration.configuration, f"resampling_fn_{what}")
            for what in ("data", "seg", "probabilities")
        },
        "model": {
            "dataset": plans.dataset_name,
            "trainer": model.trainer,
            "plans": plans.plans_name,
            "configuration": model.configuration_name,
            "fold": model.checkpoint.parent.name.removeprefix("fold_"),
            "checkpoint": model.checkpoint.name,
            "sha256": sha256(model.checkpoint),
        },
        "versions": {DISTRIBUTION: __version__, **_versions("nnunetv2", "torch", "onnx", "onnxscript")},
    }


def _channels(model: TrainedModel) -> list[dict[str, Any]]:
    """Name and normalisation of each channel of the image, in their order."""
    names = model.planned.dataset_json.get("channel_names") or model.planned.dataset_json.get("modality") or {}
    intensities = model.planned.plans.foreground_intensity_properties_per_channel
    configuration = model.planned.configuration
    return [
        {
            "name": names.get(str(i)),
            "normalization": scheme,
            "use_mask_for_norm": masked,
            "foreground_intensity_properties": intensities.get(str(i)),
        }
        for i, (scheme, masked) in enumerate(
            zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
        )
    ]


def _previous_stage(model: TrainedModel) -> dict[str, Any] | None:
    """The configuration whose segmentation a cascade needs, one-hot in the channels after the image's."""
    name = model.planned.configuration.previous_stage_name
    return name and {"configuration": name, "one_hot_values": _values(model.planned.labels.foreground_labels)}


def _values(classes: Sequence[Any]) -> list[Any]:
    """Labels, and regions as lists of labels, without numpy's integers."""
    return [list(map(int, each)) if isinstance(each, tuple | list) else int(each) for each in classes]


def _resampling(configuration: dict[str, Any], key: str) -> dict[str, Any]:
    return {"function": configuration.get(key), "arguments": configuration.get(f"{key}_kwargs")}


def _versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    installed = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed
