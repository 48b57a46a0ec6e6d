"""Adapt a checkpoint to a model, and check that it fits and was saved by a model that computes the same function.

timm calls `checkpoint_filter` on every pretrained checkpoint. If the number of classes differs, timm ignores all
missing tensors, so the filter itself refuses an incomplete checkpoint. For `checkpoint_path`, timm calls
this module's `load_checkpoint`, which also sets the model's `pretrained_cfg` from the metadata of a file of metamix.
"""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import timm
import timm.models._factory as factory
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from metamix.utils.text import message
from metamix.weights.files import unwrap
from metamix.weights.find import cfg_of_file, local_weights, read_weights
from metamix.weights.fit import TooLarge, check_fit, check_size, function_mismatch, limited_size
from metamix.weights.layout import OURS, PUBLISHED, Layout
from metamix.weights.metadata import ModelMetadata

from .metaformer import MetaFormer, Stage
from .resize import resample_spatial_weights

TRAINING_ONLY = (nn.Dropout, DropPath)  # they do nothing in evaluation mode


def checkpoint_filter(state: Mapping, model: MetaFormer) -> dict[str, Tensor]:
    """Adapt a checkpoint to `model`: unwrap it, rename tensors, resample spatial weights to the model's image size.

    The checkpoint may come from metamix or have a layout in `PUBLISHED`. The head may be missing or have other classes,
    and the first convolution may have a different number of input channels: timm adapts both.

    Raises:
        ValueError: any other tensor is missing, unknown or of a wrong shape, the file is damaged, or the user named a
            file whose model computes a different function. If the weights are registered for the model's name, a
            different function only causes a warning, since the user chose another mixer on purpose.
    """
    cfg, metadata = model.pretrained_cfg, ModelMetadata()
    name, file = cfg["architecture"], cfg.get("file")
    given_tensors = cfg.get("state_dict") is not None  # the caller has already checked their metadata
    if file and not cfg.get("source") and not given_tensors:
        state, metadata = read_weights(file)  # timm does not check the file's checksums and metadata
    source = file or f"The checkpoint of {name}"
    tensors = adapt_checkpoint(model, unwrap(state), source)
    if not given_tensors:
        registered_files = [Path(tag["file"]) for tag in local_weights().get(name, {}).values()]
        registered = not file or cfg.get("source") or Path(file) in registered_files
        if registered and metadata.model is None:
            metadata = ModelMetadata(model=name, model_args=model.pretrained_model_args)
        check_same_function(model, metadata, source, refuse=not registered)
    return tensors


def adapt_checkpoint(
    model: nn.Module, state: Mapping[str, Tensor], source: object, metadata: ModelMetadata | None = None
) -> dict[str, Tensor]:
    """Adapt the tensors of a file to a model of the zoo or of timm, as `checkpoint_filter` does.

    For timm's own models, the filter of their family is used. A model of the zoo must compute the function that the
    metadata describe.

    Raises:
        ValueError: tensors before the head are missing, unknown or do not fit, or the metadata describe a different
            function.
    """
    cfg: Any = model.pretrained_cfg
    name, of_model = cfg["architecture"], model.state_dict(keep_vars=True)
    head, first_convs = layer_names(cfg, "classifier"), layer_names(cfg, "first_conv")  # timm adapts both
    if isinstance(model, MetaFormer):
        tensors, unknown, layout = translate(state, model, source)
        unknown -= {layout.name("head.weight"), layout.name("head.bias")}
    else:
        layout = OURS
        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
        try:
            tensors = adapt(state, model)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        unknown = {key for key in tensors if key not in of_model and key.rpartition(".")[0] not in head}
    check_fit(tensors, of_model, name, source, unknown=unknown, layout=layout, head=head, first_convs=first_convs)
    if isinstance(model, MetaFormer):
        check_same_function(model, metadata or ModelMetadata(), source)
    return tensors


timms_load_checkpoint = getattr(factory.load_checkpoint, "timms", factory.load_checkpoint)


# Why: timm 1.0.31 reads the file and passes only its tensors to `load_state_dict`. Our models need the file's path to
# read its metadata, and must resample weights that were trained at another image size.
# Reproducer: tests/models/test_checkpoint_path.py::test_timm_alone_ignores_the_metadata
# Remove when: that test fails because timm passes a filter or the path on; then use the filter or the path.
@wraps(timms_load_checkpoint)
def load_checkpoint(model: nn.Module, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
    if isinstance(getattr(model, "model", None), MetaFormer):
        raise ValueError(
            f"features_only=True takes no checkpoint_path: give pretrained=True and "
            f"pretrained_cfg_overlay=dict(file={str(checkpoint_path)!r})."
        )
    if not isinstance(model, MetaFormer):
        return timms_load_checkpoint(model, str(checkpoint_path), *args, **kwargs)
    state, metadata = read_weights(checkpoint_path)
    tensors, unknown, layout = translate(state, model, checkpoint_path)
    name, of_model = model.pretrained_cfg["architecture"], model.state_dict(keep_vars=True)
    check_fit(tensors, of_model, name, checkpoint_path, unknown=unknown, layout=layout)
    check_same_function(model, metadata, checkpoint_path)
    if metadata.model is not None:  # metamix wrote the file, and its metadata say how to prepare images
        for key in ("tag", "hf_hub_id"):  # entries for the published weights
            model.pretrained_cfg.pop(key, None)
        model.pretrained_cfg |= metadata.pretrained_cfg() | cfg_of_file(checkpoint_path)
        model.pretrained_cfg["file"] = str(checkpoint_path)
    return model.load_state_dict(tensors)


load_checkpoint.timms = timms_load_checkpoint  # type: ignore[attr-defined]  # found if this module is reloaded
factory.load_checkpoint = load_checkpoint


def translate(
    state: Mapping[str, Tensor], model: MetaFormer, source: object
) -> tuple[dict[str, Tensor], set[str], Layout]:
    """Rename tensors to our names, and resample spatial weights to the sizes of the model.

    Raise ValueError if the state dict records another mixer.

    Returns:
        The tensors, the names of tensors in the file that the model does not have, and the file's layout.
    """
    notes = getattr(state, "_metadata", None)
    for name, stage in model.named_modules():
        note = notes.get(name) if isinstance(notes, dict) and isinstance(stage, Stage) else None
        if isinstance(note, dict) and (problem := stage.mixer_mismatch(name, note)):
            raise ValueError(f"{source}: {problem}")
    theirs = state.keys() - model.state_dict().keys()  # a user's stem may have a tensor with a name in `PUBLISHED`
    layout = next((layout for name, layout in PUBLISHED.items() if name in theirs), OURS)
    short = (torch.float16, torch.bfloat16)  # dtypes of shipped weights, which are adapted in float32
    state = {name: tensor.float() if tensor.dtype in short else tensor for name, tensor in state.items()}
    tensors, unknown = layout.translate(state, model)
    return resample_spatial_weights(tensors, model, source), unknown, layout


def layer_names(cfg: Mapping, key: str) -> tuple[str, ...]:
    """Return the names of layers in `cfg[key]`, which may hold one name, several names or None."""
    names = cfg.get(key)
    return (names,) if isinstance(names, str) else tuple(names or ())


def check_same_function(model: MetaFormer, metadata: ModelMetadata, source: object, *, refuse: bool = True) -> None:
    """Raise ValueError if the metadata of a weight file describe a model that computes a different function.

    Without `refuse`, only warn: the user chose another mixer on purpose.
    """
    if metadata.model is None:
        return
    alike = {"in_chans": model.in_chans} | ({"output_stride": model.output_stride} if model.output_stride else {})
    theirs, name = build_described(metadata, source, **alike), metadata.architecture
    problem = function_mismatch(describe(theirs), describe(model), f"{source} holds weights of {name}")
    if problem and refuse:
        args = f", **{metadata.model_args}" if metadata.model_args else ""
        raise ValueError(
            f"{problem} Build the model of the weights: timm.create_model({name!r}{args}), or load only the tensors "
            f"with load_state_dict."
        )
    if problem:
        warnings.warn(message(f"{problem} The weights are loaded as a starting point."), UserWarning, stacklevel=2)


def check_described_size(metadata: ModelMetadata, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError if the metadata describe a model that is too large, or a zoo model much larger than the file."""
    name = metadata.architecture
    if name is not None and timm.is_model(name):
        described = build_described(metadata, source)
        if hasattr(timm.model_entrypoint(name), "registered_in"):
            check_size(described, tensors, name, source)


def build_described(metadata: ModelMetadata, source: object, **arguments: Any) -> nn.Module:
    """Build the model that metadata describe, on the meta device; `arguments` override the metadata.

    Raises:
        ValueError: the model is not registered, or does not take the arguments.
    """
    name = metadata.architecture or ""
    if not timm.is_model(name):
        raise ValueError(f"{name}, the model of {source}, is not registered: import the module that registers it.")
    try:
        with torch.device("meta"), limited_size(source):
            return timm.create_model(name, **metadata.shape | metadata.model_args | arguments)
    except TooLarge:
        raise
    except Exception as error:  # timm's models check few of their arguments
        if metadata.img_size is not None and "'img_size'" in str(error):  # the model has no such argument
            return build_described(replace(metadata, img_size=None), source, **arguments)
        raise ValueError(f"{source}: {name} cannot be built with the arguments in its metadata: {error}") from None


def describe(model: nn.Module) -> dict[str, str]:
    """Describe the layers before the head, and the mixer of each stage: return their options as text, by name."""
    parts = {}
    for name, layer in model.named_modules():
        if ".mixer" in name or name.startswith(("head", "global_pool")) or type(layer) is nn.Identity:
            continue
        if not isinstance(layer, TRAINING_ONLY) and not any(layer.children()):
            parts[name] = repr(layer)
    for i, stage in enumerate(getattr(model, "stages", ())):
        if isinstance(stage, Stage):
            parts[f"the mixer of stage {i}"] = stage.mixer_text(defaults=True)
    return parts
