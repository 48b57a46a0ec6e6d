"""Check the arguments of `MetaFormer`; turn them into values for each stage and into layer classes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

from timm.layers import GELU as TimmGELU
from timm.layers import GroupNorm1 as TimmGroupNorm1
from timm.layers import get_act_layer, get_norm_layer
from timm.layers.create_act import _ACT_LAYER_DEFAULT
from timm.layers.create_norm import _NORM_MAP
from torch import nn

from metamix.layers import GELU, GroupNorm1
from metamix.utils.checks import check_choice
from metamix.utils.text import plural

Norm = str | Callable[[int], nn.Module] | None  # a name in timm, a constructor, or None for no norm
Activation = str | type[nn.Module]

# names of timm's norms for maps (B, C, H, W)
MAP_NORMS = [n for n in _NORM_MAP if n in ("batchnorm", "groupnorm", "groupnorm1") or "2d" in n]


def per_stage(name: str, value: Any, stages: int) -> list:
    """Return one value for each stage: the entries of a sequence of length `stages`, or a single value repeated."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * stages
    if len(value) != stages:
        count = plural(len(value), "value")
        raise ValueError(f"{name} has {count}, but needs {stages}: give {stages} values, or a single value.")
    return list(value)


def mixers_per_stage(mixer: Any, mixer_args: Any, stages: int) -> tuple[list[str], list[dict]]:
    """Return the name and the options of each stage's mixer; raise ValueError for wrong types and reserved options."""
    names = per_stage("mixer", mixer, stages)
    args = per_stage("mixer_args", {} if mixer_args is None else mixer_args, stages)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"mixer is {mixer!r}: give the name of a registered mixer, or a name for each stage.")
    if not all(isinstance(options, Mapping) and all(isinstance(key, str) for key in options) for options in args):
        raise ValueError(f"mixer_args is {mixer_args!r}: give a dict of the mixer's options, or a dict for each stage.")
    if reserved := {"name", "dim", "size"}.intersection(chain(*args)):
        raise ValueError(f"mixer_args has {', '.join(sorted(reserved))}: use mixer, dims and img_size instead.")
    return names, [dict(options) for options in args]


def check_stages(depths: Any, dims: Any) -> None:
    """Raise ValueError unless `depths` and `dims` are sequences of positive whole numbers and have the same length."""
    for name, values in (("depths", depths), ("dims", dims)):
        whole = isinstance(values, Sequence) and all(isinstance(n, Integral) and int(n) >= 1 for n in values)
        if not whole or not values:
            raise ValueError(f"{name} is {values!r}: give a whole number of at least 1 for each stage.")
    if len(dims) != len(depths):
        raise ValueError(f"depths {tuple(depths)} and dims {tuple(dims)} differ in length: give one dim per depth.")


def norm_layer(option: str, norm: Norm) -> Callable[[int], nn.Module]:
    """Return the constructor of a norm for (B, C, H, W); None and "none" (in upper or lower case) give the identity.

    timm's GroupNorm1 is replaced by `metamix.layers.GroupNorm1`.
    """
    if str(norm).lower() == "none":
        return nn.Identity
    layer = layer_by_name(option, norm, get_norm_layer, [*MAP_NORMS, "none"])
    return GroupNorm1 if layer is TimmGroupNorm1 else layer


def activation(act: Activation) -> type[nn.Module]:
    """Return the class of an activation. GELU of torch or timm is replaced by `metamix.layers.GELU`."""
    layer = layer_by_name("act_layer", act, get_act_layer, _ACT_LAYER_DEFAULT)
    return GELU if layer in (nn.GELU, TimmGELU) else layer


def layer_by_name(option: str, layer: Any, get: Callable[[str], Any], names: Collection[str]) -> Any:
    """Return `layer` if it is a constructor; if it is a name, look it up with `get`, a function of timm.

    The name must be one of `names`; case and underscores are ignored.
    """
    if callable(layer):
        return layer
    by_spelling = {name.replace("_", ""): name for name in names}
    spelt = str(layer).replace("_", "").lower()
    if spelt not in by_spelling:
        check_choice(option, layer, names, "You may also give a constructor of your own.")
    return get(by_spelling[spelt])
