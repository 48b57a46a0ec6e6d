"""Write and read the results of runs, and compare several runs in a table and a picture."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metamix.utils.figures import save_figure
from metamix.utils.files import read_json, read_text, write_text
from metamix.utils.rules import Natural, NotNegative, check_entries, rule, where
from metamix.utils.text import aligned, csv_text, plural, printable
from metamix.weights.files import SUMMARY

from .task import Metric, State

Row = Mapping[str, Any]  # values of one epoch, or of one summary, by name

NUMBER = rule(Annotated[Any, where(lambda value: type(value) in (int, float), "a number")])  # may be infinite
ENTRIES = {  # entries of a summary that commands need
    **dict.fromkeys(("model", "data", "weights"), rule(str)),
    **dict.fromkeys(("scores", "pictures"), rule(tuple[str, ...])),
    **dict.fromkeys(("epochs", "parameters"), rule(Natural)),
    **dict.fromkeys(("macs", "seconds", "img_per_s"), rule(NotNegative)),
}
REMEDY = "Delete it to score the run again"
# Prefixes of columns. holdout_ema comes before holdout, since names that begin with it also begin with holdout.
GROUPS = ("train", "holdout_ema", "holdout")


def split_column(name: str) -> tuple[str, str]:
    """Split a column's name into group and rest: holdout_ema_top1 into holdout_ema and top1, lr into "" and lr."""
    for group in GROUPS:
        if name.startswith(f"{group}_"):
            return group, name.removeprefix(f"{group}_")
    return "", name


def write_metrics(path: Path, history: Sequence[Row]) -> None:
    """Write one CSV row per epoch."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    cells = [[row.get(name, "") for name in columns] for row in history]
    rows = [[f"{value:.8g}" if isinstance(value, float) else value for value in row] for row in cells]
    write_text(path, csv_text([columns, *rows]))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a metrics.csv, leaving out empty cells; raise ValueError if the file is damaged."""
    text = read_text(path)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]
    except (ValueError, TypeError, csv.Error) as error:  # TypeError: a row has more cells than the header
        raise ValueError(f"{path} is damaged ({error}); repair it, or train again with another --output") from None


def result_of(metric: Metric, scores: Mapping[str, float], states: list[State]) -> dict[str, Any]:
    """Return the rounded scores, the scores of each class, and the number of images that could not be read."""
    by_class, unreadable = metric.by_class(states), sum(state["unreadable"] for state in states)
    return (
        {name: round(value, 4) if abs(value) >= 1 else float(f"{value:.4g}") for name, value in scores.items()}
        | ({"by_class": by_class} if by_class else {})
        | ({"unreadable": unreadable} if unreadable else {})
    )


def scores_text(result: Mapping[str, Any], names: Iterable[str], where: str) -> str:
    """Format the scores `names` of a result: MODEL on DATA, WHERE: top1 99.4, top5 100."""
    left_out = f" without {plural(result['unreadable'], 'unreadable image')}" if "unreadable" in result else ""
    scores = ", ".join(f"{name} {result[name]:.4g}" for name in names)
    return f"{result['model']} on {result['data']}, {where}{left_out}: {scores}"


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the summary of a finished run; raise ValueError if it is damaged."""
    path = folder / SUMMARY
    summary = read_json(path, REMEDY)
    check_entries(summary, ENTRIES, path, None, REMEDY)
    check_entries(summary, dict.fromkeys(summary["scores"], NUMBER), path, None, REMEDY)
    return summary


def total(states: Sequence[Mapping[str, Any]], key: str) -> Tensor:
    """Sum the tensors `state[key]` over the states of all processes."""
    return torch.stack([state[key] for state in states]).sum(0)


def by_name(names: Sequence[str], **columns: Tensor) -> dict[str, dict[str, float | None]]:
    """Return the scores of each class by its name, with two decimals and None for NaN; columns are (classes,)."""
    rows = zip(*(column.tolist() for column in columns.values()))
    return {
        name: {key: None if math.isnan(value) else round(value, 2) for key, value in zip(columns, row)}
        for name, row in zip(names, rows)
    }


def draw_curves(path: Path, history: Sequence[Row]) -> None:
    """Draw losses, scores and learning rate over the epochs."""
    names = [name for name in dict.fromkeys(name for row in history for name in row) if split_column(name)[0]]
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
    """Compare finished runs: return a table, and write it as CSV, with a picture, next to the first run's folder."""
    summaries = [read_summary(folder) for folder in folders]
    histories = [read_metrics(folder / "metrics.csv") for folder in folders]
    score = summaries[0]["scores"][0]
    columns = ["model", "parameters", "macs", score, "weights", "epochs", "seconds", "img_per_s"]
    rows = [columns, *([str(summary[column]) for column in columns] for summary in summaries)]
    data = str(summaries[0]["data"]).replace("/", "-")
    sheet, picture = (folders[0].parent / f"compared-{data}.{kind}" for kind in ("csv", "png"))
    write_text(sheet, csv_text(rows))
    _draw_comparison(picture, summaries, histories)
    return "\n".join([*aligned(rows), "", printable(f"written: {sheet} {picture}")])


def _draw_comparison(path: Path, summaries: Sequence[Row], histories: Sequence[Sequence[Row]]) -> None:
    """Draw the learning curves, and the final score against the training speed."""
    score = summaries[0]["scores"][0]
    columns = {name for row in histories[0] for name in row}
    curve = next((name for name in (f"holdout_{score}", f"train_{score}") if name in columns), "train_loss")
    figure = Figure(figsize=(12, 4), layout="constrained")
    learning, final = figure.subplots(1, 2)
    for summary, history in zip(summaries, histories):
        rows = [row for row in history if {"epoch", curve} <= row.keys()]
        (line,) = learning.plot(*([row[name] for row in rows] for name in ("epoch", curve)), label=summary["model"])
        final.plot(summary["img_per_s"], summary[score], "o", color=line.get_color())
    learning.set(xlabel="epoch", title=curve.replace("_", " "))
    final.set(xlabel="training speed, images per second", title=f"test {score}")
    figure.legend(loc="outside right upper", fontsize="small")
    for axes in (learning, final):
        axes.grid(alpha=0.3)
    save_figure(path, figure)
