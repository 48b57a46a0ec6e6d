"""Time models side by side: medians of interleaved steps, ratios to a reference, peak memory of training.

    python -m benchmarks.measure.speed
    python -m benchmarks.measure.speed --models metaformer_raft_s12,poolformer_s12,resnet18

`--models` takes any name that timm knows, ours among them, and the packages and authors' code of
benchmarks/measure/reference_models.py. The default is the s12 model of each mixer and models of timm of about the same
cost. Results are merged into results/speed.json, with the machine, the commit and the date.

Our models run in channels_last, the others in the memory format that a short trial finds faster. Peak memory is that of
three training steps in a new process, above what it held after its imports.
"""

import argparse
from collections.abc import Collection
from itertools import product
from pathlib import Path

import torch

from benchmarks.markdown import table
from benchmarks.measure import reference_models, timing
from benchmarks.measure.arguments import add_images, add_modes, add_run
from benchmarks.measure.timing import FORMATS, Subject
from benchmarks.paths import RESULTS
from metamix import list_mixers
from metamix.utils.system import keep_freed_memory
from metamix.utils.timing import interleaved

REFERENCE = "poolformer_s12"
PEERS = ("poolformer_s12", "mixer_b16_224", "vit_xsmall_patch16_clip_224")
MODELS = tuple(f"metaformer_{mixer}_s12" for mixer in list_mixers())


class Bench:
    """Build each model once for each batch, size and memory format, and time models in turns."""

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
        """Time models in turns. A model of others that fails is reported and left out.

        Args:
            models: (name, batch, size) of each.
            mode: "infer" or "train".
            precision: "fp32" or "bf16".
            seconds: time for all of them together.
            compiled: names of the models to time with torch.compile too.

        Returns:
            {name: {"format", "ms", "compiled_ms"}}
        """
        steps, found = {}, {}
        for name, batch, size in models:
            try:
                memory_format = self.format(name, batch, size, mode, precision)
                subject = self.subject(name, batch, size, memory_format)
                subject.step(mode, precision)()
            except (RuntimeError, AssertionError, ValueError) as error:
                if reference_models.ours(name):
                    raise
                print(f"{name} fails, {precision} {mode}: {str(error).splitlines()[0]}")
                continue
            found[name] = {"format": memory_format}
            steps[name, "ms"] = subject.step(mode, precision)
            if name in compiled:
                steps[name, "compiled_ms"] = subject.step(mode, precision, compiled=True)
        for (name, what), median in interleaved(steps, seconds).items():
            found[name][what] = round(1000 * median, 3)
        return found

    def peak_mib(self, name: str, batch: int, size: int, precision: str) -> int:
        memory_format = self.format(name, batch, size, "train", precision)
        return timing.in_fresh_process(
            training_mib, name, batch, size, precision, memory_format, self.device, self.authors
        )


def training_mib(name, batch, size, precision, memory_format, device, authors) -> int:
    """Return what three training steps add to the peak of this process, with the model, in MiB."""
    before = timing.memory_mib(peak=False, device=device)
    model = reference_models.create(name, size, authors)
    step = Subject(model, batch, size, memory_format, device).step("train", precision)
    for _ in range(3):
        step()
    return round(timing.memory_mib(device=device) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=lambda s: s.split(","), default=[*MODELS, *PEERS], help="names, separated by commas"
    )
    add_modes(parser)
    add_images(parser)
    add_run(parser)
    parser.add_argument("--reference", default=REFERENCE, help="model that ratios refer to")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed.json", help="JSON file")
    options = parser.parse_args()
    names = list(dict.fromkeys([options.reference, *options.models]))
    reference_models.check_names(names, options.authors)
    keep_freed_memory()
    bench, rows = Bench(options.device, options.authors), []
    for mode, precision in product(options.mode, options.precision):
        models = [(name, options.batch, options.size) for name in names]
        compiled = names if options.compile else ()
        found = bench.measure(models, mode, precision, options.seconds * len(models), compiled)
        if options.reference not in found:
            continue
        for name, cell in found.items():
            row = dict(model=name, mode=mode, precision=precision, batch=options.batch, size=options.size, **cell)
            row |= dict(reference=options.reference, ratio=round(found[options.reference]["ms"] / cell["ms"], 3))
            if mode == "train":
                row["peak_mib"] = bench.peak_mib(name, options.batch, options.size, precision)
            rows.append(row)
    machine = timing.machine(options.device)
    timing.save(options.output, machine, rows, ("model", "mode", "precision", "batch", "size", "reference"))
    columns = ["model", "mode", "precision", "format", "ms", "ratio"]
    columns += ["compiled_ms"] * options.compile + ["peak_mib"] * ("train" in options.mode)
    print(f"batch {options.batch}, {options.size} pixels; ratio: times as fast as {options.reference}; {machine}\n")
    print(table(columns, [[row.get(column, "") for column in columns] for row in rows]))


if __name__ == "__main__":
    main()
