"""Choose the weights to train; make the optimizer, the schedule and the weight average of a recipe with timm."""

import fnmatch
from collections.abc import Mapping
from functools import partial
from typing import Any

import timm.optim.muon
import torch
from timm.optim import Muon, create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from metamix.utils.text import did_you_mean

from .forward import cpu_has_bf16
from .recipe import EngineOptions

NEWTON_SCHULZ = timm.optim.muon.zeropower_via_newtonschulz
FUSED = ("adamw", "adam", "sgd", "momentum")  # torch has fused kernels for these, on CPUs and GPUs


def make_optimizer(model: nn.Module, options: EngineOptions) -> Optimizer:
    """Make the optimizer; raise ValueError for a wrong name or argument, or complex weights that it cannot train."""
    name = options.optimizer.lower()
    names = [each for each in list_optimizers() if each != "adahessian"]  # adahessian needs second derivatives
    if name not in names:
        raise ValueError(
            f"optimizer is {options.optimizer!r}{did_you_mean(name, names)} "
            f"Accepted: adamw, sgd, lion, muon, lamb and all others of timm.optim.list_optimizers() except adahessian."
        )
    complex_weights = [key for key, weight in model.named_parameters() if weight.requires_grad and weight.is_complex()]
    others = {"foreach", "differentiable"} & options.opt_args.keys()  # torch allows neither together with fused
    fused = name in FUSED and not others and not complex_weights  # fused kernels take no complex weights
    arguments: dict[str, Any] = {"fused": True} if fused else {}
    if name in ("kron", "kronw", "kronc"):
        arguments = {"deterministic": True}  # otherwise a resumed run would differ
    if "sgd" in name and not options.momentum:
        arguments["nesterov"] = False  # timm turns it on, and torch refuses it without momentum
    arguments |= options.opt_args
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
    except (TypeError, ValueError, IndexError, RuntimeError, AssertionError) as error:  # raised by timm and torch
        raise ValueError(f"optimizer {name} cannot be made with opt_args {options.opt_args}: {error}") from None
    scales = {group.get("lr_scale") for group in optimizer.param_groups}
    if options.layer_decay not in (None, 1) and len(scales) == 1 and all(w.requires_grad for w in model.parameters()):
        problem = f"layer_decay is {options.layer_decay}, but timm cannot order the layers of {type(model).__name__}"
        raise ValueError(f"{problem}: leave it out, or give factors for parts of the model, --lr-factors")
    of_torch = type(optimizer).__module__.startswith("torch.optim.")  # timm's muon, for example, drops imaginary parts
    if complex_weights and (not of_torch or optimizer.defaults.get("fused")):
        raise ValueError(
            f"optimizer is {name}, but {complex_weights[0]} is complex: use adamw or another optimizer of torch "
            f"without the argument fused, or store real numbers and call torch.view_as_complex in forward"
        )
    if ignored := {"betas", "eps"} & options.opt_args.keys() - optimizer.defaults.keys():  # timm drops them silently
        raise ValueError(
            f"opt_args is {options.opt_args}, but {name} has no {' and no '.join(sorted(ignored))}; leave it out"
        )
    if options.momentum != EngineOptions.momentum and "momentum" not in optimizer.defaults:
        raise ValueError(f"momentum is {options.momentum}, but {name} has no momentum: leave it out")
    if isinstance(optimizer, Muon):
        route_to_muon(optimizer, model)
        # Without bf16 instructions, a CPU is 25 times slower in bf16 than in float32. timm 1.0.31 has no option for the
        # dtype, so its function is replaced, for all optimizers of the process.
        slow = next(model.parameters()).device.type == "cpu" and not cpu_has_bf16()
        function = partial(NEWTON_SCHULZ, dtype=torch.float32) if slow else NEWTON_SCHULZ
        timm.optim.muon.zeropower_via_newtonschulz = function
    scale_rates(optimizer, model, options.lr_factors)
    return optimizer


def route_to_muon(optimizer: Muon, model: nn.Module) -> None:
    """Let Muon train dense convolutions with one input channel: token MLPs of raft and nin, and stems for grey images.

    Their weights, (n, 1, h, w), are matrices of n x (h w). timm 1.0.31 trains all weights of this shape with AdamW,
    since the weights of depthwise convolutions have this shape too. As in timm, a matrix with a side below 4 stays with
    AdamW.
    """
    fallback = {p for group in optimizer.param_groups if group.get("use_fallback") for p in group["params"]}
    for module in model.modules():
        if getattr(module, "in_channels", None) == 1 and getattr(module, "groups", None) == 1:  # also `ConvWeights`
            weight: Any = module.weight
            large = min(len(weight), weight[0].numel()) >= 4
            if weight.ndim == 4 and weight.requires_grad and weight not in fallback and large:
                optimizer.state[weight]["use_muon"] = True


def scale_rates(optimizer: Optimizer, model: nn.Module, factors: Mapping[str, float]) -> None:
    """Multiply the learning rates of parts of a model; timm's schedulers keep the factors.

    `factors` maps parts, named as for `find_weights_of`, to factors. The weights of each part move to parameter groups
    with the part's factor. A weight that is in several parts gets the product of their factors.
    """
    for part, factor in factors.items():
        chosen = {id(weight) for weight in find_weights_of(model, part, "lr_factors")}
        for group in list(optimizer.param_groups):
            inside = [weight for weight in group["params"] if id(weight) in chosen]
            outside = [weight for weight in group["params"] if id(weight) not in chosen]
            scale = {"lr_scale": group.get("lr_scale", 1.0) * factor}
            if inside and outside:
                group["params"] = outside
                optimizer.add_param_group(group | {"params": inside} | scale)
            elif inside:
                group |= scale


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load moments and step counts from a checkpoint; settings such as learning rates come from the recipe.

    Raise ValueError if the recipe divides the weights into different groups.
    """
    before, after = (
        [(len(group["params"]), bool(group.get("weight_decay"))) for group in groups]
        for groups in (saved["param_groups"], optimizer.param_groups)
    )
    if before != after:
        raise ValueError(
            "this recipe divides the weights into other groups than before: weight_decay cannot change from 0 or to 0 "
            "during a run. Use the old value, or start a new run with --output"
        )
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                # Use the memory format of the weight: fused kernels read both in the order of memory.
                moments[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)
    for group, values in zip(optimizer.param_groups, settings):
        group.update({name: value for name, value in values.items() if name not in ("params", "step")})


def make_schedule(optimizer: Optimizer, options: EngineOptions, steps_per_epoch: int) -> Scheduler:
    """Make timm's scheduler; its `step_update(step)` sets the learning rate of step 0, 1, ...

    The rate depends only on the step. It peaks at the end of the warm-up and, unless the schedule is constant, decays
    over the remaining epochs.
    """
    # timm has no linear schedule: it is a poly schedule with the power 1, which timm calls decay_rate.
    name = {"linear": "poly"}.get(options.schedule, options.schedule)
    decay_epochs = max(options.epochs - options.warmup_epochs, 2 / steps_per_epoch)  # timm warns about a single step
    return create_scheduler_v2(
        optimizer,
        name,
        num_epochs=decay_epochs,  # type: ignore[arg-type] # timm takes fractions
        warmup_epochs=options.warmup_epochs,  # type: ignore[arg-type]
        warmup_prefix=True,
        warmup_lr=options.warmup_lr,
        min_lr=options.min_lr,
        decay_rate=options.power if options.schedule == "poly" else 1.0,
        cycle_decay=1.0,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )[0]


class Ema(ModelEmaV3):
    """Keep timm's exponential moving average with warm-up: the decay is min(ema_decay, 1 - step^(-2/3)).

    timm collects both state dicts at every update. Collecting them once saves a third of the time. A weight that two
    modules share is averaged once, not twice.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, decay=decay, use_warmup=True)
        states = zip(self.module.state_dict().values(), model.state_dict().values())
        pairs = list({average.data_ptr(): (average, value) for average, value in states}.values())  # no duplicates
        self._averages = [average for average, _ in pairs if not is_count(average)]
        self._values = [value for average, value in pairs if not is_count(average)]
        self._counters = [pair for pair in pairs if is_count(pair[0])]

    @torch.no_grad()
    def update(self, step: int) -> None:  # type: ignore[override] # timm's method takes the model too
        """Update the average after a step; `step` counts the steps done."""
        torch._foreach_lerp_(self._averages, self._values, weight=1.0 - self.get_decay(step))
        for average, value in self._counters:
            average.copy_(value)


def is_count(tensor: Tensor) -> bool:
    """Return whether a tensor holds whole numbers or flags, which have no average."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Exclude parts of the model from training; raise ValueError if a name matches nothing or no weight is left."""
    for part in parts:
        for weight in find_weights_of(model, part, "freeze"):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"nothing is left to train: freeze is {','.join(parts)}")


def find_weights_of(model: nn.Module, part: str, option: str) -> list[nn.Parameter]:
    """Return the weights of a part of a model; `part` names a module or parameter, or is a pattern (stages.*.norm1).

    Raise ValueError if the name matches nothing; the message begins with `option`, the option that gave the name.
    """
    # A dot after each name lets one pattern match both the parameter itself and all parameters of a module.
    weights = [weight for name, weight in model.named_parameters() if fnmatch.fnmatch(f"{name}.", f"{part}.*")]
    if not weights:
        modules = [name for name, _ in model.named_modules() if name]
        raise ValueError(
            f"{option} names {part!r}, but no part with this name has weights{did_you_mean(part, modules)} "
            f"The parts of the model: {', '.join(name for name, _ in model.named_children())}."
        )
    return weights


def train_mode(model: nn.Module) -> None:
    """Set training mode, except for modules that are frozen completely, where dropout and batch statistics stay off."""
    model.train()
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()
