"""Every registered model with its size, its weights and their accuracy: `metamix.list_models(pattern)`.

Sizes are counted once and kept in `sizes.json`. After changing a model, write the file again:

    python -c "from metamix.models.listing import write_sizes; write_sizes()"
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import timm
import torch

from metamix.utils.text import nearest

from .macs import count_macs
from .registry import default_cfgs
from .weights import local_cards

SIZES = Path(__file__).with_name("sizes.json")  # {name: [parameters, multiply-adds]}


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


def list_models(pattern: str | Iterable[str] = "*", *, pretrained: bool = False) -> list[ModelInfo]:
    """List the models of the zoo, and those that you registered with `metamix.models.registry.register`.

    Args:
        pattern: a name with wildcards such as "*raft*", or several of them.
        pretrained: list only models with weights.

    Returns:
        The models in the order of their registration.

    Raises:
        ValueError: a pattern matches no model.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    for wanted in patterns:
        if not any(fnmatchcase(name, wanted) for name in default_cfgs):
            part = f"*{wanted.strip('*')}*"
            meant = nearest(wanted, default_cfgs)
            if any(fnmatchcase(name, part) for name in default_cfgs):
                meant = f"; did you mean {part!r}?"
            raise ValueError(
                f"No model matches {wanted!r}{meant} metamix.list_models() lists all, and metamix.list_image_models() "
                f"those that return images."
            )
    names = [name for name in default_cfgs if any(fnmatchcase(name, wanted) for wanted in patterns)]
    models = map(model_info, names)
    return [model for model in models if model.weights or not pretrained]


def model_info(name: str) -> ModelInfo:
    """Describe a registered name."""
    cfgs = default_cfgs[name].cfgs
    parameters, macs = size_of(name)
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


def write_sizes() -> None:
    """Count the sizes of all registered names, and write `sizes.json`."""
    sizes = {name: count_size(name) for name in default_cfgs}
    SIZES.write_text("{\n" + ",\n".join(f'  "{name}": {list(size)}' for name, size in sizes.items()) + "\n}\n")
