"""From a registered name to a model: timm's builder around the skeleton, and where weights come from."""

import json
from collections import deque
from functools import cache
from pathlib import Path

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import DefaultCfg, PretrainedCfg, build_model_with_cfg, register_model
from torch import Tensor, nn

from .metaformer import MetaFormer

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


def build(name: str, pretrained: bool = False, **kwargs) -> nn.Module:
    """`MetaFormer(**kwargs)` through timm's builder, which adds configurations, weights and `features_only`.

    Features are those of all stages, or of the last three blocks of an isotropic model.
    """
    depths = kwargs["depths"]
    return build_model_with_cfg(
        MetaFormer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter,
        feature_cfg=dict(out_indices=len(depths) if len(depths) > 1 else min(3, depths[0]), feature_cls="getter"),
        **kwargs,
    )


def register(name: str, builder=build, *, cfg: dict, tags: dict[str, dict] | None = None, **preset) -> None:
    """Register `name` with timm: `builder(name, pretrained, **preset)`, where what the caller says overrides the preset.

    Args:
        builder: `build`, or a family's own, which takes the paper's words.
        cfg: entries of timm's `PretrainedCfg` that hold for the model without weights.
        tags: entries for weights elsewhere, by tag, the default one first. Cards in `weights_dir()` add theirs; a
            weight made for the images and classes of `cfg` becomes the default.

    Raises:
        ValueError: the name is taken; timm itself would overwrite the other model with no more than a warning.
    """
    if timm.is_model(name):
        raise ValueError(f"timm knows a model named {name!r} already: choose another name.")
    cfgs = {tag: cfg | entries for tag, entries in (tags or {}).items()}
    for tag, entries in local_weights().get(name, {}).items():
        cfgs[tag] = cfg | cfgs.get(tag, {}) | entries
    default = [tag for tag, c in cfgs.items() if all(c[k] == cfg[k] for k in ("input_size", "num_classes"))]
    order = [*default[:1], "", *(tag for tag in cfgs if tag not in default[:1])]
    cfgs[""] = cfg
    default_cfgs[name] = DefaultCfg(
        tags=deque(order), cfgs={tag: PretrainedCfg(**cfgs[tag]) for tag in order}, is_pretrained=len(order) > 1
    )

    def entrypoint(pretrained: bool = False, **kwargs) -> nn.Module:
        return builder(name, pretrained, **{**preset, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


def weights_dir() -> Path:
    """The folder of trained weights: inside the installed package, or at the root of a clone."""
    package = Path(__file__).resolve().parents[1]
    return next((d for d in (package / "weights", package.parent / "weights") if d.is_dir()), package / "weights")


@cache
def local_weights() -> dict[str, dict[str, dict]]:
    """Entries of timm's `PretrainedCfg` for each weight in `weights_dir()`, by model name and tag, read from the cards."""
    found: dict[str, dict[str, dict]] = {}
    for path in sorted(weights_dir().glob("*.json")):
        name, _, tag = path.stem.partition(".")
        entries = json.loads(path.read_text())["pretrained_cfg"]
        entries = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
        found.setdefault(name, {})[tag] = entries | {"file": str(path.with_suffix(".safetensors"))}
    return found


def checkpoint_filter(state: dict[str, Tensor], model: MetaFormer) -> dict[str, Tensor]:
    """Bring a checkpoint's tensors to `model`: unwrapped, and spatial weights resampled to its image size.

    timm loads loosely as soon as the class count differs, so what must not be missing is checked here.

    Raises:
        ValueError: a tensor other than the head's is missing, left over or of a shape that does not fit.
    """
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state)
    state = adapt_state(state, model)
    check_state(state, model)
    return state


def adapt_state(state: dict[str, Tensor], model: MetaFormer) -> dict[str, Tensor]:
    """Spatial weights and position embeddings, saved for another image size, at the size of `model`."""
    from .metaformer import Block, resize_to

    state = dict(state)
    if model.pos_embed is not None and "pos_embed" in state:
        state["pos_embed"] = resize_to(state["pos_embed"], model.pos_embed.shape[-2:])
    for name, block in model.named_modules():
        if isinstance(block, Block):
            prefix = f"{name}.mixer."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if own.keys() == block.mixer.state_dict().keys():  # an incomplete one is named by check_state
                state |= {prefix + k: v for k, v in block.mixer.adapt_state(own).items()}
    return state


def check_state(state: dict[str, Tensor], model: MetaFormer) -> None:
    """Refuse a state that `model` cannot load whole; its head, and its channels where timm adapts them, may differ."""
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    given = {k: v for k, v in state.items() if not k.startswith("head.")}
    first = [f"{c}.weight" for c in as_tuple(model.pretrained_cfg["first_conv"])]
    problems = []
    for what, keys in (("lacks", own.keys() - given.keys()), ("has no use for", given.keys() - own.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            problems.append(f"{what} {some}")
    for key in own.keys() & given.keys():
        mine, theirs = own[key].shape, given[key].shape
        if mine != theirs and not (key in first and mine[:1] + mine[2:] == theirs[:1] + theirs[2:]):
            problems.append(f"has {key} of shape {tuple(theirs)} where the model has {tuple(mine)}")
    if problems:
        raise ValueError(
            f"The checkpoint does not fit {model.pretrained_cfg['architecture']}: it {'; it '.join(problems)}. "
            f"Load it into the model that it was saved from."
        )


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
