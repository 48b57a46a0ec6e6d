"""The registry of token mixers, and the contract that makes any of them fit any model.

    Mixer(dim, *, size=(H, W), ...)            its options follow, each by its name, keyword-only
    forward: (B, C, H, W) -> (B, C, H, W)      same shape and dtype, any memory format, any H and W of at least 1

`size` is the map size that spatial weights are made for. A mixer brings neither the residual nor the norm around it:
the skeleton owns both. Two things are optional. A mixer with dropout inside takes `proj_drop`; one that makes anything
of `size` has `adapt_state(state)`, which brings its own parameters, saved at another size, to the size that it was
built for. One without it is the same at every size.
"""

import inspect

from timm.models import register_notrace_module
from torch import Tensor, nn

from metamix.utils.text import nearest

_MIXERS: dict[str, type[nn.Module]] = {}


def keep_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state`: the `adapt_state` of a mixer whose parameters do not depend on the map size."""
    return state


def depends_on_size(mixer: nn.Module) -> bool:
    """Return whether the mixer has an `adapt_state` of its own."""
    return type(mixer).adapt_state is not keep_state


def register_mixer(name: str):
    """Class decorator: make a mixer known under `name` to every model of the zoo: `timm.create_model(mixer=name)`.

    A class defined anew, as when a notebook's cell runs again, replaces itself. It also becomes a leaf for FX, so that
    timm's feature extractor sees one node and not the shape logic inside.

    Raises:
        ValueError: the name is taken, or the constructor is not `(dim, *, size, ...)`.
        TypeError: what is decorated is no `nn.Module` class.
    """

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"register_mixer({name!r}) takes a torch.nn.Module class, got {cls!r}.")
        known = _MIXERS.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"A mixer named {name!r} is registered already ({known.__module__}): choose another name.")
        parameters = list(inspect.signature(cls).parameters.values())
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        others = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        if others != ["dim"] or "size" not in keywords:  # **options would leave no names to check a user's words by
            raise ValueError(
                f"Mixer {name!r} has the constructor {cls.__name__}{inspect.signature(cls)}; "
                f"a mixer is built as Mixer(dim, *, size=(H, W), ...): write "
                f"`def __init__(self, dim, *, size, ...)`, each option by its name."
            )
        if not hasattr(cls, "adapt_state"):
            cls.adapt_state = keep_state
        _MIXERS[name] = cls
        return register_notrace_module(cls)

    return register


def list_mixers() -> list[str]:
    """Names of all registered mixers, the zoo's own first, in the order of their registration."""
    return list(_MIXERS)


def create_mixer(name: str, dim: int, *, size: tuple[int, int], proj_drop: float = 0.0, **options) -> nn.Module:
    """Build the mixer registered as `name` for maps of `dim` channels and `size` = (H, W).

    `proj_drop` reaches a mixer that has dropout inside and is meaningless to the others; `options` are the mixer's own.

    Raises:
        ValueError: unknown name or unknown option; the message gives the nearest valid one.
    """
    if name not in _MIXERS:
        raise ValueError(f"Unknown mixer {name!r}{nearest(name, _MIXERS)} Registered mixers: {', '.join(_MIXERS)}.")
    cls = _MIXERS[name]
    accepted = set(inspect.signature(cls).parameters) - {"dim", "size"}
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"Mixer {name!r} has no option {option!r}{nearest(option, accepted)} "
                f"Its options: {', '.join(sorted(accepted)) or 'none'}."
            )
    if "proj_drop" in accepted:
        options.setdefault("proj_drop", proj_drop)
    return cls(dim, size=size, **options)
