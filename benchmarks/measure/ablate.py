"""Compare the design choices of the small models in short runs that cost the same; write results/ablations.json.

    python -m benchmarks.measure.ablate --list
    python -m benchmarks.measure.ablate --data-dir DIR --runs nano:raft:0 nano-relu:raft:0

A run is VARIANT:MIXER:SEED. It trains on 90 % of the training images and is scored on the other 10 %. The test split is
not used. Every run spends the same number of multiply-adds on images (`--budget`), so a model that costs twice as much
sees half the images. Each finished run is added to the result file at once; runs that are in the file are skipped. The
file also has runs of variants that led to `nano` or were given up; their rows name the commit that has their code.

Runs with a teacher need weights that were trained on the same 90 %:

    python -m benchmarks.measure.ceiling --data-dir DIR --weights teacher.safetensors
    python -m benchmarks.measure.ablate --data-dir DIR --teacher teacher.safetensors --runs nano-distill:raft:0
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.timing import append_row, machine
from benchmarks.paths import RESULTS, read_json
from benchmarks.variants import VARIANTS, Variant, resolve, with_embeds
from metamix.classification.task import Classification, ClassificationOptions
from metamix.mixers import list_mixers
from metamix.training.engine import Engine
from metamix.training.optimization import make_schedule
from metamix.training.processes import ProcessGroup
from metamix.training.recipe import EngineOptions, Recipe
from metamix.training.run_folder import Run
from metamix.utils.system import commit
from metamix.utils.text import did_you_mean, exit_with_message

FILE = RESULTS / "ablations.json"
BUDGET = 9.36e12  # multiply-adds of a run's forward passes: 2.8 epochs of the nano models
WARMUP = 0.2  # share of the schedule

# Options of all runs, unless a variant sets them. Mixup and cutmix are off: they lower the accuracy of runs this short.
DATA: dict[str, Any] = dict(data="folder", holdout=0.1, smoothing=0.1, flip=0.5, padding=4)
ENGINE: dict[str, Any] = dict(
    epochs=5,  # replaced by the budget
    checkpoint_minutes=math.inf,
    batch_size=128,
    optimizer="muon",
    lr=5.0e-3,
    schedule="linear",
    weight_decay=0.05,
    ema=True,
)


def make_recipe(variant: Variant, mixer: str, seed: int, data_dir: str, teacher: str | None = None) -> Recipe:
    """Return the recipe of a run; raise ValueError if the variant needs a teacher, but its weight file is not given."""
    data = DATA | dict(variant.data)
    if "teacher" in data:
        if not teacher:
            raise ValueError(
                "the variant needs a teacher: give --teacher FILE, written by benchmarks.measure.ceiling --weights FILE"
            )
        data["teacher_checkpoint"] = teacher
    engine = EngineOptions(**ENGINE | dict(variant.recipe), seed=seed)
    model = f"metaformer_{mixer}_{variant.size}"
    arguments = with_embeds(variant.model)
    options = ClassificationOptions(**data, model=model, model_args=arguments, data_dir=data_dir)
    return Recipe("classification", engine, options)


def steps_within(budget: float, macs: int, batch_size: int) -> int:
    """Return the number of training steps whose images cost about `budget` multiply-adds."""
    return max(1, round(budget / (macs * batch_size)))


def train(recipe: Recipe, budget: float) -> dict[str, Any]:
    """Train within the budget of multiply-adds, score the held-out images, and return cost and scores."""
    with ProcessGroup.start(recipe.engine.device) as group:
        task = Classification(recipe.options, recipe.engine.seed)
        engine = Engine(task, recipe, group, Run(None))
        steps = steps_within(budget, engine.about["macs"], recipe.engine.batch_size)
        epochs = steps / engine.steps_per_epoch
        options = dataclasses.replace(recipe.engine, epochs=steps, warmup_epochs=WARMUP * steps)
        engine.stepper.schedule = make_schedule(engine.stepper.optimizer, options, steps_per_epoch=1)
        start, start_cpu = time.monotonic(), time.process_time()
        for epoch in range(math.ceil(epochs)):
            for step in engine.steps(epoch):
                if step == steps:
                    break
        minutes, cpu_minutes = (time.monotonic() - start) / 60, (time.process_time() - start_cpu) / 60
        ema, last = (engine.evaluate("holdout", weights)[0] for weights in ("ema", "last"))
    return {
        "parameters": engine.about["parameters"],
        "macs": engine.about["macs"],
        "images": steps * recipe.engine.batch_size,
        "epochs": round(epochs, 2),
        "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu_minutes, 1),
        "holdout_top1": round(ema["top1"], 2),
        "holdout_top1_last": round(last["top1"], 2),
        "holdout_loss": round(ema["loss"], 4),
    }


def is_done(rows: Sequence[Mapping[str, Any]], variant: str, mixer: str, seed: int, budget: float = BUDGET) -> bool:
    """Return whether a run is among the rows. A row without a budget stands for a run with the default budget."""
    run = variant, mixer, seed, budget
    return any((row["variant"], row["mixer"], row["seed"], row.get("budget", BUDGET)) == run for row in rows)


def parse_run(text: str) -> tuple[str, str, int]:
    """Read VARIANT:MIXER or VARIANT:MIXER:SEED; the seed is 0 if it is not given."""
    words = text.split(":")
    if len(words) not in (2, 3):
        raise argparse.ArgumentTypeError(f"{text!r} is not a run: give VARIANT:MIXER or VARIANT:MIXER:SEED.")
    variant, mixer, seed = [*words, "0"][:3]
    for word, what, known in ((variant, "variant", list(VARIANTS)), (mixer, "mixer", list_mixers())):
        if word not in known:
            raise argparse.ArgumentTypeError(
                f"{text!r} has no known {what}{did_you_mean(word, known)} Accepted: {', '.join(known)}."
            )
    if not seed.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} has the seed {seed!r}: give a whole number of at least 0.")
    return variant, mixer, int(seed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the variants")
    parser.add_argument("--runs", nargs="+", type=parse_run, default=[], metavar="VARIANT:MIXER:SEED")
    parser.add_argument("--data-dir", default="data/cifar10", help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--teacher", metavar="FILE", help="weights of the teacher, for variants that have one")
    parser.add_argument("--results", type=Path, default=FILE, help="result file")
    parser.add_argument("--budget", type=float, default=BUDGET, help="multiply-adds of each run's forward passes")
    args = parser.parse_args(argv)
    if args.list:
        for name, variant in VARIANTS.items():
            print(f"{name:16} {variant.parent or '':16} {variant.about}")
    for name, mixer, seed in args.runs:
        if is_done(read_json(args.results, []), name, mixer, seed, args.budget):
            continue
        variant = resolve(name)
        row = {"variant": name, "parent": variant.parent, "about": variant.about, "size": variant.size}
        row |= {"mixer": mixer, "seed": seed}
        with exit_with_message(ValueError, OSError):
            recipe = make_recipe(variant, mixer, seed, args.data_dir, args.teacher)
            row |= train(recipe, args.budget)
        row |= {
            "model_args": dict(variant.model),
            "recipe": {**variant.recipe, **variant.data},
            "machine": machine()["cpu"],
        }
        budget = "" if args.budget == BUDGET else f" --budget {args.budget:g}"
        command = f"python -m benchmarks.measure.ablate{budget} --runs {name}:{mixer}:{seed}"
        row |= {"budget": args.budget, "commit": commit(), "command": command}
        append_row(args.results, row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
