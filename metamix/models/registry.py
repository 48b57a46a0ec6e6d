"""Register the names of models with timm, build the models through timm's builder, and create any model by name.

Each family's file calls `register(name, builder, cfg=..., **preset)`. Then `timm.create_model(name)` builds the model,
with timm's configurations, weights and `features_only`, and `timm.list_models(module="metamix")` lists its name.
"""

import inspect
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import is_scriptable
from timm.models import DefaultCfg, PretrainedCfg, build_model_with_cfg, register_model, resolve_pretrained_cfg
from timm.models._registry import _module_to_models
from torch import nn

from metamix.utils.text import did_you_mean
from metamix.weights.download import require_reachable
from metamix.weights.files import ARTIFACT
from metamix.weights.find import cfg_of_file, check_tag, local_weights, nothing_published

from .arguments import check_stages, mixers_per_stage, per_stage
from .checkpoint import checkpoint_filter
from .metaformer import MetaFormer

# Entries of timm's PretrainedCfg for the models of a data set. A family adds further entries.
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


def build(
    name: str, pretrained: bool = False, *, default_mixer_args: dict | Sequence[dict] | None = None, **kwargs
) -> nn.Module:
    """Build `MetaFormer(**kwargs)` through timm, which adds configurations, weights and `features_only`.

    Without `img_size`, the model is made for the image size in its configuration. Features are taken after each stage
    of a pyramid, or after each of the last three blocks of an isotropic model.

    Args:
        name: registered name, with which timm finds configurations and weights.
        default_mixer_args: the family's options of each mixer, by the mixer's name: one dict for all stages, or one for
            each stage. The caller's `mixer_args` override individual options.
        kwargs: arguments of `MetaFormer` and of timm's builder.
    """
    if is_scriptable():
        raise ValueError("scriptable=True needs TorchScript, which is unsupported: use torch.compile or torch.export.")
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("file"):  # files that metamix wrote record the image size and the number of classes
        if not Path(overlay["file"]).is_file():
            raise FileNotFoundError(f"pretrained_cfg_overlay: there is no file {overlay['file']}")
        overlay = kwargs["pretrained_cfg_overlay"] = {"tag": None} | cfg_of_file(overlay["file"]) | overlay
    elif overlay.get("hf_hub_id") or overlay.get("url"):  # otherwise timm would load the shipped file of this name
        overlay = kwargs["pretrained_cfg_overlay"] = {"file": None, "tag": None} | overlay
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
    if pretrained and cfg.state_dict is None:
        require_reachable(name, cfg, kwargs.get("cache_dir"))
    size = kwargs.setdefault("img_size", cfg.input_size[-2:])
    if hasattr(size, "tolist"):  # timm does not take numpy numbers
        kwargs["img_size"] = size.tolist()
    options = inspect.signature(MetaFormer).parameters
    depths, dims = (kwargs.get(name, options[name].default) for name in ("depths", "dims"))
    check_stages(depths, dims)
    feature_cls = kwargs.get("feature_cls") if kwargs.get("features_only") else None
    problem = ""
    if feature_cls in ("list", "dict") and len(depths) == 1:
        problem = f"does not find the blocks of {name}, which has one stage"
    elif feature_cls in ("list", "dict", "hook") and len(depths) > 1 and kwargs.get("pos_embed"):
        problem = "leaves out the position embedding, which timm does not find"
    if problem:
        raise ValueError(f"feature_cls={feature_cls!r} {problem}: give 'getter' or 'fx'.")
    if default_mixer_args:
        mixer = kwargs.get("mixer", options["mixer"].default)
        mixers, mixer_args = mixers_per_stage(mixer, kwargs.get("mixer_args"), len(depths))
        defaults = per_stage("default_mixer_args", default_mixer_args, len(depths))
        kwargs["mixer"] = mixers
        kwargs["mixer_args"] = [each.get(mixer, {}) | args for each, mixer, args in zip(defaults, mixers, mixer_args)]
    feature_cfg = dict(
        out_indices=tuple(range(len(depths))) if len(depths) > 1 else tuple(range(depths[0]))[-3:],
        feature_cls="getter",
        flatten_sequential=len(depths) > 1,  # lets timm's "list" and "dict" find stages; they cannot find blocks
    )
    kwargs |= dict(pretrained_filter_fn=checkpoint_filter, feature_cfg=feature_cfg)
    try:
        return build_model_with_cfg(MetaFormer, name, pretrained, **kwargs)
    except TypeError as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            words = f"{error}{did_you_mean(unknown[1], options)} See help(metamix.models.MetaFormer)."
            raise TypeError(words) from error
        raise


def register(
    name: str,
    builder: Callable[..., nn.Module] = build,
    *,
    cfg: dict[str, Any],
    tags: dict[str, dict] | None = None,
    **preset: Any,
) -> None:
    """Register a name with timm. Its model is `builder(name, pretrained, **preset)`.

    The arguments of `timm.create_model` override the preset. If a module is imported again, or a notebook cell runs
    twice, the names that it registered are replaced.

    Args:
        builder: `build`, or the family's own builder, which takes the paper's arguments.
        cfg: entries of timm's `PretrainedCfg` for the model without weights.
        tags: entries of `PretrainedCfg` for weights that are published elsewhere, by tag.
        preset: arguments of the builder.

    Raises:
        ValueError: the name is not an identifier, or another module has registered it. timm itself would only warn and
            replace that model.
    """
    if not name.isidentifier():  # timm reads the text after a dot as a tag
        raise ValueError(f"a model cannot be named {name!r}: give letters, digits and underscores.")
    caller = sys._getframe(1).f_globals["__name__"]
    taken = timm.model_entrypoint(name) if timm.is_model(name) else None
    if taken and getattr(taken, "registered_in", None) != caller:
        raise ValueError(f"timm already has a model named {name!r} ({taken.__module__}): choose another name.")
    default_cfgs[name] = tagged_cfgs(name, cfg, tags or {})

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return builder(name, pretrained, **{**preset, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = builder.__doc__
    entrypoint.registered_in = caller  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns when a name is replaced
        register_model(entrypoint)
    _module_to_models["metamix"].add(name)  # for timm.list_models(module="metamix")


def tagged_cfgs(name: str, cfg: dict, tags: dict[str, dict]) -> DefaultCfg:
    """Collect the configurations of a name by tag: from the cards in `weights_dir()`, then from `tags`.

    The default is the first tag whose weights have the image size and the number of classes of `cfg`. If there is no
    such tag, the default is the model without weights.
    """
    local = local_weights().get(name, {})
    cfgs = {tag: cfg | tags.get(tag, {}) | local.get(tag, {}) for tag in (*local, *tags)}
    default = [tag for tag, c in cfgs.items() if all(c[k] == cfg[k] for k in ("input_size", "num_classes"))][:1]
    order = [*(default or [""]), *(tag for tag in cfgs if tag not in default)]  # timm lists NAME too if "" is a tag
    published = bool(cfgs)
    cfgs[""] = cfg
    return DefaultCfg(deque(order), {tag: PretrainedCfg(**cfgs[tag]) for tag in cfgs}, is_pretrained=published)


def check_model(name: str, pretrained: bool = False) -> None:
    """Raise ValueError if timm has no model of this name, no such tag or, for `pretrained`, no weights for the name."""
    if not isinstance(name, str):
        raise ValueError(f"name is of type {type(name).__name__}: give the name of a model.")
    if ":" in name:  # timm looks up hf-hub:... and local-dir:...
        return
    if not timm.is_model(name):
        if os.path.isfile(os.path.join(name, ARTIFACT)):
            advice = f"metamix predict --model {name} runs it; metamix export --data scores a model while exporting it"
            raise ValueError(f"{name} is an exported model: {advice}")
        raise ValueError(f"There is no model {name!r}{did_you_mean(name, timm.list_models())} See timm.list_models().")
    model, _, tag = name.partition(".")
    check_tag(model, tag, [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{model}.*")])
    if pretrained and not timm.models.is_model_pretrained(name):
        raise nothing_published(name)


def known_name(name: str) -> str:
    """Return `name`, the model name in a weight file, without its tag if no weights with this tag are registered.

    The tag names the weights that training started from. They are not needed to load the result.
    """
    return name if name in timm.list_pretrained(name) else name.partition(".")[0]


def create_model(name: str, /, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Create a timm model by name, which may have a tag. `img_size` is ignored if the model does not take it.

    Raises:
        ValueError: the name or an argument is unknown, or no weights are published.
        OSError: published weights are neither cached nor reachable.
    """
    check_model(name, pretrained)
    if pretrained or ":" in name:
        require_reachable(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if "img_size" in str(error) and "img_size" in arguments:  # a model for any image size, such as timm's resnet18
            del arguments["img_size"]
            return create_model(name, pretrained, **arguments)
        raise ValueError(f"model {name} does not take {arguments}: {error}") from None
    except (AssertionError, AttributeError, LookupError, ArithmeticError) as error:
        if timm.is_model(name) and hasattr(timm.model_entrypoint(name), "registered_in"):
            raise  # the zoo's models check their arguments, so it is a bug
        raise ValueError(f"model {name} does not take {arguments}: {type(error).__name__} {error}") from None


def check_image_size(model: nn.Module, name: str, in_chans: int, size: int, advice: str) -> None:
    """Check that a model turns square images of `size` pixels into logits, by a forward pass of a black image.

    The error names the model and, if it does not take such images, ends with `advice`.
    """
    training = model.training
    try:
        with torch.no_grad():
            shape = model.eval()(torch.zeros(1, in_chans, size, size)).shape
    except (AssertionError, RuntimeError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{name} does not take images of {size} pixels: {why}. {advice}") from None
    if len(shape) != 2:
        raise ValueError(f"{name} returns maps {tuple(shape)}, not a number for each class: leave global_pool='' out")
    model.train(training)


def timm_config(model: nn.Module) -> Mapping[str, Any]:
    """Return timm's configuration of a model: its weights, its image preprocessing, the names of its head and stem."""
    config: Any = model.pretrained_cfg
    return config


def published_name(model: nn.Module) -> str:
    """Return the name and the tag of the published weights that timm loaded into a model or a feature extractor."""
    cfg = timm_config(model)
    return ".".join(filter(None, (cfg["architecture"], cfg.get("tag"))))
