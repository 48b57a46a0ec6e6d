"""Register token mixers and build them by name; define the contract of a mixer.

    Mixer(dim, *, size=(H, W), **options)      options are keyword-only, each named in the signature
    forward: (B, C, H, W) -> (B, C, H, W)      same shape and dtype, any memory format, any H and W of at least 1

`size` is the map size that spatial weights are made for. The block adds the norm and the residual around its mixer.
Two parts of the contract are for some mixers only:

- A mixer with dropout takes `proj_drop`.
- A mixer whose parameters depend on `size` has `adapt_state(state)`. It takes the mixer's parameters, saved at another
  size, and returns them resampled to the size that the mixer was built for.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from metamix.layers import fx_leaf, is_exporting
from metamix.utils.checks import check_choice, check_known

MixerClass = TypeVar("MixerClass", bound=type[nn.Module])

_MIXERS: dict[str, type[nn.Module]] = {}


def register_mixer(name: str) -> Callable[[MixerClass], MixerClass]:
    """Register the decorated class as mixer `name`, for `timm.create_model(..., mixer=name)`.

    If the class is defined again, as when a notebook cell runs twice, the new class replaces the old one. The feature
    extractor of timm treats the mixer as one node of its graph.

    Raises:
        ValueError: the name is taken or cannot be part of a model's name, the constructor is not
            `(dim, *, size, ...)`, or an option is called `name`.
        TypeError: the name is missing, or the decorated object is not an `nn.Module` class.
    """
    if not isinstance(name, str):
        decorated = getattr(name, "__name__", repr(name))
        raise TypeError(
            f'register_mixer takes the mixer\'s name, got {decorated}: write @register_mixer("my_mixer") above the '
            f"class."
        )
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"register_mixer got the name {name!r}: use letters, digits, underscores and dashes only.")

    def register(cls: MixerClass) -> MixerClass:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"register_mixer({name!r}) takes a torch.nn.Module class, got {cls!r}.")
        other = _MIXERS.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"A mixer named {name!r} is registered already ({other.__module__}): choose another name.")
        parameters = list(inspect.signature(cls).parameters.values())
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        others = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        if "name" in keywords:
            raise ValueError(f"Mixer {name!r} has an option called name, which create_mixer itself takes: rename it.")
        if others != ["dim"] or "size" not in keywords:  # with **options, the names of options could not be checked
            raise ValueError(
                f"Mixer {name!r} has the constructor {cls.__name__}{inspect.signature(cls)}; "
                f"a mixer is built as Mixer(dim, *, size=(H, W), ...): write "
                f"`def __init__(self, dim, *, size, ...)` and name each option."
            )
        _MIXERS[name] = cls
        return register_notrace_module(cls)

    return register


def list_mixers() -> list[str]:
    """Return the names of all registered mixers in the order of registration, metamix's own first."""
    return list(_MIXERS)


def create_mixer(name: str, dim: int, *, size: tuple[int, int], **options) -> nn.Module:
    """Build the mixer registered as `name`, for maps of `dim` channels.

    Args:
        size: (H, W) of the maps that spatial weights are made for.
        options: the mixer's own options; see `mixer_options(name)`.

    Raises:
        ValueError: the name or an option is unknown; the message suggests the most similar one.
    """
    check_known(f"mixer {name!r}", options, [option.name for option in mixer_options(name)])
    return _MIXERS[name](dim, size=size, **options)


@fx_leaf
def check_shape(y: Tensor, x: Tensor, mixer: str) -> Tensor:
    """Return `y`, the output of the class `mixer` for the map `x`; raise ValueError if the shapes differ.

    Without this check, the residual would broadcast an output of a different shape. Exported or traced graphs skip it.
    """
    if is_exporting() or torch.jit.is_tracing() or getattr(y, "shape", None) == x.shape:
        return y
    output = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
    raise ValueError(f"{mixer} returned {output} for a map of shape {tuple(x.shape)}: a mixer must keep the shape.")


def describe_mixer(name: str, options: Mapping[str, Any], *, defaults: bool = True) -> str:
    """Return a mixer's name and options as text. Mixers with the same text have the same architecture.

    Dropout is left out, since it matters in training only. Without `defaults`, options with their default value are
    left out too. The text then stays the same when a new version adds an option to the mixer.
    """
    default = {option.name: comparable(option.default) for option in mixer_options(name) if "drop" not in option.name}
    values = {option: comparable(value) for option, value in options.items() if option in default}
    different = {option: value for option, value in values.items() if value != default[option]}
    shown = default | values if defaults else different
    return f"{name}({', '.join(f'{option}={value!r}' for option, value in shown.items())})"


def comparable(value: Any) -> Any:
    """Normalise an option's value for comparison: lists to tuples, equal sides to one number, functions to names."""
    if hasattr(value, "tolist"):  # a number or an array of numpy
        value = value.tolist()
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, partial):
        return "partial", comparable([value.func, value.args, *value.keywords.items()])
    if isinstance(value, (list, tuple)):
        value = tuple(map(comparable, value))
        return value[0] if len(value) == 2 and value[0] == value[1] else value
    return value


@dataclass(frozen=True)
class MixerOption:
    """An option of a mixer."""

    name: str  # key of the option in `mixer_args`
    default: Any  # value if the option is not given; `inspect.Parameter.empty` if the option is required
    doc: str  # meaning, from the docstring of the mixer's class; empty if the docstring does not mention the option


def mixer_options(name: str) -> list[MixerOption]:
    """Return the options of the mixer registered as `name`, in the order of its constructor."""
    check_choice(
        "mixer", name, _MIXERS, "To use your own mixer, import its module; on the command line, add --import MODULE."
    )
    cls = _MIXERS[name]
    _, _, section = (inspect.getdoc(cls) or "").partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    docs = {option: " ".join(text.split()) for option, text in entries}
    options = [p for p in inspect.signature(cls).parameters.values() if p.name not in ("dim", "size")]
    return [MixerOption(option.name, option.default, docs.get(option.name, "")) for option in options]
