"""Resample spatial weights and position embeddings to another image size, in a model or in a checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metamix.layers import resize_to


def resize_mixers(stages: Iterable[Any], sizes: Iterable[tuple[int, int]]) -> None:
    """Replace the mixers of each stage with mixers for maps of another size, which have the resampled weights.

    Mixers without `adapt_state` stay, since their weights should not depend on the size. If their weights do depend on
    it, or if `adapt_state` fails, raise ValueError and replace no mixer.
    """
    replacements = []
    for stage, size in zip(stages, sizes):
        for block in stage.blocks:
            old = block.mixer
            like = next(filter(Tensor.is_floating_point, block.parameters()), torch.empty(0))  # gives device and dtype
            new = stage.make_mixer(size=size).to(like.device).train(old.training)
            cast_floats(new, like.dtype)
            misfit = f"{type(old).__name__} does not fit maps of {size}"
            if hasattr(old, "adapt_state"):
                with explained_failure(new, state := old.state_dict(), misfit):
                    new.load_state_dict(new.adapt_state(state))
                replacements.append((block, new))
            else:
                check_shapes(new, all_tensors(old), misfit)
    # Replace the mixers after all of them are adapted, so that a failure changes nothing.
    for block, mixer in replacements:
        keep_parameters(block.mixer, mixer)
        block.mixer = mixer


def resample_spatial_weights(state: Mapping[str, Tensor], model: Any, source: object) -> dict[str, Tensor]:
    """Resample spatial weights and position embeddings of a checkpoint to the image size of `model`, a MetaFormer."""
    state = dict(state)
    if model.pos_embed is not None and "pos_embed" in state and state["pos_embed"].ndim == 4:
        state["pos_embed"] = resize_to(state["pos_embed"], model.pos_embed.shape[-2:])
    blocks = {f"stages.{i}.blocks.{j}": b for i, stage in enumerate(model.stages) for j, b in enumerate(stage.blocks)}
    for name, block in blocks.items():
        prefix, mixer = f"{name}.mixer.", block.mixer
        saved = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        misfit = f"{source} does not fit {name}.mixer"
        if saved.keys() != mixer.state_dict().keys():
            continue  # check_fit reports the missing tensors
        if hasattr(mixer, "adapt_state"):
            with explained_failure(mixer, saved, misfit):
                state |= {prefix + key: value for key, value in mixer.adapt_state(saved).items()}
        elif not type(mixer).__module__.startswith("metamix."):  # no size changes the shapes of metamix's other mixers
            check_shapes(mixer, saved, misfit)
    return state


@contextmanager
def explained_failure(mixer: nn.Module, saved: Mapping[str, Tensor], misfit: str) -> Iterator[None]:
    """Turn errors of a mixer's `adapt_state` inside the `with` block into a ValueError that starts with `misfit`."""
    try:
        yield
    except (RuntimeError, LookupError, ValueError) as error:
        tensors = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in saved.items())
        reason = " ".join(str(error).split())
        raise ValueError(f"{misfit}: {type(mixer).__name__}.adapt_state cannot resample {tensors}: {reason}") from error


def check_shapes(mixer: nn.Module, saved: Mapping[str, Tensor], misfit: str) -> None:
    """Raise a ValueError that starts with `misfit` if saved tensors of a mixer without `adapt_state` do not fit it."""
    needed = all_tensors(mixer)
    for name, tensor in saved.items():
        # A name that the mixer lacks belongs to a layer that was replaced, such as a convolution that LoRA wraps.
        shape, wanted = tuple(tensor.shape), tuple(needed.get(name, tensor).shape)
        if shape != wanted:
            raise ValueError(
                f"{misfit}: {name} has shape {shape} instead of {wanted}. If the image size differs, define "
                f"{type(mixer).__name__}.adapt_state(state), which resamples parameters saved at a different size. "
                f"If options differ, build the model with the options that it was saved with."
            )


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name, with the buffers that its state dict leaves out."""
    return module.state_dict() | dict(module.named_buffers())


@torch.no_grad()
def keep_parameters(old: nn.Module, new: nn.Module) -> None:
    """Give `new` the parameter objects of `old`, which optimizers hold, where shapes are equal; keep `new`'s values."""
    for name, parameter in list(new.named_parameters(remove_duplicate=False)):
        kept = old.get_parameter(name)
        if kept.shape != parameter.shape:
            parameter.requires_grad_(kept.requires_grad)
            continue
        if not kept.is_meta and not torch.equal(kept, parameter):
            kept.copy_(parameter)
        module, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(module), leaf, kept)


def cast_floats(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the floating-point tensors of a module in place; its `to(dtype)` would also make complex weights real."""
    module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
