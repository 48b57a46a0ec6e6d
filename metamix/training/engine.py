"""The engine: trains any task's model, on one process or many, and can be stopped at any moment.

A step is a function of the weights and of (seed, step): the learning rate, the batch, its augmentation and every random
number in the model follow from them, so a checkpoint needs no state of a generator and a run can go on from any step.

The losses stay on the device. Every `log_every` steps, sooner where steps are slow, and at an epoch's end the ranks
meet: they add up their losses, look whether one is not finite, and agree whether to save and whether to stop.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metamix.utils.system import peak_memory
from metamix.utils.tensor_files import CHECKPOINT, load_checkpoint, load_into, save_checkpoint

from .optimization import Ema, autocast_dtype, freeze, make_optimizer, make_schedule, restore_optimizer, train_mode
from .processes import ProcessGroup
from .recipe import Recipe, check_data, resume_changes
from .run_folder import Run
from .task import Metric, Task

# Ranks meet at least this often, where a step is no longer: torchrun kills what is left 30 s after it asked to stop.
MEET_SECONDS = 10


class Stopped(Exception):
    """A signal asked the run to stop, and a checkpoint holds everything: the program can end, and well."""


class NotFinite(RuntimeError):
    """A loss or a weight is infinite or not a number."""


class Engine:
    """Builds model, optimizer and loaders from a task and a recipe; `fit` trains, `evaluate` scores.

    ValueError, before any work, where task, recipe and machine do not fit together.
    """

    def __init__(self, task: Task, recipe: Recipe, group: ProcessGroup, run: Run):
        options = recipe.engine
        self.task, self.recipe, self.options, self.group, self.run = task, recipe, options, group, run
        if options.batch_size % group.world_size:
            raise ValueError(
                f"batch_size is {options.batch_size}, which {group.world_size} processes cannot share equally; "
                f"take a multiple of {group.world_size}"
            )
        torch.backends.cudnn.benchmark = task.one_shape and not options.deterministic
        if group.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(group.device)  # of what was trained before, in a sweep
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(options.seed)
        self.layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self._saved = self._find_checkpoint()
        self.model = self._place(task.model.build(self._saved and self._saved[1]["about"]))
        for helper in task.model.frozen_helpers:
            self._place(helper).eval().requires_grad_(False)
        freeze(self.model, options.freeze)
        self.train_loader = task.data.train_loader(options.batch_size, group.rank, group.world_size, options.seed)
        self.eval_loaders = task.data.eval_loaders(options.batch_size, group.rank, group.world_size)
        self.steps_per_epoch = len(self.train_loader)

        self.ema = Ema(self.model, options.ema_decay) if options.ema else None
        self.optimizer = make_optimizer(self.model, options)
        self.schedule = make_schedule(self.optimizer, options, self.steps_per_epoch)
        self.dtype = autocast_dtype(options.amp, group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.dtype == torch.float16)
        self.about = task.model.describe(self.model)

        self.step = 0  # steps done, over all epochs
        self.history: list[dict[str, Any]] = []  # one row for each epoch done
        self.seconds = 0.0  # spent in training, over all parts of the run
        self._sums: dict[str, float] = {}  # of the losses of this epoch's steps
        self._epoch_seconds = 0.0
        self._names: list[str] = []  # of the losses
        self._unseen: list[Tensor] = []  # each step's losses since the last meeting
        self._last_good: int | None = None  # step of the last checkpoint
        self._meet_every = 1  # steps; a meeting sets it for the next one
        self._saved_at = self._clock = time.monotonic()
        self._signal: list[str] = []  # the signal that asked to stop

        if options.grad_checkpointing:
            try:
                self.model.set_grad_checkpointing(True)
            except (AttributeError, AssertionError):
                raise ValueError(
                    f"{type(self.model).__name__} has no gradient checkpointing; "
                    f"leave --grad-checkpointing out, and lower micro_batch to save memory"
                ) from None
        self.trained: nn.Module = self.model  # what the loss calls: the model, wrapped where there are many ranks
        if options.compile:
            torch.compiler.reset()  # a sweep's models share a forward function, which torch compiles 8 times at most
            self.model.compile(dynamic=False)  # torch 2.13 fails at gradients of maps whose sizes it does not know
        if group.world_size > 1:
            self.trained = DistributedDataParallel(
                self.model,
                device_ids=[group.device.index] if group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    @property
    def total_steps(self) -> int:
        return self.options.epochs * self.steps_per_epoch

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """In it, SIGTERM or Ctrl-C has `fit` and `evaluate` save and raise Stopped; a second one acts at once."""
        with _signals() as self._signal:
            yield

    def fit(self) -> None:
        """Trains up to the last epoch.

        Raises Stopped at a signal, NotFinite at a bad loss, OSError where nothing can be saved.
        """
        self._warn_of_batch_norm()
        if self.history:  # the run may have been killed before it wrote what its checkpoint knows
            self.run.record(self.history, last=True)
        while len(self.history) < self.options.epochs:
            self._epoch(len(self.history))

    def _epoch(self, epoch: int) -> None:
        for _ in self.steps(epoch):
            pass
        self._finish_epoch(epoch + 1)

    def steps(self, epoch: int) -> Iterator[int]:
        """Trains what is left of an epoch's steps, and yields after each how many steps are done, over all epochs."""
        steps, done = self.steps_per_epoch, self.step - epoch * self.steps_per_epoch
        train_mode(self.model)
        self.run.start_epoch(epoch, self.options.epochs, steps, done)
        try:
            self._clock = time.monotonic()
            for batch in self.train_loader.epoch(epoch, start=done) if done < steps else ():
                self.train_step(batch)
                self.run.advance()
                if self.step % self._meet_every == 0 or self.step % steps == 0 or self._stop_at_once():
                    self._meet()
                yield self.step
        finally:
            self.run.end_epoch()

    def train_step(self, batch: dict[str, Any]) -> None:
        """One step on this rank's share of the global batch."""
        options, group = self.options, self.group
        torch.manual_seed(_seed(options.seed, self.step, group.rank))
        self.schedule.step_update(self.step)
        epoch = self.step // self.steps_per_epoch
        batch = self.task.data.augment(self._to_device(batch), epoch, self.step, group.rank, group.world_size)
        batch = self._to_device(batch)  # a task may have made other tensors, in another memory format

        share = _length(batch)
        size = options.micro_batch or share
        seen: Tensor | float = 0.0
        for start in range(0, share, size):
            part = batch if size >= share else _cut(batch, start, start + size)
            weight = _length(part) / share
            last = start + size >= share
            with nullcontext() if last or group.world_size == 1 else self.trained.no_sync():
                with autocast(group.device, self.dtype):
                    loss, values = self.task.loss(self.trained, part)
                self.scaler.scale(loss * weight).backward()
            seen = seen + weight * torch.stack([loss.detach().float(), *(v.detach().float() for v in values.values())])
        self._names = ["loss", *values]
        self._unseen.append(seen)

        if options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)

    def evaluate(self, split: str, weights: str = "last") -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Scores of "holdout" or "test" with the last weights or the average ("ema"), and the ranks' states.

        Raises Stopped at a signal, where there is one process; what was scored until then is scored again later.
        """
        model = self.ema.module if weights == "ema" else self.model
        self.group.broadcast(model.buffers())  # ranks see other batches, so their batch statistics differ
        batches = self._until_stopped(self.eval_loaders[split])
        return evaluate(self.task.metric, model, batches, self.group, self.dtype, self.layout)

    def save(self) -> None:
        """Writes the checkpoint, unless the weights are spoilt; the previous one is kept until this one is whole."""
        norms = torch._foreach_norm([weight for weight in self.model.parameters() if weight.numel()])
        if not math.isfinite(torch.stack([norm.float() for norm in norms]).sum().item()):
            raise NotFinite(self._advice(f"a weight is not finite after step {self.step}"))
        if self.group.is_main:
            state = {
                "recipe": self.recipe.flat(),
                "about": self.about,
                "step": self.step,
                "steps_per_epoch": self.steps_per_epoch,
                "history": self.history,
                "sums": self._sums,
                "seconds": self.seconds,
                "epoch_seconds": self._epoch_seconds,
                "model": self.model.state_dict(),
                "ema": self.ema.module.state_dict() if self.ema else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            try:
                save_checkpoint(self.run.folder / CHECKPOINT, state)
            except OSError as error:
                raise OSError(
                    f"{error}; stopped at step {self.step}, and {self._good()}. Make room, and give the same "
                    f"command again"
                ) from error
        self._saved_at, self._last_good = time.monotonic(), self.step

    def _find_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The run folder's checkpoint or, while there is none, that of `--resume`; None without either."""
        if self.run.folder is None:
            return None
        path = self.run.folder / CHECKPOINT
        if self.options.resume and not path.exists():  # else a run stopped twice would begin again where it first did
            path = Path(self.options.resume)
            path = path / CHECKPOINT if path.is_dir() else path
        if not self.group.exists_for_all(path.exists() or bool(self.options.resume), path):
            return None
        return path, load_checkpoint(path)

    def resume(self) -> bool:
        """Goes on from a checkpoint, where there was one when the model was built; False where not.

        ValueError where it belongs to another model or other data, or is no checkpoint.
        """
        if self._saved is None:
            return False
        (path, state), self._saved = self._saved, None
        changes = resume_changes(state["recipe"], self.recipe)
        if state["step"] >= self.total_steps and changes.keys() - {"score"}:
            raise ValueError(
                f"{path} has trained {state['step'] // state['steps_per_epoch']} epochs already, and none is left to "
                f"train with another recipe: {'; '.join(changes.values())}. Take the old values, more --epochs, or "
                f"start a new run with --output"
            )
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise ValueError(
                f"{path} was made with {state['steps_per_epoch']} steps per epoch and there are now "
                f"{self.steps_per_epoch}: the data have changed. Start a new run with --output"
            )
        check_data(state["about"], self.task.data.identity, path)
        load_into(self.model, state["model"], str(path))
        if self.ema is not None:
            load_into(self.ema.module, state["ema"], str(path))
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]
        self._sums, self._epoch_seconds, self._last_good = state["sums"], state["epoch_seconds"], self.step
        self.schedule.step_update(max(self.step - 1, 0))  # what is reported where no step is left in the epoch
        self.run.say(
            f"resumed {path} at step {self.step} of {self.total_steps}, epoch {len(self.history) + 1} of "
            f"{self.options.epochs}"
            if self.step < self.total_steps
            else f"{path} is trained to the end"
        )
        for change in changes.values():
            self.run.say(f"changed on resume: {change}")
        return True

    def heed_signal(self) -> None:
        """Raises Stopped where a signal came to any rank after the last step: there is nothing left to save."""
        if any(self.group.all_gather(bool(self._signal))):
            raise Stopped

    def time_step(self) -> tuple[float, float]:
        """Seconds of one training step, after one to warm up, and the peak memory in GiB. Spoils the weights."""
        batches = self.train_loader.epoch(0)
        train_mode(self.model)
        first = next(batches)
        for _ in range(2):
            self._synchronize()
            start = time.monotonic()
            self.train_step(first)
            self._synchronize()
        return time.monotonic() - start, peak_memory(self.group.device)

    def optimizer_tensors(self) -> list[Tensor]:
        return [
            value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]

    def _meet(self) -> None:
        """The ranks add up their losses, look at them, and agree on saving and stopping."""
        options, group = self.options, self.group
        due = group.is_main and time.monotonic() - self._saved_at >= 60 * options.checkpoint_minutes
        losses = torch.stack(self._unseen)
        self._synchronize()  # or a GPU's time would be that of asking it
        self._tick()
        in_epoch = self.step - len(self.history) * self.steps_per_epoch
        pace = self._epoch_seconds / in_epoch if group.is_main else 0.0  # seconds per step: the first rank's, for all
        flags = losses.new_tensor([bool(self._signal), due, pace])
        *values, stop, save, pace = group.all_reduce(torch.cat([losses.flatten(), flags])).tolist()
        self._meet_every = max(1, min(options.log_every, int(MEET_SECONDS / pace)))
        rows = [
            [value / group.world_size for value in values[i : i + len(self._names)]]
            for i in range(0, len(values), len(self._names))
        ]
        self._unseen.clear()
        for i, row in enumerate(rows):
            if not math.isfinite(row[0]):
                raise NotFinite(self._advice(f"the loss is {row[0]} at step {self.step - len(rows) + i + 1}"))
            for name, value in zip(self._names, row):
                self._sums[name] = self._sums.get(name, 0.0) + value
        speed = in_epoch * options.batch_size / self._epoch_seconds
        means = {name: sum(column) / len(rows) for name, column in zip(self._names, zip(*rows))}
        self.run.progress(
            in_epoch,
            self.steps_per_epoch,
            means,
            lr=self.lr,
            speed=speed,
            left=(self.total_steps - self.step) * options.batch_size / speed,
            memory=peak_memory(group.device),
        )
        if stop:
            self._stop()
        if save:
            self.save()

    def _stop(self) -> None:
        self.save()
        self.run.end_epoch()
        self.run.say(
            f"stopped at step {self.step} of {self.total_steps}; everything is in "
            f"{self.run.folder / CHECKPOINT}. The same command goes on from there"
        )
        raise Stopped

    def _stop_at_once(self) -> bool:
        return self.group.world_size == 1 and bool(self._signal)

    def _until_stopped(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            if self._stop_at_once():
                self._stop()
            yield batch

    def _finish_epoch(self, epoch: int) -> None:
        row: dict[str, Any] = {"epoch": epoch, "step": self.step, "lr": self.lr}
        row |= {f"train_{name}": total / self.steps_per_epoch for name, total in self._sums.items()}
        if "holdout" in self.eval_loaders and (epoch % self.options.eval_every == 0 or epoch == self.options.epochs):
            self.save()  # or what was trained since the last checkpoint would be lost with a run killed in scoring
            row |= {f"holdout_{name}": value for name, value in self.evaluate("holdout")[0].items()}
            if self.ema is not None:
                row |= {f"holdout_ema_{name}": value for name, value in self.evaluate("holdout", "ema")[0].items()}
        self.seconds += self._epoch_seconds
        row |= {
            "seconds": self.seconds,
            "memory_gib": peak_memory(self.group.device),
            "img_per_s": self.steps_per_epoch * self.options.batch_size / self._epoch_seconds,
        }
        self.history.append(row)
        self._sums, self._epoch_seconds = {}, 0.0
        self.save()
        self.run.record(self.history, last=epoch == self.options.epochs)
        self.run.say_row(row, self.options.epochs)

    @property
    def lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _tick(self) -> None:
        now = time.monotonic()
        self._epoch_seconds += now - self._clock
        self._clock = now

    def _good(self) -> str:
        if self._last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.run.folder / CHECKPOINT}, step {self._last_good}"

    def _advice(self, what: str) -> str:
        return (
            f"{what}, learning rate {self.lr:.3g}; {self._good()}. Try a lower --lr, a longer --warmup-epochs, "
            f"--clip-grad 1, or --amp {'bf16' if self.dtype == torch.float16 else 'none'}; the same command with it "
            f"goes on from {'the start' if self._last_good is None else 'the checkpoint'}"
        )

    def _place(self, module: nn.Module) -> nn.Module:
        return module.to(self.group.device, memory_format=self.layout)

    def _to_device(self, value: Any) -> Any:
        return _move(value, self.group.device, self.layout)

    def _synchronize(self) -> None:
        if self.group.device.type == "cuda":
            torch.cuda.synchronize(self.group.device)

    def _warn_of_batch_norm(self) -> None:
        share = self.options.batch_size // self.group.world_size
        size = min(self.options.micro_batch or share, share)
        norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules())
        if norms and size < self.options.batch_size:
            self.run.say(
                f"note: the model has {norms} batch norms, which see {size} samples at a time and not the whole "
                f"batch of {self.options.batch_size}, so the result depends on the number of processes and on "
                f"micro_batch"
            )


@torch.no_grad()
def evaluate(
    metric: Metric,
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    group: ProcessGroup,
    dtype: torch.dtype | None,
    layout: torch.memory_format,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Score the model over a loader; return the scores, the same on all ranks, and the states of all ranks."""
    model.eval()
    state = _move(metric.start(), group.device, None)
    for batch in loader:
        with autocast(group.device, dtype):
            metric.update(state, model, _move(batch, group.device, layout))
    states = group.all_gather(_move(state, torch.device("cpu"), None))
    return metric.result(states), states


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


def _length(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))


def _cut(batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {key: value[start:stop] for key, value in batch.items()}


def _move(value: Any, device: torch.device, layout: torch.memory_format | None) -> Any:
    """Tensors anywhere in dicts and lists, moved to the device; batches of images in the given memory format."""
    if isinstance(value, Tensor):
        if layout is not None and value.ndim == 4:
            return value.to(device, non_blocking=True, memory_format=layout)
        return value.to(device, non_blocking=layout is not None)
    if isinstance(value, dict):
        return {key: _move(item, device, layout) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_move(item, device, layout) for item in value)
    return value


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Lists the first SIGTERM or Ctrl-C, for the run to stop in its own time; a second one acts at once."""
    received: list[str] = []

    def receive(number: int, _frame: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
