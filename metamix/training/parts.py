"""Find parts of a model by name, and exclude them from training."""

from __future__ import annotations

import fnmatch

from torch import nn

from metamix.utils.text import did_you_mean


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Exclude parts of the model from training.

    Args:
        model: its parameters are changed in place.
        parts: names of modules or parameters, or patterns such as stages.*.norm1.

    Raises:
        ValueError: a name matches nothing, or nothing is left to train.
    """
    for part in parts:
        for weight in find_weights_of(model, part, "freeze"):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"nothing is left to train: freeze is {','.join(parts)}")


def find_weights_of(model: nn.Module, part: str, option: str) -> list[nn.Parameter]:
    """Return the weights of a part of a model.

    Args:
        model: the model.
        part: name of a module or a parameter, or a pattern such as stages.*.norm1.
        option: name of the option that gave `part`, for the message.

    Raises:
        ValueError: the name matches nothing.
    """
    # A dot after each name lets one pattern match both the parameter itself and all parameters of a module.
    weights = [weight for name, weight in model.named_parameters() if fnmatch.fnmatch(f"{name}.", f"{part}.*")]
    if not weights:
        modules = [name for name, _ in model.named_modules() if name]
        raise ValueError(
            f"{option} names {part!r}, but no weight of this model is under it{did_you_mean(part, modules)} "
            f"Its parts: {', '.join(name for name, _ in model.named_children())}."
        )
    return weights


def train_mode(model: nn.Module) -> None:
    """Set training mode, except for modules that are frozen completely: dropout and batch statistics are off there."""
    model.train()
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()
