"""Train a model, or several and compare them.

    metamix train --config digits/demo                      one process, on a GPU if there is one
    metamix train --config digits/demo --lr 2e-3            flags override the config
    metamix train --config digits/demo --model metaformer_pooling_nano,metaformer_raft_nano

    torchrun --nproc_per_node=4 --max_restarts=3 train.py --config digits/demo

A run has a folder, runs/<data>-<model>-seed<seed>. The same command again resumes the run from its last checkpoint, or
says that it is finished. The training loop is metamix/training/engine.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

import metamix  # noqa: F401 - registers the models with timm
from metamix.models.registry import check_model, check_published
from metamix.training.engine import Engine, NotFinite
from metamix.training.processes import ProcessGroup
from metamix.training.recipe import Recipe, check_data, parse, read_yaml, resume_changes
from metamix.training.reports import compare_runs
from metamix.training.run_folder import Run
from metamix.training.signals import Stopped
from metamix.utils.files import write_text
from metamix.utils.system import commit, versions
from metamix.utils.tensor_files import CHECKPOINT, WEIGHTS, save_weights
from metamix.utils.text import exit_with_message, readable

from .tasks import TASKS, find_task


def main(argv: Sequence[str] | None = None) -> None:
    """Train what the command line asks for. Exits with a message where something does not fit."""
    recipe = parse(
        sys.argv[1:] if argv is None else argv,
        {name: lambda name=name: find_task(name).Options for name in TASKS},
        default_task="classification",
        description=__doc__.split("\n\n")[0],
    )
    with (
        exit_with_message(ValueError),
        ProcessGroup.start(recipe.engine.device) as group,
        exit_with_message(ValueError, OSError, ImportError, NotFinite),
    ):
        train_all(recipe, group)


def train_all(recipe: Recipe, group: ProcessGroup) -> None:
    """Train every model that the recipe names, one after the other, and compare them if there are several."""
    models, folders = [name.strip() for name in recipe.options.model.split(",")], []
    for model in models:  # a mistake in the last name shows before the first model is trained
        check_model(model)
        if recipe.options.pretrained:
            check_published(model)
    for i, model in enumerate(models):
        own = recipe.replace(model=model)
        if len(models) > 1 and recipe.engine.output:
            own = own.replace(output=str(Path(recipe.engine.output) / model))
        try:
            folders.append(train(own, group))
        except Stopped:
            if group.is_main and models[i + 1 :]:
                print(f"not trained yet: {', '.join(models[i + 1 :])}; the same command continues with them")
            return
    if len(models) > 1 and group.is_main and not recipe.engine.dry_run:
        print(readable(compare_runs(folders)))


def train(recipe: Recipe, group: ProcessGroup) -> Path:
    """Train one model to the end of its recipe, from its last checkpoint if there is one. Returns the run folder."""
    options = recipe.engine
    with group.local_main_first():
        task = find_task(recipe.task)(recipe.options, seed=options.seed)
    folder = Path(options.output or f"runs/{task.title}-seed{options.seed}")
    finished = not options.dry_run and is_finished(folder, recipe, task.data.identity)
    if group.exists_for_all(finished, folder / "summary.json"):
        if group.is_main:
            text = f"{folder} is finished (another --output or --seed makes a new run):\n{result_line(folder)}"
            print(readable(text))
        return folder
    run = Run(None if options.dry_run else folder, main=group.is_main, tensorboard=options.tensorboard)
    try:
        engine = Engine(task, recipe, group, run)
        if options.dry_run:
            describe(engine, run)
            time_step(engine, run)
            return folder
        if not engine.resume():
            run.say(yaml.safe_dump(recipe.flat(), default_flow_style=True, sort_keys=False, width=118))
        describe(engine, run)
        if group.is_main:
            (folder / "summary.json").unlink(missing_ok=True)  # the result of a shorter schedule
            write_text(folder / "recipe.yaml", recipe.to_yaml())
        with engine.stoppable():
            engine.fit()
            finish(engine, run)
            engine.raise_if_stopped()
    except (NotFinite, OSError) as error:
        with suppress(OSError):  # the disk may be full
            run.log(f"error: {error}")
        raise
    finally:
        run.close()
    return folder


def is_finished(folder: Path, recipe: Recipe, data: Mapping[str, Any]) -> bool:
    """Return whether the folder holds the result of this recipe.

    Raises:
        ValueError: the folder holds another run, which cannot be continued.
    """
    if not (folder / "summary.json").exists():
        return False
    changes = resume_changes(read_yaml(folder / "recipe.yaml"), recipe)
    check_data(json.loads((folder / "summary.json").read_text()), data, folder)
    if changes and not (folder / CHECKPOINT).exists():
        raise ValueError(
            f"{folder} holds a finished run of another recipe ({'; '.join(changes.values())}), and no {CHECKPOINT} to "
            f"continue from: give another --output, and --checkpoint {folder} to start from its weights"
        )
    return not changes


def describe(engine: Engine, run: Run) -> None:
    """Print the data, the model, the number of steps and the machine."""
    about, options, group = engine.about, engine.options, engine.group
    share = options.batch_size // group.world_size
    run.say(
        f"data     {about['data']}: " + ", ".join(f"{count:,} {split}" for split, count in about["samples"].items())
    )
    run.say(
        f"model    {about['model']}: {about['parameters']:,} parameters, {about['macs'] / 1e6:,.1f} M multiply-adds"
    )
    for note in engine.task.notes:
        run.say(f"         {note}")
    run.say(f"steps    {options.epochs} epochs of {engine.steps_per_epoch} steps of {options.batch_size} samples")
    run.say(
        f"machine  {group.world_size} x {group.device}, {share} samples each"
        f"{f' in parts of {options.micro_batch}' if options.micro_batch else ''}, "
        f"{str(engine.stepper.dtype or 'float32').removeprefix('torch.')}"
    )


def time_step(engine: Engine, run: Run) -> None:
    """Time one training step, and print its time and memory."""
    seconds, peak = engine.time_step()
    parts = {
        "weights": engine.model.parameters(),
        "optimizer": engine.stepper.optimizer_tensors(),
        "average": engine.stepper.weights("ema").parameters() if engine.options.ema else (),
    }
    sizes = ", ".join(
        f"{name} {sum(t.numel() * t.element_size() for t in tensors) / 2**20:.1f} MiB"
        for name, tensors in parts.items()
    )
    run.say(f"memory   {peak:.2f} GiB at the peak of a step, of which {sizes}")
    run.say(
        f"time     {seconds:.3f} s for one step, {engine.options.batch_size / seconds:,.0f} img/s, "
        f"{timedelta(seconds=round(seconds * engine.total_steps))} for all, if images are read "
        f"as fast. Nothing was trained or written"
    )


def finish(engine: Engine, run: Run) -> None:
    """Score the test split once, with the weights that the recipe names, and write weights, summary and pictures.

    Pictures come last, so that a picture that cannot be drawn does not cost the result.
    """
    options, which = engine.options, engine.options.score
    scores, states = engine.evaluate("test", which)
    if not run.main:
        return
    speed = engine.total_steps * options.batch_size / engine.seconds
    result = (
        engine.about
        | {name: round(value, 4) for name, value in scores.items()}
        | {
            "weights": which,
            "epochs": options.epochs,
            "steps": engine.step,
            "seconds": round(engine.seconds, 1),
            "img_per_s": round(speed, 1),
            "seed": options.seed,
            "versions": versions(),
            "commit": commit(),
        }
    )
    model = engine.stepper.weights(which)
    save_weights(run.folder / WEIGHTS, model.state_dict(), result)
    summary = result | {"scores": list(scores), "pictures": ["curves.png"]}
    write_summary(run.folder, summary)
    summary["pictures"] += [picture.name for picture in engine.task.pictures.draw(states, run.folder)]
    write_summary(run.folder, summary)
    run.say(result_line(run.folder))


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write the result of a run to its summary.json."""
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def result_line(folder: Path) -> str:
    """Return the result of a finished run in two lines: the scores, and where the pictures are."""
    summary = json.loads((folder / "summary.json").read_text())
    scores = ", ".join(f"{name} {summary[name]:.4g}" for name in summary["scores"])
    return (
        f"{summary['model']} on {summary['data']}, test: {scores} ({summary['weights']} weights); "
        f"{summary['epochs']} epochs in {summary['seconds']:.0f} s, {summary['img_per_s']:.0f} img/s\n"
        f"pictures: {' '.join(str(folder / picture) for picture in summary['pictures'])}"
    )


if __name__ == "__main__":
    main()
