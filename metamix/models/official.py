"""Load checkpoints of the authors' code into our models: `load_official(source, state_dict, **constructor)`.

The file of each network registers its sources here: `@official(name)` decorates a function that takes the state
dict and the arguments of the authors' constructor, and returns our model and the `Layout` of its tensors.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from torch import nn

from metamix.utils.checks import check_choice, check_known
from metamix.weights.files import flatten, flax_parameters, unwrap
from metamix.weights.fit import load_into
from metamix.weights.layout import Layout

from .metaformer import MetaFormer

ModelAndLayout = tuple[nn.Module, Layout]
Builder = Callable[..., ModelAndLayout]

SOURCES: dict[str, Builder] = {}
MODULES: list[str] = []  # modules that register further sources, imported when a source is unknown


def official(
    source: str,
    *,
    same: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
    ignored: Collection[str] = (),
) -> Callable[[Builder], Builder]:
    """Register a function as a source of `load_official`: (state dict, *, the authors' arguments) -> model and layout.

    Args:
        source: name of the source.
        same: arguments that the function gets unchanged, since our model has them under the same names.
        renamed: arguments that the function gets under the names of our model.
        defaults: the authors' defaults of arguments in `same` and `renamed`, where our model has other defaults.
        only: arguments for which our model supports only one value, with that value.
        ignored: arguments that the authors' code ignores too.
    """
    fixed, ours = dict(only or {}), dict(renamed or {})

    def register(build: Builder) -> Builder:
        parameters = {p.name: p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY}

        def checked(state: Mapping, **constructor: Any) -> ModelAndLayout:
            check_known(source, constructor, [*parameters, *same, *ours, *fixed, *ignored])
            missing = [name for name, p in parameters.items() if p.default is p.empty and name not in constructor]
            if missing:
                raise ValueError(f"{source} needs {', '.join(missing)}: give the values used in training.")
            for name, value in fixed.items():
                check_value(name, constructor.get(name, value), [value], f"{value!r}, as in all published models")
            arguments = {**(defaults or {}), **constructor}
            kept = arguments.keys() - {*fixed, *ignored}
            return build(state, **{ours.get(name, name): arguments[name] for name in kept})

        SOURCES[source] = checked
        return build

    return register


def load_official(source: str, state_dict: Mapping, **constructor: Any) -> nn.Module:
    """Build our model for the arguments of the authors' constructor, with their weights, in eval mode.

    Every model takes images or maps (B, C, H, W) of any size.

    Args:
        source: name of the code that wrote the checkpoint; docs/models.md has an example of each.
        state_dict: tensors by the authors' names, also wrapped as `{"state_dict": ...}` or `{"model": ...}`. For
            maxim and maxim_mab, give a flax tree, nested or with names joined by "/".
        constructor: arguments of the authors' constructor, by the authors' names. The defaults are the authors'
            defaults, or else the values of their published models.

    Returns:
        The model. The `pretrained_cfg` of a `MetaFormer` names no weights. It has the image size, mean and std of the
        family's registered model.

    Raises:
        ValueError: the source is unknown; an argument is unknown, missing or not supported; or a tensor is missing,
            unknown or of a wrong shape. The message uses the authors' names.
    """
    if source not in SOURCES:  # a task's module registers its sources when it is imported
        for module in MODULES:
            import_module(module)
    check_choice("source", source, SOURCES)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is a {type(state_dict).__name__}; give tensors by name, as read by torch.load.")
    state = flatten(flax_parameters(unwrap(state_dict)))
    model, layout = SOURCES[source](state, **constructor)
    load_into(model, state, "The checkpoint", name=f"the {source} with these arguments", layout=layout)
    if isinstance(model, MetaFormer):  # the configuration comes from a registered model, which has other weights
        for key in ("tag", "url", "hf_hub_id", "file"):
            model.pretrained_cfg.pop(key, None)
        model.pretrained_cfg["num_classes"] = model.num_classes
    return model.eval()


def check_value(argument: str, value: Any, supported: Sequence, words: str) -> None:
    """Raise ValueError unless the value of an argument is in `supported`, which `words` describe in the message."""
    if value not in supported:
        refuse(argument, value, words)


def refuse(argument: str, value: Any, words: str) -> NoReturn:
    """Raise the error for an argument's value that our model does not support; `words` describe what it accepts."""
    raise ValueError(f"{argument} is {value!r}, which our model does not support. Accepted: {words}.")
