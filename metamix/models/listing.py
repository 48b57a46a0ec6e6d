"""Every registered model with its size, its weights and their scores.

    list_models(pattern)          classifiers, which are registered with timm; `metamix.list_models`
    list_image_models(pattern)    image restoration models; `metamix.list_image_models`
    list_all_models(patterns)     both, as `metamix models` prints them

Sizes are counted once and kept in `sizes.json`. After changing a model, write the file again:

    python -c "from metamix.models.listing import write_sizes; write_sizes()"
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch

from metamix.utils.text import matching
from metamix.weights.find import local_cards

from .image_models import create_image_model, image_model_names, published_source, tags_of
from .macs import count_macs
from .registry import default_cfgs

# {name: [parameters, multiply-adds]}; image models add [channels, scale]
SIZES = Path(__file__).with_name("sizes.json")
IMAGE_SIDE = 256  # pixels of the restored image that the multiply-adds of an image model are counted for


@dataclass(frozen=True)
class WeightsInfo:
    """Trained weights of a model.

    Attributes:
        tag: the weights are `timm.create_model("NAME.TAG", pretrained=True)`.
        data: the data set that they were trained on, if known.
        top1: accuracy on its test split in percent, if it was measured here.
        input_size: (C, H, W) of the training images.
        num_classes: classes.
        source: path of the file, or name of the repository on the Hugging Face hub.
    """

    tag: str
    data: str | None
    top1: float | None
    input_size: tuple[int, int, int]
    num_classes: int
    source: str


@dataclass(frozen=True)
class ModelInfo:
    """A registered model.

    Attributes:
        name: registered name, for `timm.create_model`.
        parameters: number of parameters.
        macs: multiply-adds for one image of `input_size`, see `count_macs`.
        input_size: (C, H, W) of the images that the model is made for.
        num_classes: classes that the model is made for.
        weights: trained weights, the default first.
    """

    name: str
    parameters: int
    macs: int
    input_size: tuple[int, int, int]
    num_classes: int
    weights: tuple[WeightsInfo, ...]


@dataclass(frozen=True)
class ImageWeightsInfo:
    """Trained weights of a model that returns images.

    Attributes:
        tag: the weights are `metamix.create_image_model("NAME.TAG", pretrained=True)`.
        data: the images that they were trained on, if known.
        test_data: the images that they were scored on, if they were scored here.
        psnr: mean PSNR of these in dB.
        source: path or address of the file.
    """

    tag: str
    data: str | None
    test_data: str | None
    psnr: float | None
    source: str


@dataclass(frozen=True)
class ImageModelInfo:
    """A registered model that returns images.

    Attributes:
        name: registered name, for `metamix.create_image_model`.
        parameters: number of parameters.
        macs_per_pixel: multiply-adds for each pixel of the result, see `count_macs`.
        in_chans: channels of the images.
        scale: size of the result over that of the input.
        weights: trained weights, the default first.
    """

    name: str
    parameters: int
    macs_per_pixel: int
    in_chans: int
    scale: int
    weights: tuple[ImageWeightsInfo, ...]


def list_models(pattern: str | Iterable[str] = "*", *, pretrained: bool = False) -> list[ModelInfo]:
    """List the models of the zoo, and those that you registered with `metamix.models.registry.register`.

    Args:
        pattern: a name with wildcards such as `"*raft*"`, or several of them.
        pretrained: list only models with weights.

    Returns:
        The models in the order of their registration.

    Raises:
        ValueError: a pattern matches no model.
    """
    others = "metamix.list_models() lists all, and metamix.list_image_models() those that return images."
    models = map(model_info, matching(as_patterns(pattern), list(default_cfgs), others))
    return [model for model in models if model.weights or not pretrained]


def list_image_models(pattern: str | Iterable[str] = "*", *, pretrained: bool = False) -> list[ImageModelInfo]:
    """List the image restoration models, and those that you registered with `register_image_model`.

    Args:
        pattern: a name with wildcards such as `"maxim_s*"`, or several of them.
        pretrained: list only models with weights.

    Returns:
        The models in the order of their registration.

    Raises:
        ValueError: a pattern matches no model.
    """
    others = "metamix.list_image_models() lists all, and metamix.list_models() the classifiers."
    models = map(image_model_info, matching(as_patterns(pattern), image_model_names(), others))
    return [model for model in models if model.weights or not pretrained]


def as_patterns(pattern: str | Iterable[str]) -> list[str]:
    """Return one pattern, or several, as a list."""
    return [pattern] if isinstance(pattern, str) else list(pattern)


def list_all_models(patterns: Iterable[str] = ("*",), *, pretrained: bool = False) -> list[ModelInfo | ImageModelInfo]:
    """List the classifiers, and after them the image restoration models, as `list_models` does.

    A pattern may also name weights, such as "*.cifar10"; their models are listed only with these weights.

    Raises:
        ValueError: a pattern matches no model.
    """
    tags = {name: default_cfgs[name].tags for name in default_cfgs} | {n: tags_of(n) for n in image_model_names()}
    known = [*tags, *(f"{name}.{tag}" for name in tags for tag in tags[name] if tag)]
    chosen = set(matching(list(patterns), known, "`metamix models` lists all."))
    models = []
    for name in tags:
        weights = {tag for tag in tags[name] if f"{name}.{tag}" in chosen}
        if name in chosen or weights:
            model = model_info(name) if name in default_cfgs else image_model_info(name)
            own: Any = model.weights if name in chosen else tuple(w for w in model.weights if w.tag in weights)
            models.append(replace(model, weights=own))
    return [model for model in models if model.weights or not pretrained]


def model_info(name: str) -> ModelInfo:
    """Describe a registered name.

    Raises:
        ValueError: it was registered with arguments that make no model.
    """
    cfgs = default_cfgs[name].cfgs
    try:
        parameters, macs = size_of(name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is registered with arguments that make no model: {error}") from error
    return ModelInfo(
        name=name,
        parameters=parameters,
        macs=macs,
        input_size=cfgs[""].input_size,
        num_classes=cfgs[""].num_classes,
        weights=tuple(weights_info(name, tag) for tag in default_cfgs[name].tags if tag),
    )


def weights_info(name: str, tag: str) -> WeightsInfo:
    """Describe the weights NAME.TAG."""
    cfg = default_cfgs[name].cfgs[tag]
    card = local_cards().get(name, {}).get(tag, {})
    return WeightsInfo(
        tag=tag,
        data=card.get("data"),
        top1=card.get("top1"),
        input_size=cfg.input_size,
        num_classes=cfg.num_classes,
        source=str(cfg.file or cfg.hf_hub_id or cfg.url),
    )


def image_model_info(name: str) -> ImageModelInfo:
    """Describe a registered image model."""
    parameters, macs, in_chans, scale = image_size_of(name)
    return ImageModelInfo(
        name=name,
        parameters=parameters,
        macs_per_pixel=round(macs / IMAGE_SIDE**2),
        in_chans=in_chans,
        scale=scale,
        weights=tuple(image_weights_info(name, tag) for tag in tags_of(name)),
    )


def image_weights_info(name: str, tag: str) -> ImageWeightsInfo:
    """Describe the weights NAME.TAG of an image model."""
    card = local_cards().get(name, {}).get(tag, {})
    return ImageWeightsInfo(
        tag=tag,
        data=card.get("data"),
        test_data=card.get("test_data"),
        psnr=card.get("psnr"),
        source=published_source(name, tag),
    )


@cache
def known_sizes() -> dict[str, list[int]]:
    """Return the sizes in `sizes.json`."""
    return json.loads(SIZES.read_text()) if SIZES.is_file() else {}


def size_of(name: str) -> tuple[int, int]:
    """Return parameters and multiply-adds of a registered name, counted if they are not in `sizes.json`."""
    parameters, macs = known_sizes().get(name) or count_size(name)
    return parameters, macs


@cache
def count_size(name: str) -> tuple[int, int]:
    """Count parameters and multiply-adds of a registered name on the meta device."""
    with torch.device("meta"):
        model = timm.create_model(name)
    return sum(p.numel() for p in model.parameters()), count_macs(model, default_cfgs[name].cfgs[""].input_size)


def image_size_of(name: str) -> tuple[int, int, int, int]:
    """Return the size of an image model as `count_image_size` does, from `sizes.json` where the name is in it."""
    parameters, macs, in_chans, scale = known_sizes().get(name) or count_image_size(name)
    return parameters, macs, in_chans, scale


@cache
def count_image_size(name: str) -> tuple[int, int, int, int]:
    """Count an image model on the meta device.

    Returns:
        Parameters, multiply-adds for a result of `IMAGE_SIDE` x `IMAGE_SIDE` pixels, channels, scale.
    """
    with torch.device("meta"):
        model: Any = create_image_model(name)
    side = IMAGE_SIDE // model.scale
    macs = count_macs(model, (model.in_chans, side, side))
    return sum(p.numel() for p in model.parameters()), macs, model.in_chans, model.scale


def write_sizes() -> None:
    """Count the sizes of all registered names, and write `sizes.json`."""
    sizes: dict[str, tuple[int, ...]] = {name: count_size(name) for name in default_cfgs}
    sizes |= {name: count_image_size(name) for name in image_model_names()}
    SIZES.write_text("{\n" + ",\n".join(f'  "{name}": {list(size)}' for name, size in sizes.items()) + "\n}\n")
