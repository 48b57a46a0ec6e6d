"""Optimizer, learning rate and weight average, from timm's factories by the options of the recipe."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from metamix.utils.text import nearest

from .recipe import EngineOptions

FUSED = ("adamw", "adam", "sgd", "momentum")  # torch's own: one kernel for all weights, on CPUs and GPUs


def make_optimizer(model: nn.Module, options: EngineOptions) -> Optimizer:
    """The optimizer of the recipe over the weights that are trained; ValueError for an unknown name or argument."""
    name = options.optimizer.lower()
    names = [known for known in list_optimizers() if known != "adahessian"]  # it needs second derivatives
    if name not in names:
        raise ValueError(
            f"there is no optimizer {options.optimizer!r}{nearest(name, names)} "
            f"Accepted: adamw, sgd, lion, muon, lamb and all others of timm.optim.list_optimizers() except adahessian."
        )
    fused = name in FUSED and not {"foreach", "differentiable"} & options.opt_args.keys()  # torch takes one of them
    arguments = ({"fused": True} if fused else {}) | options.opt_args
    try:
        optimizer = create_optimizer_v2(
            model,
            name,
            lr=options.lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            layer_decay=options.layer_decay,
            **arguments,
        )
    except (TypeError, IndexError, RuntimeError, AssertionError) as error:  # timm's and torch's for what does not fit
        raise ValueError(f"optimizer {name} cannot be made with opt_args {options.opt_args}: {error}") from None
    if ignored := {"betas", "eps"} & options.opt_args.keys() - optimizer.defaults.keys():  # timm leaves them out
        raise ValueError(
            f"opt_args is {options.opt_args}, but {name} has no {' and no '.join(sorted(ignored))}: leave it out"
        )
    return optimizer


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Takes moments and step counts from a checkpoint, and learning rates and the like from the present recipe.

    ValueError where that sorts the weights into other groups than the checkpoint's did.
    """
    there, here = len(saved["param_groups"]), len(optimizer.param_groups)
    if there != here:
        raise ValueError(
            f"the optimizer of this run has its weights in {there} groups, and with this recipe there are {here}: "
            f"weight_decay cannot go from 0 or to 0 in the middle of a run. Take the old value, or start a new run "
            f"with --output"
        )
    fresh = [
        {key: value for key, value in group.items() if key not in ("params", "step")}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(saved)
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                # In the memory format that the weight has now: fused kernels go through both in the order of memory.
                moments[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)
    for group, own in zip(optimizer.param_groups, fresh):
        group.update(own)


def make_schedule(optimizer: Optimizer, options: EngineOptions, steps_per_epoch: int) -> Scheduler:
    """timm's scheduler, of which `step_update(step)` sets the rate of step `step` = 0, 1, ...: a function of it alone.

    The warm-up ends at the peak, and from there the rate falls over the epochs that are left.
    """
    name = {"linear": "poly"}.get(options.schedule, options.schedule)  # a polynomial of power 1 (decay_rate) is a line
    falling = max(options.epochs - options.warmup_epochs, 2 / steps_per_epoch)  # 2: timm warns of 1
    return create_scheduler_v2(
        optimizer,
        name,
        num_epochs=falling,
        warmup_epochs=options.warmup_epochs,
        warmup_prefix=True,
        warmup_lr=options.warmup_lr,
        min_lr=options.min_lr,
        decay_rate=1.0,
        cycle_decay=1.0,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )[0]


class Ema(ModelEmaV3):
    """timm's average with its warm-up: decay min(ema_decay, 1 - (1 + step)^(-2/3)), a function of the step alone.

    timm collects both state dicts at every update; here the tensors are listed once, which takes a third off its time,
    and a weight that two modules share is averaged once.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, decay=decay, use_warmup=True)
        pairs = zip(self.module.state_dict().values(), model.state_dict().values())
        pairs = {average.data_ptr(): (average, value) for average, value in pairs}.values()  # a shared weight once
        self._floating = tuple(zip(*[pair for pair in pairs if pair[0].is_floating_point()]))
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(*self._floating, weight=1.0 - self.get_decay(step))
        for average, value in self._others:
            average.copy_(value)


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for none: `auto` takes bf16 where the device has instructions for it."""
    if amp != "auto":
        return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else None


def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(info.read_text().split())


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Takes the named parts out of training; a name is a module or a pattern such as stages.*.norm1.

    ValueError for a name that fits nothing, or where nothing is left to train.
    """
    for part in parts:
        found = [
            weight
            for name, weight in model.named_parameters()
            if name == part
            or name.startswith(part + ".")
            or fnmatch.fnmatch(name, part)
            or fnmatch.fnmatch(name, part + ".*")
        ]
        if not found:
            modules = [name for name, _ in model.named_modules() if name]
            raise ValueError(
                f"freeze names {part!r}, but no weight of this model is under it{nearest(part, modules)} "
                f"Its parts: {', '.join(name for name, _ in model.named_children())}."
            )
        for weight in found:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"nothing is left to train: freeze is {','.join(parts)}")


def train_mode(model: nn.Module) -> None:
    """Training mode, but for parts that are frozen whole: their dropout and batch statistics stand still too."""
    model.train()
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()
