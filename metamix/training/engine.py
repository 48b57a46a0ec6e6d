"""Train any task's model on one process or many; stop and resume at any step.

Losses stay on the device until the ranks synchronize: every `log_every` steps (more often if steps are slow) and at the
end of each epoch. They then combine their losses, check that all are finite, and agree on whether to save and whether
to stop.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from metamix.utils.system import free_memory, peak_memory
from metamix.utils.text import plural, speed_text
from metamix.weights.fit import load_into

from .checkpoints import Checkpoints, check_resumable
from .early_stopping import Best, check_held_out, is_exhausted, updated
from .forward import memory_format, num_samples, score_batches
from .memory import largest_part
from .optimization import freeze, train_mode
from .processes import ProcessGroup, Stopped, StopSignal
from .recipe import Recipe
from .run_folder import Run
from .step import TrainStep
from .task import Batch, State, Task, TrainLoader

# Ranks synchronize at least this often, unless a single step takes longer: torchrun kills processes 30 s after its
# request to stop.
SYNC_SECONDS = 10
# If the recipe does not set the batch size, it is halved until an epoch has at least 8 steps, but not below 8 samples
# per process.
MIN_STEPS, MIN_BATCH = 8, 8
MEMORY_MARGIN = 1.1  # factor on the memory that a step is estimated to need


class NotFinite(RuntimeError):
    """A loss or a weight is infinite or NaN."""


class Engine:
    """Build model, optimizer and loaders from a task and a recipe; `fit` trains, `evaluate` scores.

    Inside `with engine.stop_signal`, both save the state and raise Stopped on SIGTERM, on Ctrl-C and when the terminal
    is closed; in a run of several processes, only `fit` does. A second SIGTERM, or a second Ctrl-C, ends the process.

    Raises:
        ValueError, OSError: task, recipe, checkpoint and machine do not fit together. Nothing has been trained then.
    """

    def __init__(self, task: Task, recipe: Recipe, group: ProcessGroup, run: Run):
        options = recipe.engine
        self.task, self.recipe, self.options, self.group, self.run = task, recipe, options, group, run
        _configure_torch(options.seed, group.device, options.deterministic, same_image_shape=task.same_image_shape)
        self.memory_format = memory_format(options.channels_last)
        self.checkpoints = Checkpoints(run.folder, options.checkpoint_minutes)
        self._unresumed = self.checkpoints.find(options.resume, group)  # path and content, until `resume` loads it
        with group.local_main_first():  # building may download weights
            self.model = task.model.build(self._unresumed and self._unresumed[1]["about"])
        for helper in task.model.frozen_helpers:
            helper.eval().requires_grad_(False)
        for module in (self.model, *task.model.frozen_helpers):
            module.to(group.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        freeze(self.model, options.freeze)
        self.about = task.model.describe(self.model)
        self.notes: list[str] = []  # sentences about options whose values the engine chose
        if options.freeze:
            frozen = sum(weight.numel() for weight in self.model.parameters() if not weight.requires_grad)
            self.notes.append(f"note: {frozen:,} parameters are frozen (--freeze); new ones, if any, stay random")
        recorded = self._unresumed[1]["recipe"] if self._unresumed else {}
        for name in recipe.unset & recorded.keys():  # a resumed run keeps its values
            setattr(options, name, recorded[name])
        self._unset = recipe.unset - recorded.keys()
        self.train_loader = self._make_train_loader()
        self.eval_loaders = dict(task.data.eval_loaders(options.batch_size, group.rank, group.world_size))
        check_held_out(recipe, self.eval_loaders)
        self.steps_per_epoch = len(self.train_loader)
        if options.iterations:
            options.epochs = max(1, round(options.iterations / self.steps_per_epoch))
            options.check_warmup()
        self.stepper = TrainStep(task, self.model, options, group, self.steps_per_epoch)

        self.history: list[dict[str, Any]] = []  # one row for each finished epoch
        self.best: Best = {}  # weights of the best epoch so far, for early stopping
        self._best_in_use = False  # whether the model has the weights of the best epoch instead of the last
        self.seconds = 0.0  # training time of all finished epochs, including the epochs before a resume
        self.sums: dict[str, float] = {}  # sum of each loss over the steps of this epoch
        # (losses,) of each step since the last synchronization; on the device, so that a step does not wait for the GPU
        self.pending: list[Tensor] = []
        self._names: list[str] = []  # names of these losses
        self.epoch_seconds = 0.0  # training time of this epoch, without evaluation and the time between two runs
        self._counted_at = 0.0  # when `epoch_seconds` was last updated
        self.stop_signal = StopSignal()
        self._sync_every = 1  # steps; updated at each synchronization
        self._memory_checked = False

    @property
    def step(self) -> int:
        """Return the number of steps done, over all epochs."""
        return self.stepper.done

    @property
    def total_steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self.options.epochs * self.steps_per_epoch

    @property
    def ended(self) -> bool:
        """Return whether the last epoch is trained, or early stopping has ended the run."""
        return len(self.history) >= self.options.epochs or is_exhausted(self.best, self.options.early_stopping)

    def fit(self) -> None:
        """Train to the last epoch, or until early stopping ends the run; then load the best epoch's weights, if any.

        Raises:
            Stopped: at a signal, once the state is saved.
            NotFinite: a loss or a weight is infinite or NaN.
            OSError: the checkpoint or another file cannot be written, or too many images cannot be read.
            ValueError: a single sample does not fit in memory, or is too small for a batch norm, or has wrong labels.
        """
        if self.history:  # the run may have been killed after it saved an epoch but before it recorded it
            self.run.record(self.history, last=True)
        while not self.ended:
            for _ in self.steps(len(self.history)):
                pass
            self._finish_epoch(len(self.history) + 1)
        if self.best:
            self._use_best()

    def steps(self, epoch: int) -> Iterator[int]:
        """Train the remaining steps of an epoch; after each, yield the number of steps done over all epochs."""
        steps, done = self.steps_per_epoch, self.step - epoch * self.steps_per_epoch
        train_mode(self.model)
        self.run.start_epoch(epoch, self.options.epochs, steps, done)
        try:
            self._counted_at = time.monotonic()
            for batch in self.train_loader.epoch(epoch, start=done) if done < steps else ():
                self._before_first_step(batch)
                self.train_step(batch)
                self.run.bar.update()
                if self.step % self._sync_every == 0 or self.step % steps == 0 or self._stop_at_once():
                    self._synchronize()
                yield self.step
        finally:
            self.run.bar.close()

    def train_step(self, batch: Batch) -> None:
        """Train on this rank's share of one global batch."""
        self._names, losses = self.stepper(batch)
        self.pending.append(losses)

    def evaluate(self, split: str, weights: str = "last") -> tuple[dict[str, float], list[State]]:
        """Score the split "holdout" or "test" with the "last" weights or their average, "ema"; see `score_batches`.

        Raises:
            Stopped: at a signal, if the run has a single process. A resumed run scores the split again.
        """
        model = self.stepper.weights(weights)
        self.group.broadcast(model.buffers())  # batch statistics differ between ranks, which see different samples
        batches = self._until_stopped(self.eval_loaders[split])
        return score_batches(self.task.metric, model, batches, self.group, self.stepper.dtype, self.memory_format)

    def save(self) -> None:
        """Write the checkpoint; raise NotFinite if a weight is not finite."""
        if self._best_in_use:  # keep the checkpoint, which has the last epoch's weights, for a resumed run
            return
        weights = [weight for weight in self.model.parameters() if weight.numel()]
        if not math.isfinite(nn.utils.get_total_norm(weights).item()):
            raise NotFinite(self._advice(f"a weight is not finite after step {self.step}"))
        if self.group.is_main:
            self.checkpoints.write(
                {
                    "recipe": self.recipe.flat(),
                    "about": self.about,
                    "steps_per_epoch": self.steps_per_epoch,
                    "processes": self.group.world_size,
                    "history": self.history,
                    "best": self.best,
                    "sums": self.sums,
                    "seconds": self.seconds,
                    "epoch_seconds": self.epoch_seconds,
                    **self.stepper.state_dict(),
                }
            )
        self.checkpoints.written(self.step)

    def resume(self) -> bool:
        """Continue from the checkpoint that the engine has read; return False if there was none."""
        if self._unresumed is None:
            return False
        (path, state), self._unresumed = self._unresumed, None
        changes = check_resumable(path, state, self.recipe, self.task.data.identity, self.steps_per_epoch)
        # The number of processes affects batch norms and rounding.
        before, now = state.get("processes"), self.group.world_size
        if before not in (None, now):
            changes.append(f"processes was {before} and is now {now}")
        self.stepper.load_state_dict(state, str(path))
        self.history, self.seconds = state["history"], state["seconds"]
        self.sums, self.epoch_seconds = state["sums"], state["epoch_seconds"]
        self.best = state.get("best", {}) if self.options.early_stopping else {}
        self.checkpoints.written(self.step, path)
        if not self.ended and self.step < self.total_steps:
            epoch = f"epoch {len(self.history) + 1} of {self.options.epochs}"
            self.run.say(f"resumed {path} at step {self.step} of {self.total_steps}, {epoch}")
        else:
            self.run.say(f"the run of {path} has no steps left to train")
        for change in changes:
            self.run.say(f"changed on resume: {change}")
        return True

    def raise_if_stopped(self) -> None:
        """Raise Stopped if a signal reached any rank after the last step. Everything is saved by then."""
        if any(self.group.all_gather(self.stop_signal.received)):
            raise Stopped(self.stop_signal.number, launched=self.group.launched)

    def time_step(self) -> tuple[float, float]:
        """Time a training step after a warm-up step; return its seconds and the peak memory in GiB.

        Both steps change the weights, so do not use the model afterwards.
        """
        train_mode(self.model)
        first = next(self.train_loader.epoch(0))
        self._before_first_step(first)
        for _ in range(2):
            self._wait_for_device()
            start = time.monotonic()
            self.train_step(first)
            self._wait_for_device()
        return time.monotonic() - start, self._peak_memory()

    def _peak_memory(self) -> float:
        """Return the peak memory in GiB of the rank that used most. All ranks must call this."""
        return max(self.group.all_gather(peak_memory(self.group.device)))

    def _synchronize(self) -> None:
        """Combine the ranks' losses, check and report them, and agree on saving and stopping."""
        options, group = self.options, self.group
        save_due = group.is_main and self.checkpoints.due
        self._wait_for_device()  # GPU steps run asynchronously; without this, only their launch is timed
        now = time.monotonic()
        self.epoch_seconds += now - self._counted_at
        self._counted_at = now
        step_in_epoch = self.step - len(self.history) * self.steps_per_epoch
        pace = self.epoch_seconds / step_in_epoch if group.is_main else 0.0  # seconds per step, as rank 0 measured it
        losses = torch.stack(self.pending)  # (steps, losses)
        self.pending.clear()
        flags = losses.new_tensor([self._stop_requested(), save_due, pace])
        # Sums over the ranks; every rank gets the same sums
        *totals, stop, save, pace = group.all_reduce(torch.cat([losses.flatten(), flags])).tolist()
        self._sync_every = max(1, min(options.log_every, int(SYNC_SECONDS / pace)))
        means, width = [total / group.world_size for total in totals], losses.shape[1]
        steps = [dict(zip(self._names, means[i : i + width])) for i in range(0, len(means), width)]
        for step, values in enumerate(steps, start=self.step - len(steps) + 1):
            if not math.isfinite(values["loss"]):
                raise NotFinite(self._advice(f"the loss is {values['loss']} at step {step}"))
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        speed = step_in_epoch * options.batch_size / self.epoch_seconds
        averages = {name: sum(values[name] for values in steps) / len(steps) for name in self._names}
        text = "".join(f"{name} {value:.4g}  " for name, value in averages.items())
        text += f"lr {self.stepper.lr:.2e}  {speed_text(speed)}  {self._peak_memory():.1f} GiB  "
        left = timedelta(seconds=round((self.total_steps - self.step) * options.batch_size / speed))
        self.run.progress(step_in_epoch, self.steps_per_epoch, f"{text}{left} left")
        if stop:
            self._stop()
        if save:
            self.save()

    def _finish_epoch(self, epoch: int) -> None:
        """Score the held-out split if that is due, then save and record the epoch."""
        options = self.options
        row: dict[str, Any] = {"epoch": epoch, "step": self.step, "lr": self.stepper.lr}
        row |= {f"train_{name}": total / self.steps_per_epoch for name, total in self.sums.items()}
        if "holdout" in self.eval_loaders and (epoch % options.eval_every == 0 or epoch == options.epochs):
            self.save()  # so that a run that is killed while it scores keeps the steps of this epoch
            scored = {which: self.evaluate("holdout", which)[0] for which in ("last", "ema")[: 1 + options.ema]}
            for which, scores in scored.items():
                row |= {f"holdout_{'ema_' if which == 'ema' else ''}{name}": value for name, value in scores.items()}
            # Update `best` after all scoring: a run that is stopped while it scores has to score this epoch again.
            if options.early_stopping:
                weights, lower = self.stepper.weights(options.score), self.task.metric.lower_is_better
                self.best = updated(self.best, epoch, scored[options.score], weights, lower)
        self.seconds += self.epoch_seconds
        row |= {
            "seconds": self.seconds,
            "memory_gib": self._peak_memory(),
            "img_per_s": self.steps_per_epoch * options.batch_size / self.epoch_seconds,
        }
        self.history.append(row)
        self.sums, self.epoch_seconds = {}, 0.0
        self.save()
        self.run.record(self.history, last=self.ended)
        self.run.say_row(row, options.epochs)

    def _use_best(self) -> None:
        """Load the weights of the best epoch into the model that is scored. The checkpoint keeps the last weights."""
        done, epochs, best = len(self.history), self.options.epochs, self.best
        early = f"stopped early, after epoch {done} of {epochs}: " if done < epochs else ""
        if not best["model"]:
            self.run.say(
                f"{early}the held-out {best['name']} is NaN in all scored epochs, perhaps because the held-out samples "
                f"have no labels to score. The last weights are the result"
            )
            return
        self.save()  # a run that was resumed from another folder may have no checkpoint of its own yet
        self._best_in_use = True
        load_into(self.stepper.weights(self.options.score), best["model"], f"epoch {best['epoch']}")
        self.run.say(
            f"{early}epoch {best['epoch']} has the best held-out {best['name']}, {best['score']:.4g}, and its weights "
            f"are the result"
        )

    def _stop(self) -> None:
        self.save()
        self.run.bar.close()
        self.run.say(
            f"stopped at step {self.step} of {self.total_steps}; the state is saved in {self.checkpoints.path}. "
            f"The same command continues from there"
        )
        raise Stopped(self.stop_signal.number, launched=self.group.launched)

    def _stop_at_once(self) -> bool:
        """Return whether a run of one process must stop now. Several processes stop together at a synchronization."""
        return self.group.world_size == 1 and self._stop_requested()

    def _stop_requested(self) -> bool:
        return self.stop_signal.received or self.group.orphaned

    def _until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self._stop_at_once():
                self._stop()
            yield batch

    def _advice(self, problem: str) -> str:
        start = "starts again" if self.checkpoints.last is None else "continues from the checkpoint"
        remedies = ["a lower --lr", "a larger --warmup-epochs", "--clip-grad 1"]
        if self.stepper.dtype is not None:
            remedies.append(f"--amp {'bf16' if self.stepper.dtype == torch.float16 else 'none'}")
        return (
            f"{problem}, learning rate {self.stepper.lr:.3g}; {self.checkpoints.good}. "
            f"Repeat the command with {', '.join(remedies[:-1])} or {remedies[-1]}; it then {start}"
        )

    def _wait_for_device(self) -> None:
        if self.group.device.type != "cpu":
            torch.accelerator.synchronize(self.group.device)

    def _make_train_loader(self) -> TrainLoader:
        """Make the training loader; if the batch size is unset, choose one that fits the number of samples."""
        options, group = self.options, self.group

        def loader() -> TrainLoader:
            return self.task.data.train_loader(options.batch_size, group.rank, group.world_size, options.seed)

        first, size = loader(), options.batch_size
        if "batch_size" not in self._unset or len(first) >= MIN_STEPS:
            return first
        samples = self.about["samples"]["train"]
        even = 2 * MIN_BATCH * group.world_size  # each rank gets an even number of samples, which mixup needs
        while size % even == 0 and samples // size < MIN_STEPS:
            size //= 2
        if size == options.batch_size:
            return first
        options.batch_size = size
        self.notes.append(
            f"note: a batch has {size} samples, since there are only {samples:,} in train; set another size with "
            f"--batch-size"
        )
        return loader()

    def _before_first_step(self, batch: Batch) -> None:
        """Check that a step fits in memory, and warn if batch norms see small batches."""
        if self._memory_checked:
            return
        start = time.monotonic()
        self._memory_checked = True
        self._fit_memory(self.stepper.prepare(batch))
        self._warn_of_batch_norm()
        self._counted_at += time.monotonic() - start  # this is not training time

    def _fit_memory(self, batch: Batch) -> None:
        """Lower the micro-batch until a step fits in memory; raise ValueError if a single sample does not fit.

        If the recipe sets the micro-batch, only warn.
        """
        options, group, share = self.options, self.group, num_samples(batch)
        free = free_memory(group.device)
        if free is None:
            return
        size, memory = min(options.micro_batch or share, share), self.stepper.memory(batch, free)
        needed = MEMORY_MARGIN * memory(size)
        part = min(group.all_gather(largest_part(size, memory, free / MEMORY_MARGIN)))
        if part == size:
            return
        problem = (
            f"a step with {plural(size, 'sample')} at a time needs about {needed / 2**30:.2g} GiB of memory, but "
            f"{free / 2**30:.2g} GiB are free"
        )
        if "micro_batch" not in self._unset:
            self.run.say(f"note: {problem}; if the run is killed, lower --micro-batch or --batch-size")
        elif part:
            options.micro_batch = part
            self.run.say(f"note: {problem}, so the model trains on {plural(part, 'sample')} at a time (--micro-batch)")
            self.run.save_recipe(self.recipe)
        else:
            raise ValueError(
                f"{problem}, too little for a single sample: give a smaller model or smaller images, or "
                f"--grad-checkpointing; --micro-batch 1 trains in spite of this estimate"
            )

    def _warn_of_batch_norm(self) -> None:
        share = self.options.batch_size // self.group.world_size
        size = min(self.options.micro_batch or share, share)
        train_mode(self.model)  # frozen norms use their running statistics
        norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.model.modules())
        if norms and size < self.options.batch_size:
            self.run.say(
                f"note: the model trains {plural(norms, 'batch norm')}. Each sees {plural(size, 'sample')} at a time "
                f"instead of the whole batch of {self.options.batch_size}, so the result depends on the number of "
                f"processes and on micro_batch"
            )


def _configure_torch(seed: int, device: torch.device, deterministic: bool, *, same_image_shape: bool) -> None:
    """Set torch's global switches and seed for a run."""
    torch.backends.cudnn.benchmark = same_image_shape and not deterministic
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # in a sweep, forget the peak of earlier models
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
