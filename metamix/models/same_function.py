"""Compare a model with the one that a weight file's metadata describe.

Weights can fit a model that computes another function: pooling and identity have no parameters, and the number of heads
changes no shape. `check_same_function` detects this. `check_described_size` refuses metadata that describe a much
larger model than the file can hold, before that model takes memory.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from metamix.weights.metadata import ModelMetadata

from .metaformer import MetaFormer, Stage

TRAINING_ONLY = (nn.Dropout, DropPath)  # they do nothing in eval mode, so weights do not depend on them


def check_same_function(model: MetaFormer, metadata: ModelMetadata, source: object, *, refuse: bool = True) -> None:
    """Check that a model computes what the model of a weight file computes.

    Args:
        model: the model that the weights are for.
        metadata: of the file; without a model's name nothing is checked.
        source: the file's name, for messages.
        refuse: raise if the models differ; else warn, for a user who chose another mixer on purpose.

    Raises:
        ValueError: the models compute different functions, or the file's model cannot be built.
    """
    if metadata.model is None:
        return
    alike = {"in_chans": model.in_chans} | ({"output_stride": model.output_stride} if model.output_stride else {})
    theirs, ours = describe(build_described(metadata, source, **alike)), describe(model)
    parts = [part for part in theirs.keys() | ours.keys() if theirs.get(part) != ours.get(part)]
    if not parts:
        return
    part = min(parts)
    message = (
        f"{source} holds weights of {metadata.architecture} with {part} {theirs.get(part, 'missing')}, but this model "
        f"has {part} {ours.get(part, 'missing')}"
    )
    if refuse:
        args = f", **{metadata.model_args}" if metadata.model_args else ""
        raise ValueError(
            f"{message}. The tensors fit, but the model would compute something else. Build the model of the weights: "
            f"timm.create_model({metadata.architecture!r}{args}), or load only the tensors with load_state_dict."
        )
    warnings.warn(f"{message}. The weights are loaded as a start for training.", UserWarning, stacklevel=2)


def check_described_size(metadata: ModelMetadata, tensors: Mapping[str, Tensor], source: object) -> None:
    """Refuse metadata that describe a model of the zoo much larger than the file.

    Args:
        metadata: of the file.
        tensors: the file's tensors.
        source: the file's name, for messages.

    Raises:
        ValueError: the metadata describe no model, or one of more than twice as many values as the file holds.
    """
    name = metadata.architecture
    if name is None or not timm.is_model(name) or not hasattr(timm.model_entrypoint(name), "registered_in"):
        return
    check_size(build_described(metadata, source), tensors, name, source)


def check_size(model: nn.Module, tensors: Mapping[str, Tensor], name: str, source: object) -> None:
    """Refuse a model, built on the meta device from a file's metadata, that is much larger than the file.

    Args:
        model: the model that the metadata describe.
        tensors: the file's tensors.
        name: of the model, for messages.
        source: the file's name, for messages.

    Raises:
        ValueError: the model has more than twice as many values as the file.
    """
    described = sum(tensor.numel() for tensor in model.state_dict().values())
    held = sum(tensor.numel() for tensor in tensors.values())
    if described > 2 * held + 1_000_000:
        raise ValueError(
            f"{source}: its metadata describe a {name} of {described:,} values, but the file holds {held:,}. Use a "
            f"file that metamix wrote."
        )


def build_described(metadata: ModelMetadata, source: object, **arguments: Any) -> nn.Module:
    """Build the model that metadata describe, on the meta device.

    Args:
        metadata: names the model and its arguments.
        source: the file's name, for messages.
        arguments: arguments that replace those of the metadata.

    Raises:
        ValueError: the model is not registered, or does not take the arguments.
    """
    name = metadata.architecture or ""
    if not timm.is_model(name):
        raise ValueError(
            f"{source} holds weights of {name}, which is not registered: import the module that registers it."
        )
    arguments = metadata.shape | metadata.model_args | arguments
    try:
        with torch.device("meta"):
            return timm.create_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source}: {name} cannot be built with the arguments in its metadata: {error}") from None


def describe(model: nn.Module) -> dict[str, str]:
    """Return the options of each layer before the head, and of each stage's mixer, by name."""
    found = {}
    for name, layer in model.named_modules():
        if ".mixer" in name or name.startswith(("head", "global_pool")) or type(layer) is nn.Identity:
            continue
        if not isinstance(layer, TRAINING_ONLY) and not any(layer.children()):
            found[name] = repr(layer)
    for i, stage in enumerate(getattr(model, "stages", ())):
        if isinstance(stage, Stage):
            found[f"the mixer of stage {i}"] = stage.mixer_text(defaults=True)
    return found
