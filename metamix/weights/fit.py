"""Check that the weights of a file fit a model, before they are loaded."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from metamix.utils.text import list_names

from .layout import OURS, Layout

# maxim_s3 has 2,375 modules, more than timm's largest models. Tables of relative positions can be large buffers.
LIMITS = {"parameters": 10**9, "values in buffers": 10**9, "modules": 10_000}


class TooLarge(ValueError):
    """Raised if the metadata of a file describe a model that is too large to build."""


def check_fit(
    tensors: Mapping[str, Tensor],
    of_model: Mapping[str, Tensor],
    model: str,
    source: object,
    *,
    layout: Layout,
    unknown: Collection[str] = (),
    head: Collection[str] = (),
    first_convs: Collection[str] = (),
) -> list[str]:
    """Check that a file has exactly the tensors of a model, and that their values are finite.

    Args:
        tensors: tensors of the file, by their names in the model.
        of_model: the model's `state_dict(keep_vars=True)`, which tells parameters from buffers.
        model, source: names of the model and of the file, for messages.
        layout: how the file names its tensors, for messages.
        unknown: names, in the file, of the tensors that the model lacks.
        head: layers whose tensors may be missing or of a different shape.
        first_convs: convolutions whose weights may have a different number of input channels.

    Returns:
        The names of the head's tensors that are missing in the file or have a different shape there.

    Raises:
        ValueError: a tensor outside the head is missing, unknown or of the wrong shape; a parameter is floating-point
            only in the file or only in the model; a tensor holds NaN; or a tensor that `must_be_finite` holds infinity.
    """
    new: list[str] = []
    missing, misshapen = set(), set()  # sets, since one tensor of the file may fill several tensors of the model
    inside_head = tuple(f"{layer}." for layer in head)
    any_channels = {f"{conv}.weight" for conv in first_convs}
    for name, wanted in of_model.items():
        shape = tensors[name].shape if name in tensors else None
        fits = shape == wanted.shape
        if shape and name in any_channels:
            fits = shape[:1] + shape[2:] == wanted.shape[:1] + wanted.shape[2:]
        if not fits and name.startswith(inside_head):
            new.append(name)
        elif shape is None:
            missing.add(layout.name(name))
        elif not fits:
            misshapen.add(f"has {layout.name(name)} of shape {tuple(shape)} where the model has {tuple(wanted.shape)}")
        elif isinstance(wanted, nn.Parameter) and tensors[name].is_floating_point() != wanted.is_floating_point():
            # Integers cannot be converted: the scale of int8 weights, for example, is unknown.
            misshapen.add(f"has {layout.name(name)} of {tensors[name].dtype} where the model has {wanted.dtype}")
    problems = [
        f"{what} {list_names(sorted(names), 4)}"
        for what, names in (("lacks", missing), ("has tensors that the model lacks:", unknown))
        if names
    ]
    problems += sorted(misshapen)
    if len(problems) > 6:
        problems[6:] = [f"has {len(problems) - 6} more such tensors"]
    if problems:
        raise ValueError(
            f"{source} does not fit {model}: it {'; it '.join(problems)}. Build the model that it was saved from, with "
            f"the same arguments and number of classes (on the command line --model and --model-args); "
            f"reset_classifier(N) then gives it a new head."
        )
    for name in (name for name in of_model if name in tensors and name not in new):
        tensor = tensors[name]
        if of_model[name].is_floating_point():  # a conversion to integers would hide NaN
            tensor = tensor.to(of_model[name].dtype)  # 1e300 becomes infinite in float32
        if tensor.isnan().any() or (must_be_finite(name, of_model[name]) and not tensor.isfinite().all()):
            raise ValueError(
                f"{source} cannot be used: its tensor {layout.name(name)} holds NaN or infinity, perhaps because "
                f"training diverged. Use other weights, or train again with a lower --lr"
            )
    return new


def must_be_finite(name: str, tensor: Tensor) -> bool:
    """Return whether an entry of `state_dict(keep_vars=True)` is a parameter or a statistic of a batch norm.

    Other buffers may hold infinity, since some are masks.
    """
    return isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: object,
    *,
    name: str = "",
    layout: Layout = OURS,
    head: Collection[str] = (),
) -> list[str]:
    """Load the tensors of a file into a model. All tensors outside the head must fit.

    Args:
        state: tensors of the file, by their names in the file, which `layout` describes.
        source, head: see `check_fit`, which raises the errors.
        name: name of the model in messages; its class by default.

    Returns:
        The names of the head's tensors that were not loaded, since the file has no tensors that fit them.
    """
    of_model = model.state_dict(keep_vars=True)
    tensors, unknown = layout.translate(state, model)
    unknown = {key for key in unknown if not key.startswith(tuple(f"{layer}." for layer in head))}
    name = name or f"this {type(model).__name__}"
    kept = check_fit(tensors, of_model, name, source, unknown=unknown, layout=layout, head=head)
    with torch.no_grad():
        for key in of_model.keys() - set(kept):
            of_model[key].copy_(tensors[key])
    return kept


def function_mismatch(theirs: Mapping[str, str], ours: Mapping[str, str], weights: str) -> str | None:
    """Return an error message if a file's model computes a different function than this model, otherwise None.

    Weights may fit even then: pooling has no parameters, and the number of attention heads changes no shape.

    Args:
        theirs, ours: descriptions of the parts of the two models, by the names of the parts.
        weights: first words of the message, "FILE holds weights".
    """
    parts = [part for part in theirs.keys() | ours.keys() if theirs.get(part) != ours.get(part)]
    if not parts:
        return None
    part = min(parts)
    saved, built = (f"{part} {each[part]}" if part in each else f"no {part}" for each in (theirs, ours))
    return (
        f"{weights} with {saved}, but this model has {built}. The tensors may fit, but the models compute different "
        f"functions."
    )


def check_size(described: nn.Module, tensors: Mapping[str, Tensor], name: str, source: object) -> None:
    """Raise ValueError if the metadata of a file describe a model with far more values than the file holds.

    The model may have at most twice as many values as the file, plus a million. `described` is the model that the
    metadata describe, on the meta device. `name` and `source` name the model and the file.
    """
    values, held = (sum(tensor.numel() for tensor in part.values()) for part in (described.state_dict(), tensors))
    if values > 2 * held + 1_000_000:
        raise ValueError(
            f"{source}: its metadata describe a {name} of {values:,} values, but the file holds {held:,}. Use a file "
            f"that metamix wrote."
        )


@contextmanager
def limited_size(source: object) -> Iterator[None]:
    """Raise TooLarge as soon as the modules built in the block exceed one of `LIMITS`; `source` names the file."""
    counts = dict.fromkeys(LIMITS, 0)

    def add(kind: str, count: int) -> None:
        counts[kind] += count
        if counts[kind] > LIMITS[kind]:
            raise TooLarge(
                f"{source}: its metadata describe a model of more than {LIMITS[kind]:,} {kind}. Use a file that "
                f"metamix wrote"
            )

    with (
        register_module_parameter_registration_hook(lambda _, name, parameter: add("parameters", parameter.numel())),
        register_module_buffer_registration_hook(
            lambda _, name, buffer: add("values in buffers", 0 if buffer is None else buffer.numel())
        ),
        register_module_module_registration_hook(lambda _, name, module: add("modules", 1)),
    ):
        yield
