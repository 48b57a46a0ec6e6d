"""Run a training step: augment, run forward and backward in micro-batches, update the weights and their average."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metamix.utils.running_statistics import keep_statistics
from metamix.weights.fit import load_into

from .forward import autocast, autocast_dtype, memory_format, micro_batches, num_samples, to_device
from .memory import TensorMemory
from .optimization import Ema, make_optimizer, make_schedule, restore_optimizer
from .processes import ProcessGroup
from .recipe import EngineOptions
from .task import Batch, Task


class TrainStep:
    """Train a model, one global batch per call.

    The learning rate, the augmentation and all random numbers in the model are functions of (seed, step, rank). So a
    checkpoint does not hold the state of random generators.
    """

    def __init__(self, task: Task, model: nn.Module, options: EngineOptions, group: ProcessGroup, steps_per_epoch: int):
        self.task, self.model, self.options, self.group = task, model, options, group
        self.steps_per_epoch = steps_per_epoch
        self.done = 0  # steps, over all epochs
        self.memory_format = memory_format(options.channels_last)
        self.ema = Ema(model, options.ema_decay) if options.ema else None
        self.optimizer = make_optimizer(model, options)
        self.schedule = make_schedule(self.optimizer, options, steps_per_epoch)
        self.dtype = autocast_dtype(options.amp, group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.dtype == torch.float16)
        self._wrapped = self._wrap(model)

    def __call__(self, batch: Batch) -> tuple[list[str], Tensor]:
        """Train on this rank's share of a global batch; return the losses' names, and their means on the device."""
        options, group = self.options, self.group
        seed = np.random.SeedSequence((options.seed, self.done, group.rank)).generate_state(1, np.uint64)[0]
        # Without a GPU, `torch.manual_seed` takes milliseconds: it formats the stack for each kind of device.
        (torch.default_generator if group.device.type == "cpu" else torch).manual_seed(int(seed))
        self.schedule.step_update(self.done)
        names, losses = self._accumulate_gradients(self.prepare(batch))
        if options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        if self.ema is not None:
            self.ema.update(self.done)
        return names, losses

    def prepare(self, batch: Batch) -> Batch:
        """Move this rank's share of the next batch to the device and augment it."""
        device, layout = self.group.device, self.memory_format
        batch = to_device(batch, device, layout)
        batch = self.task.data.augment(batch, self.done // self.steps_per_epoch, self.done)
        return to_device(batch, device, layout)  # augmenting may change the memory format

    def memory(self, batch: Batch, free: float) -> Callable[[int], float]:
        """Return a function that estimates the bytes that a step allocates.

        The function takes the number of samples in a forward pass. The estimate is based on the memory of two samples
        of a prepared batch and, if they fit in the `free` bytes, of four. The model stays unchanged. On a CPU, the
        estimate differs from the growth of the process's memory by at most 5 %.
        """
        few, more = min(2, num_samples(batch)), min(4, num_samples(batch))
        bytes_of_few = self._measure(batch, few)
        slope = bytes_of_few / few
        # A second measurement shows which memory does not grow with the samples, such as the memory of gradients.
        if more > few and slope * more < free:
            slope = (self._measure(batch, more) - bytes_of_few) / (more - few)
        fixed = bytes_of_few - slope * few
        if not self.done:  # two moments of each weight, as in AdamW
            fixed += 2 * sum(weight.nbytes for weight in self._trained())
        return lambda samples: fixed + slope * samples

    @property
    def lr(self) -> float:
        """Return the highest learning rate of all parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def weights(self, which: str) -> nn.Module:
        """Return the model with the "last" weights or with their average, "ema"."""
        return self.ema.module if which == "ema" and self.ema is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the entries that a checkpoint needs to continue training from here."""
        return {
            "step": self.done,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Continue from the state of a checkpoint; `source` names it in errors."""
        load_into(self.model, state["model"], source)
        if self.ema is not None:
            load_into(self.ema.module, state["ema"], source)
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.done = state["step"]
        self.schedule.step_update(max(self.done - 1, 0))  # sets `lr`, even if no step is left in the epoch

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _measure(self, batch: Batch, samples: int) -> int:
        """Return the peak of the bytes that tensors take in a forward and a backward pass of `samples` samples."""
        part = {key: value[:samples] for key, value in batch.items()}
        eager = torch.compiler.set_stance("force_eager")  # compiling for this number of samples would take minutes
        with eager, keep_statistics(self.model), TensorMemory() as memory:
            loss, _ = self._loss(self.model, part)
            torch.autograd.grad(loss, self._trained(), allow_unused=True)
        return memory.peak

    def _accumulate_gradients(self, batch: Batch) -> tuple[list[str], Tensor]:
        """Run forward and backward over all micro-batches, each weighted by its number of samples."""
        share, done = num_samples(batch), 0
        names: list[str] = []
        totals: Tensor | float = 0.0
        for part in micro_batches(batch, self.options.micro_batch):
            done += num_samples(part)
            weight = num_samples(part) / share
            # DistributedDataParallel adds up gradients locally; only the last micro-batch exchanges them.
            wrapped: Any = self._wrapped
            local = done < share and isinstance(wrapped, DistributedDataParallel)
            with wrapped.no_sync() if local else nullcontext():
                loss, values = self._loss(self._wrapped, part)
                with keep_statistics(self.model) if self.options.grad_checkpointing else nullcontext():
                    self.scaler.scale(loss * weight).backward()  # checkpointing repeats the forward pass here
            names = ["loss", *values]
            totals = totals + weight * torch.stack([value.detach().float() for value in (loss, *values.values())])
        assert isinstance(totals, Tensor), "a batch has at least one sample"
        return names, totals

    def _wrap(self, model: nn.Module) -> nn.Module:
        """Apply the options about speed and memory; return the module that the loss calls."""
        options, device = self.options, self.group.device
        if options.grad_checkpointing:
            try:
                model.set_grad_checkpointing(True)  # type: ignore[operator]
            except (AttributeError, AssertionError):
                raise ValueError(
                    f"{type(model).__name__} has no gradient checkpointing; "
                    f"leave --grad-checkpointing out, and lower micro_batch to save memory"
                ) from None
        if options.compile:
            torch.compiler.reset()  # models of a sweep share one forward, which torch compiles at most 8 times
            model.compile(dynamic=False)  # torch 2.13 fails at gradients of feature maps of unknown size
        if self.group.world_size == 1:
            return model
        gpu = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=gpu, gradient_as_bucket_view=True)

    def _loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the task's loss; say what to do if a batch norm gets a single value for each channel."""
        try:
            with autocast(self.group.device, self.dtype):
                return self.task.loss(model, batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"a batch norm cannot train on one sample whose feature map is a single pixel ({error}): "
                f"give a larger --batch-size (or --micro-batch, if it is set), or larger images or crops"
            ) from error
