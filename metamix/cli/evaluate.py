"""Score a trained model on the data set that it was trained on, or on another data set."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import metamix  # noqa: F401 - registers the models with timm
from metamix.tasks.find import task_of_options
from metamix.tasks.registry import TASKS, find_task
from metamix.training.forward import autocast_dtype, memory_format, score_batches
from metamix.training.processes import ProcessGroup
from metamix.training.recipe import RecipeReader
from metamix.training.reports import result_of, scores_text
from metamix.utils.files import check_output_folder, make_output_folder, read_json, write_text
from metamix.utils.options import Options, option
from metamix.utils.rules import Count
from metamix.utils.system import exit_if_out_of_memory, versions
from metamix.utils.text import exit_with_message, plural, printable, speed_text
from metamix.weights.files import RECIPE

RESULT = "result.json"  # in the output folder
SCORED = (  # entries of the result that identify what was scored
    "model", "checkpoint", "data", "test_split", "split", "samples", "img_size", "degradation", "measured",
)  # fmt: skip


@dataclass
class EvalOptions(Options):
    """Options of `metamix eval` that all tasks share."""

    output: str = option("", "folder for result.json and pictures; default: runs/eval-DATA-MODEL")
    split: Literal["test", "holdout"] = option(
        "test",
        "split to score; holdout: the share of train that --holdout sets aside, or val if it is not the test split",
    )
    batch_size: Count = option(
        256, "images per forward pass, over all processes together, for tasks whose images have one size"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one")
    amp: Literal["auto", "none", "bf16", "fp16"] = option("auto", "precision of autocast, as in metamix train")
    channels_last: bool = option(True, "store images and weights in the channels_last memory format")


READER = RecipeReader(TASKS, lambda task: find_task(task).part("task").EvalOptions, task_of_options, EvalOptions)


def evaluate(*, task: str | None = None, **options: Any) -> dict[str, Any]:
    """Score a model, as `metamix eval` does, and return the content of result.json.

        metamix.evaluate(checkpoint="runs/mine", data_dir="images")["top1"]

    In a run of several processes, which torchrun starts, the call does not return: each process ends after the
    evaluation.

    Args:
        task: name of the task; by default the task of `checkpoint` or of `model`.
        options: options of `metamix eval`, with underscores, such as `data_dir="images"`.

    Raises:
        ValueError: an option, the data or the weights are unsuitable.
        OSError: a file cannot be read or written.
        ImportError: a package is missing.
    """
    recipe = READER.read(None, task, options)
    with ProcessGroup.start(recipe.engine.device) as group:
        return score(recipe.task, recipe.engine, recipe.options, group)


def main(argv: Sequence[str]) -> None:
    """Score the model that the command line names; exit with a message if the input is invalid."""
    recipe = READER.parse(argv, __doc__.split("\n\n")[0])
    with (
        exit_with_message(ValueError),
        ProcessGroup.start(recipe.engine.device) as group,
        exit_if_out_of_memory(find_task(recipe.task).less_memory),
        exit_with_message(ValueError, OSError, ImportError),
    ):
        score(recipe.task, recipe.engine, recipe.options, group)


def score(task_name: str, settings: EvalOptions, options: Any, group: ProcessGroup) -> dict[str, Any]:
    """Score a model, print the result, write result.json and pictures, and return the result."""
    with group.local_main_first():
        task, model, metadata = find_task(task_name).part("task").for_evaluation(options)
    folder = Path(settings.output or f"runs/eval-{task.title}" + ("-holdout" if settings.split == "holdout" else ""))
    if (folder / RECIPE).exists():
        raise ValueError(f"{folder} is a run folder, and its pictures would be replaced: give another --output")
    earlier = _read_result(folder)
    loaders = task.data.eval_loaders(settings.batch_size, group.rank, group.world_size)
    if settings.split not in loaders:
        advice = "leave --split out"
        if hasattr(options, "holdout"):
            advice = "no images are held out. If the model was not trained on the images of train, give --holdout SHARE"
            if options.holdout:
                advice = "no images are left to hold out. Leave --split out, or give a --test-share below 1"
        raise ValueError(f"split is {settings.split!r}, but the data have only {', '.join(loaders)}: {advice}")
    layout = memory_format(settings.channels_last)
    model.to(group.device, memory_format=layout)  # type: ignore[call-overload]
    if group.is_main:
        for note in task.notes:
            print(printable(f"note: {note}"))
    about = task.model.describe(model) | {
        "split": settings.split,
        "checkpoint": options.checkpoint,
        "weights": metadata.extra.get("weights"),
        "trained_img_size": metadata.img_size,
    }
    if group.is_main:
        make_output_folder(folder)  # before scoring, so that an unusable folder is found at once
        if earlier and any(earlier.get(key) != about.get(key) for key in SCORED):
            what = f"{earlier.get('checkpoint') or earlier.get('model')} on {earlier.get('data')}"
            print(printable(f"note: the result of {what} in {folder} is replaced; to keep it, give another --output"))
    start = time.monotonic()
    scores, states = score_batches(
        task.metric, model, loaders[settings.split], group, autocast_dtype(settings.amp, group.device), layout
    )
    seconds = time.monotonic() - start

    if not group.is_main:
        return {}
    speed = about["samples"][settings.split] / seconds
    result = result_of(task.metric, scores, states) | about
    split = settings.split if settings.split == "holdout" else about.get("test_split", "test")
    size = f" of {about['img_size']} pixels" if "img_size" in about else ""
    images = f"{plural(about['samples'][settings.split], 'image')}{size}"
    print(printable(f"{scores_text(result, scores, f'{split} ({images})')}; {speed_text(speed)}"))
    if report := task.pictures.report(states):
        print(report)
    result |= {"img_per_s": round(speed, 1), "versions": versions()}
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    pictures = task.pictures.draw(states, folder)
    print(printable(f"written: {folder / RESULT} {' '.join(map(str, pictures))}"))
    return result


def _read_result(folder: Path) -> dict[str, Any] | None:
    """Return the earlier result in a folder, or None; raise ValueError if the folder holds only other files."""
    with suppress(OSError, ValueError):  # no result, or a file of another program
        if "checkpoint" in (result := read_json(folder / RESULT, "")):
            return result
    check_output_folder(folder, ())
    return None
