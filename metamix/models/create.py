"""Create any model of timm by name, with errors that say what to do."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from metamix.weights.download import require_reachable

from .registry import check_model


def create_model(name: str, /, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Create a timm model by name, which may have a tag. Models for any image size need no `img_size`.

    Raises:
        ValueError: an unknown name, with the nearest one; weights that are not published; unknown arguments.
    """
    check_model(name, pretrained)
    if pretrained or ":" in name:
        require_reachable(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if "img_size" in str(error) and "img_size" in arguments:  # a model for any size, such as timm's resnet18
            del arguments["img_size"]
            return create_model(name, pretrained, **arguments)
        raise ValueError(f"model {name} does not take {arguments}: {error}") from None
    except (AssertionError, AttributeError, LookupError, ArithmeticError) as error:
        if timm.is_model(name) and hasattr(timm.model_entrypoint(name), "registered_in"):
            raise  # the zoo's models check their arguments, so it is a bug
        raise ValueError(f"model {name} does not take {arguments}: {type(error).__name__} {error}") from None


def check_image_size(model: nn.Module, name: str, in_chans: int, size: int, advice: str) -> None:
    """Check that a model takes square images of `size` pixels, by a forward pass of a black one.

    The error names the model and ends with `advice`.
    """
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_chans, size, size))
    except (AssertionError, RuntimeError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{name} does not take images of {size} pixels: {why}. {advice}") from None
    model.train(training)


def timm_config(model: nn.Module) -> Mapping[str, Any]:
    """Return timm's configuration of a model: its weights, their images, the names of its layers."""
    config: Any = model.pretrained_cfg
    return config
