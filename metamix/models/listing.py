"""List every registered model with its size, its weights and their scores.

Sizes are counted once and kept in `sizes.json`. After changing a model, write the file again:

    python -c "from metamix.models.listing import write_sizes; write_sizes()"
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metamix.utils.text import matching
from metamix.weights.find import local_cards

from .image_models import create_image_model, image_model_names, weights_of
from .registry import default_cfgs

# {name: [parameters, multiply-adds]}; image models add [channels, scale]
SIZES = Path(__file__).with_name("sizes.json")
IMAGE_SIDE = 256  # multiply-adds of an image model are counted for a restored square image with sides of this length


@dataclass(frozen=True)
class WeightsInfo:
    """Trained weights of a model."""

    tag: str  # `timm.create_model("NAME.TAG", pretrained=True)` loads the weights
    data: str | None  # training data set; None if unknown
    top1: float | None  # accuracy in percent on the data set's test split; None if we did not measure it
    input_size: tuple[int, int, int]  # (C, H, W) of the training images
    num_classes: int
    source: str  # path or URL of the file, or name of the repository on the Hugging Face hub


@dataclass(frozen=True)
class ModelInfo:
    """A registered model."""

    name: str  # for `timm.create_model`
    parameters: int
    macs: int  # multiply-adds for one image of `input_size`; see `count_macs`
    input_size: tuple[int, int, int]  # (C, H, W) of the images that the model takes by default
    num_classes: int  # outputs of the model by default
    weights: tuple[WeightsInfo, ...]  # the default weights, if there are any, come first


@dataclass(frozen=True)
class ImageWeightsInfo:
    """Trained weights of a model that returns images."""

    tag: str  # `metamix.create_image_model("NAME.TAG", pretrained=True)` loads the weights
    data: str | None  # training images; None if unknown
    test_data: str | None  # test images; None if we did not score the weights
    psnr: float | None  # mean over the test images in dB; None if we did not score the weights
    source: str  # path or URL of the file


@dataclass(frozen=True)
class ImageModelInfo:
    """A registered model that returns images."""

    name: str  # for `metamix.create_image_model`
    parameters: int
    macs_per_pixel: int  # multiply-adds for each pixel of the result; see `count_macs`
    in_chans: int  # channels of the images
    scale: int  # factor by which the model enlarges height and width
    weights: tuple[ImageWeightsInfo, ...]  # the default weights, if there are any, come first


def list_models(pattern: str | Iterable[str] = "*", *, pretrained: bool = False) -> list[ModelInfo]:
    """List the classifiers of the zoo, then classifiers that you registered with `metamix.models.registry.register`.

    Args:
        pattern: a name with wildcards such as `"*raft*"`, or several such names.
        pretrained: list only models with weights.

    Raises:
        ValueError: a pattern matches no model.
    """
    others = "metamix.list_models() lists all classifiers; metamix.list_image_models() lists models that return images."
    models = map(model_info, matching(pattern, list(default_cfgs), others))
    return [model for model in models if model.weights or not pretrained]


def list_image_models(pattern: str | Iterable[str] = "*", *, pretrained: bool = False) -> list[ImageModelInfo]:
    """List the image restoration models, including models that you registered with `register_image_model`.

    Arguments and errors are as for `list_models`.
    """
    others = "metamix.list_image_models() lists all models that return images; metamix.list_models() lists classifiers."
    models = map(image_model_info, matching(pattern, image_model_names(), others))
    return [model for model in models if model.weights or not pretrained]


def list_all_models(patterns: Iterable[str] = ("*",), *, pretrained: bool = False) -> list[ModelInfo | ImageModelInfo]:
    """List the classifiers, then the image restoration models. The arguments are as for `list_models`.

    A pattern such as "*.cifar10" may also match weights. A model whose name does not match is then listed with the
    matching weights only.
    """
    tags = {name: default_cfgs[name].tags for name in default_cfgs} | {n: weights_of(n) for n in image_model_names()}
    tagged = [f"{name}.{tag}" for name in tags for tag in tags[name] if tag]
    chosen = set(matching(patterns, [*tags, *tagged], "`metamix models` lists all names."))
    models = []
    for name in tags:
        chosen_tags = {tag for tag in tags[name] if name in chosen or f"{name}.{tag}" in chosen}
        if name in chosen or chosen_tags:
            model = model_info(name) if name in default_cfgs else image_model_info(name)
            weights: Any = tuple(weights for weights in model.weights if weights.tag in chosen_tags)
            models.append(replace(model, weights=weights))
    return [model for model in models if model.weights or not pretrained]


def model_info(name: str) -> ModelInfo:
    """Describe the model registered as `name`."""
    cfgs, cards = default_cfgs[name].cfgs, local_cards().get(name, {})
    try:
        parameters, macs = known_sizes().get(name) or count_size(name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is registered with wrong arguments: {error}") from error
    weights = []
    for tag in filter(None, default_cfgs[name].tags):
        card, cfg = cards.get(tag, {}), cfgs[tag]
        weights.append(
            WeightsInfo(
                tag=tag,
                data=card.get("data"),
                top1=card.get("top1"),
                input_size=cfg.input_size,
                num_classes=cfg.num_classes,
                source=str(cfg.file or cfg.hf_hub_id or cfg.url),
            )
        )
    return ModelInfo(name, parameters, macs, cfgs[""].input_size, cfgs[""].num_classes, tuple(weights))


def image_model_info(name: str) -> ImageModelInfo:
    """Describe the image model registered as `name`."""
    cards = local_cards().get(name, {})
    parameters, macs, in_chans, scale = known_sizes().get(name) or count_size(name)
    weights = []
    for tag, source in weights_of(name).items():
        card = cards.get(tag, {})
        scores = {key: card.get(key) for key in ("data", "test_data", "psnr")}
        weights.append(ImageWeightsInfo(tag=tag, source=source, **scores))
    return ImageModelInfo(name, parameters, round(macs / IMAGE_SIDE**2), in_chans, scale, tuple(weights))


@cache
def known_sizes() -> dict[str, list[int]]:
    """Return the sizes in `sizes.json`."""
    return json.loads(SIZES.read_text())


def count_size(name: str) -> list[int]:
    """Count the parameters and the multiply-adds of a registered model on the meta device.

    For an image model, the multiply-adds are counted for a restored image of `IMAGE_SIDE` x `IMAGE_SIDE` pixels, and
    the list also holds `in_chans` and `scale`.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(name) if name in default_cfgs else create_image_model(name)
    parameters = sum(p.numel() for p in model.parameters())
    if name in default_cfgs:
        return [parameters, count_macs(model, default_cfgs[name].cfgs[""].input_size)]
    side = IMAGE_SIDE // model.scale
    return [parameters, count_macs(model, (model.in_chans, side, side)), model.in_chans, model.scale]


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-adds of a model for one image, on the meta device.

    torch's flop counter counts convolutions, matrix products and attention, with two operations for each multiply-add.
    It does not count norms, activations, pooling, resampling, Haar's wavelet transform or element-wise work.

    Args:
        model: the model, on any device; it is not changed.
        input_size: (C, H, W).
    """
    model = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device="meta", dtype=next(model.parameters()).dtype))
    return counter.get_total_flops() // 2


def write_sizes() -> None:
    """Count the sizes of all registered models, and write `sizes.json`."""
    lines = [f'  "{name}": {count_size(name)}' for name in (*default_cfgs, *image_model_names())]
    SIZES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
