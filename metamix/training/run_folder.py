"""Write the run folder, whose files docs/train.md lists, and the terminal output of a run."""

import errno
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from metamix.utils.files import (
    LOCK,
    MACOS,
    TEMPORARY,
    lock_folder,
    make_output_folder,
    read_text,
    reason,
    remove_temporary,
    write_text,
)
from metamix.utils.options import read_yaml
from metamix.utils.text import message, speed_text
from metamix.weights.files import RECIPE

from .recipe import Recipe
from .reports import Row, draw_curves, split_column, write_metrics

PLAIN_SECONDS = 10  # time between two lines of progress if there is no terminal

STATE = "state.txt"
WANDB = "wandb"

PACKAGE = logging.getLogger("metamix")


class Run:
    """Write the folder and the terminal output of one run. On ranks other than 0, only `end` writes."""

    def __init__(self, folder: Path | None, *, main: bool = True, tensorboard: bool = False, wandb: bool = False):
        """Create and lock the folder; it is None for a dry run, which writes no files.

        Raises:
            ValueError: another process writes into the folder, the folder holds a link or a pipe, or a tracker is not
                installed.
            OSError: the folder cannot be made or locked.
        """
        self.folder, self.main = folder, main
        self.state: str | None = None  # last word written to state.txt
        self.bar = tqdm(disable=True)  # progress of the epoch; a disabled bar ignores all calls
        self.events: Any = None
        self._writer: Any = None  # class that makes `events` once there is an epoch to show
        self._wandb: Any = None  # the package wandb, which makes `tracker`
        self.tracker: Any = None  # the record in Weights & Biases
        self._shown = 0  # number of epochs sent to TensorBoard and Weights & Biases
        self._lock: IO[str] | None = None
        self._title = ""
        self._printed_at = self._drawn_at = time.monotonic()
        self._drawing_seconds = 0.0
        self._warnings = _WarningHandler(self)
        if not main or folder is None:
            return
        if tensorboard:
            self._writer = _import_tracker("tensorboard", "torch.utils.tensorboard", "SummaryWriter").SummaryWriter
        if wandb:
            self._wandb = _import_tracker("wandb", "wandb", "init")
        make_output_folder(folder)
        self._lock = lock_folder(folder)
        remove_temporary(folder)
        PACKAGE.addHandler(self._warnings)

    def say(self, text: str) -> None:
        """Write one line to the terminal, if it is still open, and to log.txt."""
        if self.main:
            try:
                tqdm.write(message(text), file=sys.stdout)
                sys.stdout.flush()
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the terminal was closed
        self.log(text)

    def log(self, text: str) -> None:
        """Write one line only to log.txt."""
        if self.main and self.folder is not None:
            path = self.folder / "log.txt"
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(message(text) + "\n")
            except OSError as error:
                raise OSError(f"{path} could not be written ({reason(error)})") from error

    def set_state(self, state: str) -> None:
        """Write one word to state.txt, for scripts that wait for the run."""
        self.state = state
        if self.main and self.folder is not None:
            write_text(self.folder / STATE, state + "\n")

    def end(self, state: str) -> None:
        """Replace "running" in state.txt if the run ends early. Every rank replaces it, since rank 0 may be dead."""
        self.state = state
        if self.folder is not None and read_state(self.folder) == "running":
            write_text(self.folder / STATE, state + "\n")

    def start_tracker(self, config: Mapping[str, Any]) -> None:
        """Start or continue the record in Weights & Biases, if the option `wandb` is set; `config` is the recipe."""
        if self._wandb is None:
            return
        assert self.folder is not None, "a dry run writes nothing"
        id_file = self.folder / WANDB / "id.txt"
        if not id_file.exists():
            id_file.parent.mkdir(exist_ok=True)
            write_text(id_file, secrets.token_hex(4))
        try:
            self.tracker = self._wandb.init(
                id=id_file.read_text().strip(),
                resume="allow",
                project=os.environ.get("WANDB_PROJECT", "metamix"),
                name=self.folder.resolve().name,
                dir=self.folder,
                config=dict(config),
                allow_val_change=True,  # the recipe may change on resume
            )
        except self._wandb.Error as error:
            raise ValueError(
                f"Weights & Biases could not start ({error}): run wandb login, or set WANDB_MODE=offline, or leave "
                f"--wandb out"
            ) from error

    def save_recipe(self, recipe: Recipe) -> None:
        """Write recipe.yaml."""
        if self.main and self.folder is not None:
            write_text(self.folder / RECIPE, recipe.to_yaml())

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Show a progress bar of `steps` steps; `done` of them were completed before the run was resumed."""
        self._title = f"epoch {epoch + 1}/{epochs}"
        self._printed_at = time.monotonic()
        self.bar = tqdm(
            total=steps,
            initial=done,
            desc=self._title,
            leave=False,
            disable=None if self.main else True,  # None: show it only in a terminal
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def progress(self, step: int, steps: int, text: str) -> None:
        """Show `text` about a step of the epoch: beside the bar or, without a terminal, in a line every ten seconds."""
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
        elif step < steps and time.monotonic() - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = time.monotonic()
            self.say(f"{self._title}  step {step}/{steps}  {text}")

    def record(self, history: Sequence[Row], *, last: bool) -> None:
        """Write all epochs so far to metrics.csv, curves.png, TensorBoard and Weights & Biases."""
        if not self.main or self.folder is None:
            return
        try:
            write_metrics(self.folder / "metrics.csv", history)
        except OSError as error:  # on Windows, nobody can replace a file that Excel has open
            if not isinstance(error.__cause__, PermissionError):
                raise
            self.say(f"warning: {error}; if a program has it open, close it: the next epoch, if any, writes all rows")
        # Drawing takes a fifth of a second; in runs of short epochs it must not take more than a twentieth of the time.
        if last or time.monotonic() - self._drawn_at >= 20 * self._drawing_seconds:
            self._drawn_at = time.monotonic()
            draw_curves(self.folder / "curves.png", history)
            self._drawing_seconds = time.monotonic() - self._drawn_at
        if self._writer is not None:
            # `purge_step` hides the epochs from before a resume, which are written again.
            self.events = self.events or self._writer(str(self.folder), purge_step=0)
        for row in history[self._shown :]:
            scalars = {"/".join(filter(None, split_column(name))): value for name, value in row.items()}
            if self.events is not None:
                for name, value in scalars.items():
                    self.events.add_scalar(name, value, row["step"])
            if self.tracker is not None and row["step"] >= self.tracker.step:  # a resumed record has earlier steps
                self.tracker.log(scalars, step=row["step"], commit=True)  # commit: do not wait for the next epoch
        self._shown = len(history)
        if self.events is not None:
            self.events.flush()

    def say_row(self, row: Row, epochs: int) -> None:
        """Print one line for an epoch: train loss 0.31 top1 90.2  holdout top1 91.0 loss 0.29  ..."""
        text = f"epoch {row['epoch']}/{epochs}"
        previous = None
        for name, value in row.items():
            group, score = split_column(name)
            if group:
                text += "" if group == previous else f"  {group.replace('_', ' ')}"
                text += f" {score.replace('_', ' ')} {value:.4g}"
                previous = group
        self.say(
            f"{text}  lr {row['lr']:.2e}  {speed_text(row['img_per_s'])}  {timedelta(seconds=round(row['seconds']))}"
        )

    def close(self) -> None:
        """Close the progress bar and the trackers, and release the folder."""
        self.bar.close()
        PACKAGE.removeHandler(self._warnings)
        if self.events is not None:
            self.events.close()
        if self.tracker is not None:
            self.tracker.finish(exit_code=int(self.state == "failed"))
        if self._lock is not None:
            self._lock.close()


def read_state(folder: Path) -> str | None:
    """Return the word in a run's state.txt; None if there is no such file, as in runs of older versions."""
    path = folder / STATE
    return read_text(path).strip() if path.exists() else None


def check_output(folder: Path) -> None:
    """Check that a run may write into a folder; raise ValueError if it holds files but no run."""
    if not folder.is_dir():
        return
    with suppress(ValueError, OSError):
        if {"task", "seed", "batch_size", "lr"} <= read_yaml(folder / RECIPE).keys():
            return
    # Files of a run that failed before it wrote its recipe; older versions wrote state.txt before the recipe.
    left = {LOCK, "log.txt", STATE, WANDB, MACOS}
    foreign = sorted(
        name
        for name in os.listdir(folder)
        if name not in left and not name.startswith("events.out.tfevents") and not name.endswith(TEMPORARY)
    )
    if foreign:
        raise ValueError(
            f"{folder} is not empty and holds no run of metamix: there is {foreign[0]!r}, but no {RECIPE} that "
            f"metamix wrote. Give --output a new or empty folder"
        )


def _import_tracker(extra: str, module: str, attribute: str) -> Any:
    """Import a module and check for an attribute, since a folder of records called `wandb` can be imported too."""
    with suppress(ImportError):
        if hasattr(tracker := import_module(module), attribute):
            return tracker
    raise ValueError(f"{extra} is not installed; pip install 'metamix[{extra}]', or leave --{extra} out")


class _WarningHandler(logging.Handler):
    """Write each warning, such as one about an unreadable image, once to the terminal and the run's log."""

    def __init__(self, run: Run):
        super().__init__(logging.WARNING)
        self.run, self.say = run, cache(run.say)  # a loader that the engine makes twice would warn twice

    def emit(self, record: logging.LogRecord) -> None:
        self.say(f"{record.levelname.lower()}: {record.getMessage()}")
