"""The run folder: what a person sees while a model trains, and finds when it has.

    recipe.yaml         every option, as resolved
    log.txt             the lines that went to the terminal
    metrics.csv         one row an epoch; seconds, img_per_s and memory_gib are the columns that depend on the machine
    curves.png          the same as curves
    checkpoint.pt       everything that the run needs to go on
    model.safetensors   the trained weights, with what they are in their metadata
    summary.json        the result
    test_*.png          the task's pictures of the test split

Only rank 0 writes.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from metamix.utils.figures import save_figure
from metamix.utils.files import write_text
from metamix.utils.text import readable

PLAIN_SECONDS = 10  # between two lines of progress where there is no terminal

GROUPS = ("train", "holdout_ema", "holdout")  # of columns; the longer name before the one that it begins with

PACKAGE = logging.getLogger("metamix")

Row = Mapping[str, Any]


class Run:
    """The folder (none for a dry run) and the terminal of one run. On other ranks than 0 nothing does anything."""

    def __init__(self, folder: Path | None, *, main: bool = True, tensorboard: bool = False):
        self.folder, self.main = folder, main
        self.bar: tqdm | None = None
        self.events: Any = None
        self._lock: IO[str] | None = None
        self.terminal = sys.stderr.isatty()
        self._spoke = self._drew = time.monotonic()
        self._drawing = 0.0
        self._warnings = _Warnings(self)
        if not main or folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder)
        PACKAGE.addHandler(self._warnings)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError(
                    "tensorboard is not installed; pip install 'metamix[tensorboard]', or leave --tensorboard out"
                ) from None
            self.events = SummaryWriter(str(self.folder))

    def say(self, text: str) -> None:
        """One line to the terminal and to log.txt."""
        if self.main:
            tqdm.write(readable(text), file=sys.stdout)  # names of files stand in it, and they may be no text
            sys.stdout.flush()
        self.log(text)

    def log(self, text: str) -> None:
        """One line to log.txt alone."""
        if self.main and self.folder is not None:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(readable(text) + "\n")

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        self._title = f"epoch {epoch + 1}/{epochs}"
        self._spoke = time.monotonic()
        if self.main and self.terminal:
            self.bar = tqdm(
                total=steps,
                initial=done,
                desc=self._title,
                unit="step",
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def progress(
        self,
        step_in_epoch: int,
        steps: int,
        values: Mapping[str, float],
        *,
        lr: float,
        speed: float,
        left: float,
        memory: float,
    ) -> None:
        """`values`: means since the last call; `speed`: images a second; `left`: seconds to the end; `memory`: GiB."""
        if not self.main:
            return
        text = "  ".join(
            [
                *(f"{name} {value:.4g}" for name, value in values.items()),
                f"lr {lr:.2e}",
                f"{speed:.0f} img/s",
                f"{memory:.1f} GiB",
                f"{timedelta(seconds=round(left))} left",
            ]
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        elif step_in_epoch < steps and time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self._spoke = time.monotonic()
            self.say(f"{self._title}  step {step_in_epoch}/{steps}  {text}")

    def end_epoch(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def record(self, history: Sequence[Row], *, last: bool) -> None:
        """Writes all epochs so far to metrics.csv, curves.png and TensorBoard."""
        if not self.main or self.folder is None:
            return
        write_metrics(self.folder / "metrics.csv", history)
        # Drawing takes a fifth of a second: where epochs are as short as that, it waits, to stay under a twentieth.
        if last or time.monotonic() - self._drew >= 20 * self._drawing:
            self._drew = time.monotonic()
            draw_curves(self.folder / "curves.png", history)
            self._drawing = time.monotonic() - self._drew
        if self.events is not None:
            for name, value in history[-1].items():
                self.events.add_scalar("/".join(filter(None, grouped(name))), value, history[-1]["step"])
            self.events.flush()

    def say_row(self, row: Row, epochs: int) -> None:
        """One line for an epoch: train loss 0.31 top1 90.2  holdout top1 91.0 loss 0.29  ..."""
        text = f"epoch {row['epoch']}/{epochs}"
        before = None
        for name, value in row.items():
            group, score = grouped(name)
            if group:
                text += "" if group == before else f"  {group.replace('_', ' ')}"
                text += f" {score.replace('_', ' ')} {value:.4g}"
                before = group
        self.say(
            f"{text}  lr {row['lr']:.2e}  {row['img_per_s']:.0f} img/s  {timedelta(seconds=round(row['seconds']))}"
        )

    def close(self) -> None:
        self.end_epoch()
        PACKAGE.removeHandler(self._warnings)
        if self.events is not None:
            self.events.close()
        if self._lock is not None:
            self._lock.close()


class _Warnings(logging.Handler):
    """Has the run say what the package warns of, such as images that cannot be read."""

    def __init__(self, run: Run):
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        self.run.say(f"{record.levelname.lower()}: {record.getMessage()}")


def grouped(name: str) -> tuple[str, str]:
    """A column's group and its name there: holdout_ema_top1 is ("holdout_ema", "top1"), and lr is ("", "lr")."""
    for group in GROUPS:
        if name.startswith(f"{group}_"):
            return group, name.removeprefix(f"{group}_")
    return "", name


def write_metrics(path: Path, history: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.8g}" if isinstance(value, float) else value for name, value in row.items()} for row in history
    )
    write_text(path, text.getvalue())


def draw_curves(path: Path, history: Sequence[Row]) -> None:
    """Losses, scores and learning rate over the epochs."""
    names = [name for name in dict.fromkeys(name for row in history for name in row) if grouped(name)[0]]
    losses = [name for name in names if name.endswith("loss")]
    panels = [("loss", losses), ("score", [name for name in names if name not in losses]), ("learning rate", ["lr"])]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (title, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name in columns:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            axes.plot(*zip(*points), marker="." if len(points) < 40 else None, label=name.replace("_", " "))
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend(fontsize="small")
    save_figure(path, figure)


def compare_runs(folders: Sequence[Path]) -> str:
    """Several finished runs side by side: their table, and where it and a picture of them all were written."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    histories = [_read_metrics(folder / "metrics.csv") for folder in folders]
    score = summaries[0]["scores"][0]
    columns = ["model", "parameters", "macs", score, "weights", "epochs", "seconds", "img_per_s"]
    rows = [columns, *([str(summary[column]) for column in columns] for summary in summaries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)

    figure = Figure(figsize=(12, 4), layout="constrained")
    learning, final = figure.subplots(1, 2)
    curve = next(name for name in (f"holdout_{score}", f"train_{score}", "train_loss") if name in histories[0][0])
    for summary, history in zip(summaries, histories):
        points = [(int(row["epoch"]), float(row[curve])) for row in history if row[curve]]
        (line,) = learning.plot(*zip(*points), label=summary["model"])
        final.plot(summary["img_per_s"], summary[score], "o", color=line.get_color())
    learning.set(xlabel="epoch", title=curve.replace("_", " "))
    final.set(xlabel="training speed, images per second", title=f"test {score}")
    figure.legend(loc="outside right upper", fontsize="small")
    for axes in (learning, final):
        axes.grid(alpha=0.3)

    data = str(summaries[0]["data"]).replace("/", "-")
    sheet, picture = (folders[0].parent / f"compared-{data}.{kind}" for kind in ("csv", "png"))
    write_text(sheet, "\n".join(",".join(row) for row in rows) + "\n")
    save_figure(picture, figure)
    return f"{table}\n\nwritten: {sheet} {picture}"


def _read_metrics(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _lock(folder: Path) -> IO[str]:
    """Holds the folder for this process, for as long as it lives, however it dies."""
    file = open(folder / ".lock", "a+")
    try:
        # A POSIX record lock: unlike flock's, it is not inherited by the loader's workers, which may die later.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise OSError(
                f"{folder} cannot be locked ({error.strerror}), so two runs could write into it: take an --output on "
                f"another file system"
            ) from None
        raise ValueError(
            f"another process is training in {folder}; wait for it, stop it, or choose another --output"
        ) from None
    return file
