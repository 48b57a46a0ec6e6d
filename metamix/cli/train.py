"""Train a model, or train several models and compare them.

    metamix train --config digits/demo                      one process, on a GPU if there is one
    metamix train --config digits/demo --lr 2e-3            flags override the config
    metamix train --config digits/demo --model metaformer_pooling_nano,metaformer_raft_nano

    torchrun --nproc_per_node=4 --max_restarts=3 train.py --config digits/demo

Each run has a folder, by default in runs/ and named after the data, the model and the seed. Repeat the command to
resume the run from its last checkpoint; if the run is finished, the command says so. The training loop is in
metamix/training/engine.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import metamix  # noqa: F401 - registers the models with timm
from metamix.tasks.find import task_of_options
from metamix.tasks.registry import TASKS, find_task
from metamix.training.engine import NotFinite
from metamix.training.processes import ProcessGroup, Stopped
from metamix.training.recipe import Recipe, RecipeReader
from metamix.training.reports import compare_runs
from metamix.training.train import train_model
from metamix.utils.system import exit_if_out_of_memory
from metamix.utils.text import exit_with_message, printable

READER = RecipeReader(TASKS, lambda task: find_task(task).part("task").Options, task_of_options)


def train(config: str | Path | None = None, *, task: str | None = None, **options: Any) -> Path:
    """Train one model, as `metamix train` does, and return its run folder.

        metamix.train("finetune/tiny", data_dir="images", output="runs/mine")

    The same call resumes a run that was stopped. If the run is finished, the call returns at once. In a run of several
    processes, which torchrun starts, the call does not return: each process ends after the training. Messages name
    options as on the command line.

    Args:
        config: YAML file of options, or the name of a shipped recipe, such as "digits/demo".
        task: name of the task; by default the task of the config, of `checkpoint` or of `model`.
        options: options of `metamix train`, with underscores, such as `batch_size=64`.

    Raises:
        ValueError: an option, the data, the weights or the run folder is unsuitable.
        OSError: a file cannot be read or written.
        ImportError: a package is missing.
        metamix.training.engine.NotFinite: the loss is not finite.
        metamix.training.processes.Stopped: a signal, such as Ctrl-C, stopped the run after a checkpoint was written.
    """
    recipe = READER.read(config, task, options)
    if "," in recipe.options.model:
        raise ValueError(f"model is {recipe.options.model}, but metamix.train trains one model: call it for each model")
    with ProcessGroup.start(recipe.engine.device) as group:
        check_model(recipe, recipe.options.model, group)
        return train_one(recipe, group)


def main(argv: Sequence[str]) -> None:
    """Train the models that the command line names; exit with a message if the input is invalid."""
    recipe = READER.parse(argv, __doc__.split("\n\n")[0])
    with (
        exit_with_message(ValueError),
        ProcessGroup.start(recipe.engine.device) as group,
        exit_if_out_of_memory(
            "give a smaller --batch-size, --micro-batch N, or --grad-checkpointing"
            + ("; to score large images, --tile 512" if hasattr(recipe.options, "tile") else "")
        ),
        exit_with_message(ValueError, OSError, ImportError, NotFinite),
    ):
        train_all(recipe, group)


def train_all(recipe: Recipe, group: ProcessGroup) -> None:
    """Train the models that the recipe names, one after the other, and compare them if there are several."""
    models, folders = [name.strip() for name in recipe.options.model.split(",")], []
    if len(models) > 1 and (weights := recipe.engine.resume or recipe.options.checkpoint):
        raise ValueError(
            f"{weights} has the weights of one model, but --model names {len(models)}: train only that model, or leave "
            f"--resume and --checkpoint out"
        )
    for model in models:  # so that a mistake in the last name shows before the first model is trained
        check_model(recipe, model, group)
    for i, model in enumerate(models):
        # Each model gets a copy of the engine's options, since the engine fills in options that are not set.
        of_model = replace(recipe, engine=replace(recipe.engine), options=replace(recipe.options, model=model))
        if len(models) > 1 and recipe.engine.output:
            of_model.engine.output = str(Path(recipe.engine.output) / model)
        try:
            folders.append(train_one(of_model, group))
        except Stopped:
            if group.is_main and models[i + 1 :]:
                print(printable(f"not trained yet: {', '.join(models[i + 1 :])}; repeat the command to train them"))
            raise
    if len(models) > 1 and group.is_main and not recipe.engine.dry_run:
        print(compare_runs(folders))


def check_model(recipe: Recipe, model: str, group: ProcessGroup) -> None:
    """Raise ValueError if the task cannot train `model`; tell the user if the weights of its tag are not loaded."""
    if ":" in model:
        raise ValueError(
            f"model is {model}. Models from a hub cannot be trained, since weight files store a registered name: "
            f"give --model NAME, and the hub's weights as --checkpoint FILE"
        )
    find_task(recipe.task).part("task").check_model(model, recipe.options.pretrained)
    if "." in model and not (recipe.options.pretrained or recipe.options.checkpoint) and group.is_main:
        print(printable(f"note: {model} names weights, but they are loaded only with --pretrained"))


def train_one(recipe: Recipe, group: ProcessGroup) -> Path:
    """Train the model that the recipe names, and return its run folder."""
    with group.local_main_first():
        task = find_task(recipe.task).part("task")(recipe.options, seed=recipe.engine.seed)
    return train_model(task, recipe, group)
