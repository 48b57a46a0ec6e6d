"""Save classifiers that were trained in your own loop."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from metamix.data.memory import check_statistics
from metamix.data.options import check_both
from metamix.models.checkpoint import TRAINING_ONLY, describe
from metamix.models.registry import create_model
from metamix.utils.rules import accepted, fits, rule
from metamix.utils.text import plural
from metamix.weights.files import save_weights
from metamix.weights.fit import must_be_finite
from metamix.weights.metadata import TIMM_ARGS, ModelMetadata, Threshold

from .load import complete_metadata

THRESHOLD = rule(Threshold | None)


def save_classifier(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str],
    model_args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    threshold: Threshold | Sequence[float] | None = None,
) -> None:
    """Write a file that `load_classifier`, `metamix eval`, `predict` and `export` read.

        arguments = {"img_size": 48, "mixer_args": {"raft_size": 1}}
        model = timm.create_model("metaformer_raft_nano", num_classes=2, **arguments)
        ...                                                             # your own training loop
        metamix.save_classifier(model, "pets.safetensors", classes=["cat", "dog"], model_args=arguments)

    Args:
        model: a model from `timm.create_model`; DistributedDataParallel or torch.compile may wrap it.
        path: a .safetensors file.
        classes: names of the classes, in the order of the logits.
        model_args: the arguments that `timm.create_model` got, except num_classes. Arguments that only choose the
            initial weights, such as `pretrained`, are ignored.
        mean, std: mean and standard deviation with which each channel was normalised, for pixel values from 0 to 1;
            by default as in timm's configuration of the model.
        threshold: lowest probability at which a label is predicted, if images may have several labels: one number for
            all labels, or a list with one number for each label. None if each image has one class.

    Raises:
        ValueError: an argument cannot be used, there are not as many classes as logits, `model_args` describe another
            model, or a weight is NaN or infinite.
    """
    path = Path(path)
    arguments = {name: value for name, value in (model_args or {}).items() if name not in TIMM_ARGS}
    if path.suffix != ".safetensors":
        raise ValueError(f"path is {path}: give a .safetensors file")
    body: Any = unwrap_model(model)
    body = getattr(body, "_orig_mod", body)
    if not hasattr(body, "pretrained_cfg"):
        raise ValueError(f"model is a {type(body).__name__}: give the model that timm.create_model returned")
    if isinstance(classes, (str, set, frozenset, Mapping)) or not isinstance(classes, Collection):
        raise ValueError(f"classes is {classes!r}: give a list of names, one for each logit")
    logits = getattr(body.get_classifier(), "out_features", body.num_classes)
    if logits != body.num_classes:
        raise ValueError(f"the head was replaced by a layer of {logits} outputs: use model.reset_classifier({logits})")
    if not 0 < len(classes) == body.num_classes:
        names, logits = plural(len(classes), "class name"), plural(body.num_classes, "logit")
        raise ValueError(f"{names} for {logits}: give one name for each logit")
    if not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes is {classes!r}: give the names as strings")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"classes has {twice[0]!r} twice: give each class its own name")
    if hasattr(threshold, "tolist"):  # an array
        threshold = threshold.tolist()
    if not fits(threshold, THRESHOLD):
        raise ValueError(f"threshold is {threshold!r}, but it must be {accepted(THRESHOLD, threshold)}")
    if isinstance(threshold, Sequence) and len(threshold) != len(classes):
        counts = f"{plural(len(threshold), 'threshold')} for {plural(len(classes), 'class')}"
        raise ValueError(f"{counts}: give one for each class, or one number for all")
    check_both(mean, std)
    metadata = ModelMetadata(
        task="classification",
        model=body.pretrained_cfg["architecture"],
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
        classes=tuple(classes),
        threshold=tuple(threshold) if isinstance(threshold, Sequence) else threshold,
    )
    metadata = complete_metadata(metadata, body, arguments)
    check_statistics(metadata.mean or (), metadata.std or (), metadata.in_chans or 0)
    others = {name: value for name, value in arguments.items() if name not in metadata.shape}
    metadata = replace(metadata, model_args=others)
    with torch.device("meta"):
        described = create_model(metadata.model or "", **metadata.shape | others)
    if _signature(described) != _signature(body):
        raise ValueError(
            f"model_args is {dict(model_args or {})}, but {metadata.model} with these arguments differs from this "
            f"model: give the arguments that timm.create_model got"
        )
    if arguments.get("global_pool") == "":
        raise ValueError("global_pool is '', so the model returns feature maps, not a logit per class: leave it out")
    for name, tensor in body.state_dict(keep_vars=True).items():
        if must_be_finite(name, tensor) and not tensor.isfinite().all():
            raise ValueError(
                f"{name} of the model holds NaN or infinity: save the weights of an earlier step, or, if the model was "
                f"converted to float16, convert it to bfloat16 instead"
            )
    try:
        entries = json.loads(json.dumps(metadata.to_dict(), default=_to_plain))
    except TypeError as error:
        raise ValueError(f"model_args or threshold cannot be saved ({error}): give plain numbers and strings") from None
    ModelMetadata.from_dict(entries, "the classifier", "Otherwise the file could not be loaded")
    save_weights(path, body.state_dict(), entries)


def _to_plain(value: Any) -> Any:
    """Convert a NumPy number to a plain number, and an array to a list."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"{value!r} is neither a number nor a string")
    return value.tolist()


def _signature(model: nn.Module) -> tuple[dict[str, torch.Size], dict[str, str], list[str]]:
    """Return the shapes of a model's tensors, its layers and mixers, and its poolings.

    Dropout rates and the momentum of batch norms are left out, since only training needs them. Synchronised batch norms
    count as ordinary batch norms.
    """
    layers = describe(model)
    for name, layer in model.named_modules():
        # `describe` returns the arguments that mixers were built with, but their layers may have been replaced later.
        # The repr of a user's layer may contain a memory address or values, so only the layer's type is compared.
        if ".mixer" in name and not isinstance(layer, (_DropoutNd, *TRAINING_ONLY, nn.Identity)):
            of_library = type(layer).__module__.startswith(("torch.", "timm.", "metamix."))
            layers[f"{name} now"] = repr(layer) if of_library and not any(layer.children()) else type(layer).__name__
    layers = {name: text.replace("SyncBatchNorm", "BatchNorm2d") for name, text in layers.items()}
    layers = {name: re.sub(r", momentum=[^,)]*", "", text) for name, text in layers.items()}
    poolings = [str(layer.global_pool) for layer in model.modules() if hasattr(layer, "global_pool")]
    return {name: tensor.shape for name, tensor in model.state_dict().items()}, layers, poolings
