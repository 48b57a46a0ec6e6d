"""Train one model to the end of its recipe, and write its result."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from metamix.utils.files import write_text
from metamix.utils.options import read_yaml
from metamix.utils.system import commit, versions
from metamix.utils.text import plural, printable, speed_text
from metamix.weights.files import CHECKPOINT, SUMMARY, WEIGHTS, load_weights, save_weights

from .checkpoints import check_identity
from .engine import Engine
from .processes import ProcessGroup, Stopped, is_lost_rank
from .recipe import Recipe, resume_changes
from .reports import read_summary, result_of, scores_text
from .run_folder import RECIPE, Run, check_output, read_state
from .task import Task


def train_model(task: Task, recipe: Recipe, group: ProcessGroup) -> Path:
    """Train a model to the end of its recipe, from its last checkpoint if there is one, and return the run folder.

    If the run is finished, only its result is printed. A dry run only describes the run and times a step.

    Raises:
        Stopped: at a signal, once the state is saved.
        ValueError: the folder holds files but no run, or the recipe does not fit the run in it; see also `Engine`.
        NotFinite, OSError: see `Engine.fit`. OSError is also raised if another process of the run ends.
    """
    options = recipe.engine
    folder = Path(options.output or f"runs/{task.title}-seed{options.seed}")
    if not options.dry_run:
        check_output(folder)
    finished = not options.dry_run and is_finished(folder, recipe, task.data.identity)
    if group.exists_for_all(finished, folder / SUMMARY):
        if group.is_main:
            for line in (f"{folder} is finished (another --output or --seed makes a new run):", *result_lines(folder)):
                print(printable(line))
        return folder
    trackers = {"tensorboard": options.tensorboard, "wandb": options.wandb}
    run = Run(None if options.dry_run else folder, main=group.is_main, **trackers)
    try:
        engine = Engine(task, recipe, group, run)
        if options.dry_run:
            _describe(engine, run)
            _time_step(engine, run)
            return folder
        if not engine.resume():
            style = dict(default_flow_style=True, sort_keys=False, allow_unicode=True, width=118)
            for line in yaml.safe_dump(recipe.flat(), **style).splitlines():
                run.say(line)
        _describe(engine, run)
        if group.is_main:
            (folder / SUMMARY).unlink(missing_ok=True)  # remove the earlier result, which this run replaces
        run.save_recipe(recipe)
        run.start_tracker(recipe.flat())
        with engine.stop_signal:
            run.set_state("running")
            engine.about["commit"] = commit()  # now, since the git clone may change while the model trains
            engine.fit()
            _finish(engine, run, folder)
            engine.raise_if_stopped()
    except Stopped:
        if run.state == "running":
            run.set_state("stopped")
        raise
    except BaseException as error:  # also at a second Ctrl-C
        lost = run.state == "running" and is_lost_rank(error)
        problem = str(error) or type(error).__name__
        if lost:
            # The message names no step, since only rank 0 can tell whether the newest checkpoint was written.
            command = "the same command continues from the last checkpoint"
            problem = f"another process of this run ended ({problem[:200]}); {command}"
        with suppress(OSError):  # the disk may be full
            if run.state is not None:
                run.log(f"error: {problem}")
            if run.state == "running":
                run.end("stopped" if lost else "failed")
        if lost:
            raise OSError(problem) from error
        raise
    finally:
        run.close()
    return folder


def is_finished(folder: Path, recipe: Recipe, identity: Mapping[str, Any]) -> bool:
    """Return whether the folder holds the complete result of this recipe.

    A run that was killed before it drew its pictures, or lacks its weight file, is not finished if its checkpoint is
    there to score it again. Raise ValueError for other data, damaged files, or a recipe that cannot continue the run.
    """
    if not (folder / SUMMARY).exists():
        return False
    changes = resume_changes(read_yaml(folder / RECIPE), recipe)
    check_identity(read_summary(folder), identity, folder)
    has_checkpoint = (folder / CHECKPOINT).exists()
    if changes and not has_checkpoint:
        raise ValueError(
            f"{folder} holds a finished run of another recipe ({'; '.join(changes.values())}), and no {CHECKPOINT} to "
            f"continue from: give another --output, and --checkpoint {folder} to start from its weights"
        )
    has_weights = (folder / WEIGHTS).exists()
    if changes or (has_checkpoint and (read_state(folder) not in (None, "finished") or not has_weights)):
        return False
    if has_weights:
        try:
            load_weights(folder / WEIGHTS)
        except ValueError as error:
            advice = f"give another --output to train again, since there is no {CHECKPOINT} to write the weights from"
            if has_checkpoint:
                advice = f"delete it and repeat the command: the weights are then written from {CHECKPOINT}"
            raise ValueError(f"{folder} is finished, but {error}, or {advice}") from None
    return True


def result_lines(folder: Path) -> tuple[str, str]:
    """Return the result of a finished run in two lines: the scores, and where the pictures are."""
    summary = read_summary(folder)
    scores = scores_text(summary, summary["scores"], summary.get("test_split", "test"))
    epoch = f" of epoch {summary['best_epoch']}" if "best_epoch" in summary else ""
    return (
        f"{scores} ({summary['weights']} weights{epoch}); {plural(summary['epochs'], 'epoch')} in "
        f"{summary['seconds']:.0f} s, {speed_text(summary['img_per_s'])}",
        f"pictures: {' '.join(str(folder / picture) for picture in summary['pictures'])}",
    )


def _describe(engine: Engine, run: Run) -> None:
    """Print the data, the model, the number of steps and the machine."""
    about, options, group = engine.about, engine.options, engine.group
    share = options.batch_size // group.world_size
    names = {"test": about.get("test_split", "test")}  # the name of the split in the data set
    samples = ", ".join(f"{count:,} {names.get(split, split)}" for split, count in about["samples"].items())
    run.say(f"data     {about['data']}: {samples}")
    run.say(
        f"model    {about['model']}: {about['parameters']:,} parameters, {about['macs'] / 1e6:,.1f} M multiply-adds"
    )
    total = about["samples"].get("train", options.batch_size)
    if total < options.batch_size and engine.steps_per_epoch == 1:  # restoration takes several crops of an image
        run.say(f"note: {plural(total, 'sample')} cannot fill a batch of {options.batch_size}: samples are repeated")
    for note in engine.task.notes:
        run.say(f"         {note}")
    for note in engine.notes:
        run.say(note)
    if options.iterations and options.iterations != engine.total_steps:
        run.say(
            f"note: {plural(options.iterations, 'iteration')} {'is' if options.iterations == 1 else 'are'} rounded to "
            f"{plural(options.epochs, 'whole epoch')}, {plural(engine.total_steps, 'step')}"
        )
    if options.eval_every > 1 and "holdout" not in about["samples"]:
        run.say("note: --eval-every has no effect: no split is held out, and the test split is scored once, at the end")
    if options.warmup_epochs == options.epochs:
        run.say("note: the whole run is warm-up, so the learning rate only rises; give a lower --warmup-epochs")
    run.say(
        f"steps    {plural(options.epochs, 'epoch')} of {plural(engine.steps_per_epoch, 'step')} of "
        f"{plural(options.batch_size, 'sample')}"
    )
    run.say(
        f"machine  {group.world_size} x {group.device}, {plural(share, 'sample')} each"
        f"{f' in parts of {options.micro_batch}' if options.micro_batch else ''}, "
        f"{str(engine.stepper.dtype or 'float32').removeprefix('torch.')}"
    )


def _time_step(engine: Engine, run: Run) -> None:
    """Time one training step, and print its time and memory."""
    seconds, peak = engine.time_step()
    moments = [value for state in engine.stepper.optimizer.state.values() for value in state.values()]
    moments = [value for value in moments if isinstance(value, Tensor)]
    parts: dict[str, Iterable[Tensor]] = {"weights": engine.model.parameters(), "optimizer": moments}
    if engine.options.ema:
        parts["averaged weights"] = engine.stepper.weights("ema").parameters()
    sizes = ", ".join(f"{name} {sum(t.nbytes for t in tensors) / 2**20:.1f} MiB" for name, tensors in parts.items())
    run.say(f"memory   {peak:.2f} GiB at the peak of a step, including {sizes}")
    run.say(
        f"time     {seconds:.3f} s for one step, {speed_text(engine.options.batch_size / seconds)}, "
        f"{timedelta(seconds=round(seconds * engine.total_steps))} for all steps, if loading "
        f"data keeps up. Nothing was trained or written"
    )


def _finish(engine: Engine, run: Run, folder: Path) -> None:
    """Score the test split once, with the weights that the recipe names, and write weights, summary and pictures.

    Pictures come last: the result is kept if a picture cannot be drawn.
    """
    options, which, metric = engine.options, engine.options.score, engine.task.metric
    if hasattr(metric, "choose") and "holdout" in engine.eval_loaders:
        engine.about |= metric.choose(engine.evaluate("holdout", which)[1])
    scores, states = engine.evaluate("test", which)
    if not run.main:
        return
    result = result_of(metric, scores, states)
    about = engine.about | {
        **{name: result[name] for name in scores},
        "weights": which,
        "epochs": len(engine.history),
        "steps": engine.step,
        **({"best_epoch": engine.best["epoch"]} if engine.best.get("model") else {}),
        "seconds": round(engine.seconds, 1),
        "img_per_s": round(engine.step * options.batch_size / engine.seconds, 1),
        "seed": options.seed,
        "versions": versions(),
    }
    save_weights(folder / WEIGHTS, engine.stepper.weights(which).state_dict(), about)
    summary = about | result | {"scores": list(scores), "pictures": ["curves.png"]}
    _write_summary(folder, summary)
    run.set_state("scored")
    summary["pictures"] += [picture.name for picture in engine.task.pictures.draw(states, folder)]
    _write_summary(folder, summary)
    run.set_state("finished")
    for line in result_lines(folder):
        run.say(line)
    for line in engine.task.pictures.report(states).splitlines():
        run.say(line)


def _write_summary(folder: Path, summary: dict[str, Any]) -> None:
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
