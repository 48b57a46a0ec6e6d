"""From a registered name to a model: timm's builder around the skeleton, and where weights come from."""

import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import is_scriptable
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    build_model_with_cfg,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from metamix.layers import resize_to
from metamix.utils.text import nearest

from .metaformer import Block, MetaFormer, per_stage

MixerOptions = Callable[[int], dict[str, dict]]

# What models are made for, in the entries of timm's PretrainedCfg; a family adds its own.
IMAGENET = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    num_classes=1000,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    interpolation="bicubic",
    crop_pct=0.9,
    first_conv="stem",
    classifier="head",
    license="apache-2.0",
)
CIFAR10 = IMAGENET | dict(
    input_size=(3, 32, 32), num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop_pct=1.0
)
MNIST = CIFAR10 | dict(input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,))

default_cfgs: dict[str, DefaultCfg] = {}  # timm reads it when a name is registered
__all__: list[str] = []  # timm adds each name


def build(name: str, pretrained: bool = False, *, mixer_options: MixerOptions | None = None, **kwargs) -> nn.Module:
    """`MetaFormer(**kwargs)` through timm's builder, which adds configurations, weights and `features_only`.

    Without `img_size` it is made for the images of its configuration, those that its weights were trained on. Features
    are those of all stages, or of the last three blocks of an isotropic model.

    Args:
        mixer_options: what the family gives to its mixers, `dim -> {mixer: options}`; the caller's `mixer_args`
            override them one by one.

    Raises:
        ValueError: `timm.create_model(scriptable=True)`, which no model of the zoo can be.
    """
    if is_scriptable():
        raise ValueError("scriptable=True is TorchScript, which is not supported: use torch.compile or torch.export.")
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    kwargs.setdefault("img_size", cfg.input_size[-2:])
    depths = kwargs["depths"]
    if mixer_options:
        kwargs["mixer"] = per_stage("mixer", kwargs["mixer"], len(depths))
        given = per_stage("mixer_args", kwargs.get("mixer_args") or {}, len(depths))
        kwargs["mixer_args"] = [
            mixer_options(dim).get(mixer, {}) | args for dim, mixer, args in zip(kwargs["dims"], kwargs["mixer"], given)
        ]
    return build_model_with_cfg(
        MetaFormer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter,
        feature_cfg=dict(
            out_indices=len(depths) if len(depths) > 1 else min(3, depths[0]),
            feature_cls="getter",
            flatten_sequential=len(depths) > 1,  # for "list" and "dict", which find no blocks and miss positions
        ),
        **kwargs,
    )


def register(name: str, builder=build, *, cfg: dict, tags: dict[str, dict] | None = None, **preset) -> None:
    """Register `name` with timm: `builder(name, pretrained, **preset)`, where the caller's words override the preset.

    Args:
        builder: `build`, or a family's own, which takes the paper's words.
        cfg: entries of timm's `PretrainedCfg` that hold for the model without weights.
        tags: entries for weights elsewhere, by tag.

    Raises:
        ValueError: the name is taken; timm itself would overwrite the other model with no more than a warning.
    """
    if timm.is_model(name):
        raise ValueError(f"timm knows a model named {name!r} already: choose another name.")
    default_cfgs[name] = tagged_cfgs(name, cfg, tags or {})

    def entrypoint(pretrained: bool = False, **kwargs) -> nn.Module:
        return builder(name, pretrained, **{**preset, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


def check_model(name: str) -> None:
    """ValueError where timm knows no model `name`, or not its tag, if it has one."""
    if ":" in name:  # hf-hub:... is timm's to find
        return
    if not timm.is_model(name):
        raise ValueError(
            f"There is no model {name!r}{nearest(name, timm.list_models())} After `import metamix`, "
            f"`timm.list_models()` lists all."
        )
    model, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise ValueError(f"{model} has no tag {tag!r}{nearest(tag, tags)} It has {', '.join(tags) or 'none'}.")


def check_published(name: str) -> None:
    """ValueError where timm knows no weights of the model `name`."""
    if not (timm.models.is_model_pretrained(name) or ":" in name):
        raise ValueError(f"No weights are published for {name}: leave pretrained out, or give a checkpoint.")


def tagged_cfgs(name: str, cfg: dict, tags: dict[str, dict]) -> DefaultCfg:
    """Configurations of `name` by tag: those of the cards in `weights_dir()`, then `tags`.

    The first made for the images and classes of `cfg` is the default; where none is, the model without weights.
    """
    local = local_weights().get(name, {})
    cfgs = {tag: cfg | tags.get(tag, {}) | local.get(tag, {}) for tag in (*local, *tags)}
    default = [tag for tag, c in cfgs.items() if all(c[k] == cfg[k] for k in ("input_size", "num_classes"))][:1]
    order = [*default, "", *(tag for tag in cfgs if tag not in default)]
    cfgs[""] = cfg
    return DefaultCfg(deque(order), {tag: PretrainedCfg(**cfgs[tag]) for tag in order}, is_pretrained=len(order) > 1)


def weights_dir() -> Path:
    """The folder of trained weights: inside the installed package, or at the root of a clone."""
    package = Path(__file__).resolve().parents[1]
    return next((d for d in (package / "weights", package.parent / "weights") if d.is_dir()), package / "weights")


@cache
def local_weights() -> dict[str, dict[str, dict]]:
    """Entries of timm's `PretrainedCfg` for each weight in `weights_dir()`, by model name and tag, read from the cards.

    Raises:
        ValueError: a card that cannot be read, or has entries that `PretrainedCfg` does not.
    """
    found: dict[str, dict[str, dict]] = {}
    for card in sorted(weights_dir().glob("*.json")):
        name, _, tag = card.stem.partition(".")
        weights = card.with_suffix(".safetensors")
        if not weights.is_file():
            continue  # a card may outlive its weights, in a clone without large files
        try:
            entries = json.loads(card.read_text())["pretrained_cfg"]
            entries = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()} | {"file": str(weights)}
            PretrainedCfg(**entries)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{card} is no card of a weight: {error!r}. It needs the entries of timm's PretrainedCfg."
            ) from error
        found.setdefault(name, {})[tag] = entries
    return found


def checkpoint_filter(state: dict, model: MetaFormer) -> dict[str, Tensor]:
    """Bring a checkpoint's tensors to `model`: unwrapped, in our names, spatial weights resampled to its image size.

    Takes our own files and those in a format of `official.PUBLISHED`. timm loads loosely as soon as the class count
    differs, so what must not be missing is checked here.

    Raises:
        ValueError: a tensor other than the head's is missing, left over or of a shape that does not fit.
    """
    from .official import format_of  # which imports the families, and they this file

    state = unwrap(state)
    layout = format_of(state)
    given, unknown = layout.translate(state, model)
    given = adapt_state(given, model)

    check_body(given, model, unknown - {layout.name("head.weight"), layout.name("head.bias")}, layout.name)
    return given


def in_names_of(model: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of the file `source` as `model` has them, spatial weights resampled to its image size.

    That is the zoo's filter or, for timm's own models, their file's. ValueError, with `source`, where it refuses them.
    """
    if isinstance(model, MetaFormer):
        adapt = checkpoint_filter
    else:
        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
    try:
        return adapt(state, model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def unwrap(state: dict) -> dict:
    """The tensors of a checkpoint that may hold more than them."""
    for wrapper in ("state_dict", "model", "params"):
        state = state.get(wrapper, state)
    return state


def adapt_state(state: dict[str, Tensor], model: MetaFormer) -> dict[str, Tensor]:
    """Spatial weights and position embeddings, saved for another image size, at the size of `model`."""
    state = dict(state)
    if model.pos_embed is not None and "pos_embed" in state and state["pos_embed"].ndim == 4:
        state["pos_embed"] = resize_to(state["pos_embed"], model.pos_embed.shape[-2:])
    for name, block in model.named_modules():
        if isinstance(block, Block):
            prefix = f"{name}.mixer."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if own.keys() != block.mixer.state_dict().keys():
                continue  # check_state names what is missing
            try:
                adapted = block.mixer.adapt_state(own)
            except (RuntimeError, IndexError, ValueError) as error:
                shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in own.items())
                raise ValueError(
                    f"The checkpoint does not fit: no image size explains the shapes in {prefix}: {shapes}."
                ) from error
            state |= {prefix + k: v for k, v in adapted.items()}
    return state


def check_body(
    given: dict[str, Tensor], model: nn.Module, unknown: set[str] = frozenset(), name: Callable[[str], str] = str
) -> None:
    """`check_state` for all but what timm adapts by itself: the head, and the channels of the first convolutions.

    ValueError where one of `given` is missing or of another shape, or where there are `unknown` ones.
    """
    cfg = model.pretrained_cfg
    head = tuple(f"{part}." for part in as_tuple(cfg.get("classifier")))
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(head)}
    checked = {key: given[key] for key in own.keys() & given.keys()}
    for key in (f"{conv}.weight" for conv in as_tuple(cfg.get("first_conv"))):
        mine, theirs = (tensors[key].shape if key in tensors else () for tensors in (own, checked))
        if theirs and mine[:1] + mine[2:] == theirs[:1] + theirs[2:]:
            del checked[key], own[key]
    check_state(checked, own, unknown, cfg["architecture"], name)


def check_state(
    given: dict[str, Tensor], own: dict[str, Tensor], unknown: set[str], model: str, name: Callable[[str], str] = str
) -> None:
    """Refuse a checkpoint whose tensors `given` are not those of `own`, or that has `unknown` others.

    The message speaks of `model`, and calls tensors by their `name` in the file.
    """
    problems = []
    missing = {name(key) for key in own.keys() - given.keys()}
    for what, keys in (("lacks", missing), ("has, unknown to the model,", unknown)):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            problems.append(f"{what} {some}")
    for key in sorted(own.keys() & given.keys()):
        mine, theirs = own[key].shape, given[key].shape
        if mine != theirs:
            problems.append(f"has {name(key)} of shape {tuple(theirs)} where the model has {tuple(mine)}")
    if len(problems) > 6:
        problems[6:] = [f"has {len(problems) - 6} more such tensors"]
    if problems:
        raise ValueError(
            f"The checkpoint does not fit {model}: it {'; it '.join(problems)}. "
            f"Load it into the model that it was saved from."
        )


def as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
