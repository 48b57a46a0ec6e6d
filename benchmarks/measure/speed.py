"""Time models side by side: medians of interleaved steps, ratios to a reference, peak memory of training.

    python -m benchmarks.measure.speed
    python -m benchmarks.measure.speed --models metaformer_raft_s12,poolformer_s12,resnet18
    python -m benchmarks.measure.speed --published --authors CLONES

`--models` takes any model of timm, including ours, and the models of other packages and of the authors in
benchmarks/measure/reference_models.py. The default is the s12 model of each mixer and the timm models in
`PEERS`. Results are merged into results/speed.json, with the machine, the commit and the date.

`--published` times the papers' models in our code and in the authors' code, interleaved, with the batch and size in
`PUBLISHED`, and writes results/authors_speed.json. `--models` then takes only names in `PUBLISHED`. CLONES holds the
authors' repositories, each in a folder with its name. timm's PoolFormer and the package `wavemix` need no clone. A
model whose authors' code is missing is left out.

Our models run in channels_last, the others in the memory format that a short trial finds faster. The peak memory is
measured in a new process: it is the memory that a model and three of its training steps add after the imports.
"""

import argparse
from collections.abc import Collection
from itertools import product
from pathlib import Path

import torch

from benchmarks.markdown import table
from benchmarks.measure import reference_models, timing
from benchmarks.measure.timing import FORMATS, Subject, add_cells
from benchmarks.paths import RESULTS
from metamix import list_mixers
from metamix.utils.system import keep_freed_memory
from metamix.utils.timing import interleaved

REFERENCE = "poolformer_s12"
PEERS = ("poolformer_s12", "mixer_b16_224", "vit_xsmall_patch16_clip_224")
MODELS = tuple(f"metaformer_{mixer}_s12" for mixer in list_mixers())
# Published model: (the authors' model in `reference_models`, images per step, side of the images in pixels).
PUBLISHED = {
    "metaformer_pooling_s12": ("poolformer_s12", 8, 224),
    "raftmlp_s": ("authors_raftmlp_s", 8, 224),
    "wavemix_192_16": ("authors_wavemix_192_16", 2, 224),
    "wavemix_144_7": ("authors_wavemix_144_7", 32, 32),
    "ninformer_cifar": ("authors_ninformer_cifar", 128, 32),
    "minattn_symmetric_nomlp_h4_cifar": ("authors_minattn_symmetric_nomlp_h4_cifar", 256, 32),
}
FIXED = "batch", "size", "reference"  # options that --published does not take


class Bench:
    """Build each model once for each batch size, image size and memory format, and time models in interleaved steps."""

    def __init__(self, device: str, authors: Path | None):
        self.device, self.authors = device, authors
        self.subjects: dict[tuple, Subject] = {}
        self.formats: dict[tuple, str] = {}

    def subject(self, name: str, batch: int, size: int, memory_format: str) -> Subject:
        key = name, batch, size, memory_format
        if key not in self.subjects:
            torch.manual_seed(0)
            model = reference_models.create(name, size, self.authors)
            self.subjects[key] = Subject(model, batch, size, memory_format, self.device)
        return self.subjects[key]

    def format(self, name: str, batch: int, size: int, mode: str, precision: str) -> str:
        """Return channels_last for our models, and for others the memory format that a trial finds faster."""
        if reference_models.ours(name):
            return "channels_last"
        key = name, batch, size, mode, precision
        if key not in self.formats:
            steps = {f: self.subject(name, batch, size, f).step(mode, precision) for f in FORMATS}
            seconds = interleaved(steps, seconds=0, least=2)
            self.formats[key] = min(seconds, key=seconds.get)
        return self.formats[key]

    def measure(
        self, models: list[tuple], mode: str, precision: str, seconds: float, compiled: Collection[str]
    ) -> dict[str, dict]:
        """Time models in interleaved steps. A model that is not ours is reported and left out if it fails.

        Args:
            models: (name, batch, size) of each model.
            mode: "infer" or "train".
            precision: "fp32" or "bf16".
            seconds: time for all models together.
            compiled: names of the models to time with torch.compile too.

        Returns:
            {name: {"format", "ms", and "compiled_ms" if the name is in `compiled`}}
        """
        steps, times = {}, {}
        for name, batch, size in models:
            try:
                memory_format = self.format(name, batch, size, mode, precision)
                subject = self.subject(name, batch, size, memory_format)
                subject.step(mode, precision)()
            except (RuntimeError, AssertionError, ValueError) as error:
                if reference_models.ours(name):
                    raise
                print(f"{name} fails in {precision}, mode {mode}: {str(error).splitlines()[0]}")
                continue
            times[name] = {"format": memory_format}
            steps[name, "ms"] = subject.step(mode, precision)
            if name in compiled:
                steps[name, "compiled_ms"] = subject.step(mode, precision, compiled=True)
        for (name, what), median in interleaved(steps, seconds).items():
            times[name][what] = round(1000 * median, 3)
        return times

    def peak_mib(self, name: str, batch: int, size: int, precision: str) -> int:
        memory_format = self.format(name, batch, size, "train", precision)
        return timing.in_fresh_process(
            training_mib, name, batch, size, precision, memory_format, self.device, self.authors
        )


def training_mib(name, batch, size, precision, memory_format, device, authors) -> int:
    """Return the MiB that a model and three of its training steps add to the peak memory of this process."""
    before = timing.memory_mib(peak=False, device=device)
    model = reference_models.create(name, size, authors)
    step = Subject(model, batch, size, memory_format, device).step("train", precision)
    for _ in range(3):
        step()
    return round(timing.memory_mib(device=device) - before)


def compare_all(options: argparse.Namespace) -> list[dict]:
    """Time all models in interleaved steps; return rows for the modes and precisions in which the reference runs."""
    names = list(dict.fromkeys([options.reference, *(options.models or [*MODELS, *PEERS])]))
    reference_models.check_names(names, options.authors)
    bench, rows = Bench(options.device, options.authors), []
    for mode, precision in product(options.mode, options.precision):
        models = [(name, options.batch, options.size) for name in names]
        times = bench.measure(models, mode, precision, options.seconds * len(models), names if options.compile else ())
        if options.reference not in times:
            continue
        for name, cell in times.items():
            row = dict(model=name, mode=mode, precision=precision, batch=options.batch, size=options.size, **cell)
            row |= dict(reference=options.reference, ratio=round(times[options.reference]["ms"] / cell["ms"], 3))
            if mode == "train":
                row["peak_mib"] = bench.peak_mib(name, options.batch, options.size, precision)
            rows.append(row)
    return rows


def compare_published(options: argparse.Namespace) -> list[dict]:
    """Time each published model interleaved with its authors' code, and return the rows."""
    rows = []
    for name in options.models or PUBLISHED:
        if need := reference_models.lacks(PUBLISHED[name][0], options.authors):
            print(f"Not timed: {name}, since {PUBLISHED[name][0]} {need}.")
            continue
        bench = Bench(options.device, options.authors)
        for mode, precision in product(options.mode, options.precision):
            rows.append(compare(bench, name, mode, precision, options.seconds, options.compile))
            print(*(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def compare(bench: Bench, name: str, mode: str, precision: str, seconds: float, compile: bool) -> dict:
    """Time a published model interleaved with its authors' code.

    Returns:
        A result row. `ratio` is the authors' time over ours; it is missing if their code fails.
    """
    authors, batch, size = PUBLISHED[name]
    pair = [(each, batch, size) for each in (name, authors)]
    times = bench.measure(pair, mode, precision, seconds * len(pair), [name] if compile else [])
    row = dict(model=name, mode=mode, precision=precision, batch=batch, size=size)
    row |= {key: value for key, value in times[name].items() if key != "format"}
    if authors in times:
        theirs = times[authors]["ms"]
        row |= dict(authors_ms=theirs, ratio=round(theirs / row["ms"], 3))
        if (mode, precision) == ("train", "fp32"):
            row["mib"], row["authors_mib"] = (bench.peak_mib(*each, precision) for each in pair)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="time the papers' models beside their authors' code")
    parser.add_argument("--models", type=lambda s: s.split(","), help="comma-separated names")
    add_cells(parser)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile (--published: our code only)")
    parser.add_argument("--authors", type=Path, help="folder with clones of the authors' repositories")
    parser.add_argument("--reference", default=REFERENCE, help="model that ratios refer to")
    parser.add_argument("--output", type=Path, help="JSON file (default: speed.json or authors_speed.json in results/)")
    options = parser.parse_args()
    if options.published and (unknown := sorted(set(options.models or ()) - PUBLISHED.keys())):
        parser.error(f"--published does not take {', '.join(unknown)}. Accepted: {', '.join(PUBLISHED)}.")
    changed = [f"--{name}" for name in FIXED if getattr(options, name) != parser.get_default(name)]
    if options.published and changed:
        parser.error(f"--published has a batch, size and reference for each model: leave {', '.join(changed)} out")
    keep_freed_memory()
    rows = compare_published(options) if options.published else compare_all(options)
    output = options.output or RESULTS / ("authors_speed.json" if options.published else "speed.json")
    key = ("model", "mode", "precision") + (() if options.published else ("batch", "size", "reference"))
    timing.save(output, timing.machine(options.device), rows, key)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("", table(columns, [[row.get(column, "") for column in columns] for row in rows]), sep="\n")


if __name__ == "__main__":
    main()
