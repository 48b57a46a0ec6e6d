"""Speed of models beside each other: medians of interleaved runs, ratios to a reference, peak memory of training.

    python benchmarks/speed.py --models metaformer_raft_s12,poolformer_s12,mixer_b16_224,convmixer_768_10
    python benchmarks/speed.py --cases                 every published model against its authors' code, docs/cases.json
    python benchmarks/speed.py --cases raftmlp_s,ninformer_cifar --mode infer --precision fp32

`--models` takes any name of timm, ours among them, and those of benchmarks/peers.py; it writes docs/speed.json.
`--cases` times our models, the authors' code where it is at hand, and timm's poolformer_s12, by which it rescales what
the authors' code took on the machine of `CASES`. What a step of inference or training is: `Subject` in
benchmarks/timing.py.

Our models run in channels_last, the others in the memory format in which a short trial found them faster. Peak memory
is that of three training steps in a process of its own, above what it held after its imports. Results of parts of a
run, by `--models`, `--cases NAMES`, `--mode` or `--precision`, are kept side by side in the file.
"""

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.measure import reference_models as peers
from benchmarks.measure import timing
from benchmarks.measure.timing import FORMATS, MODES, PRECISIONS, Subject, table
from benchmarks.paths import RESULTS
from metamix import list_mixers
from metamix.utils.system import keep_freed_memory

REFERENCE = "poolformer_s12"
PEERS = ("poolformer_s12", "mixer_b16_224", "convmixer_768_10", "vit_xsmall_patch16_clip_224")
MODELS = tuple(f"metaformer_{mixer}_s12" for mixer in list_mixers())


@dataclass(frozen=True)
class Case:
    """A published model in our code and its authors', and what theirs took: milliseconds by (mode, precision), None
    where it fails, and MiB of fp32 training, on two cores of an AMD EPYC with torch 2.13; `asked` is the ratio that
    ours should reach."""

    authors: str
    size: int
    batch: int
    milliseconds: dict[tuple[str, str], float | None]
    mib: int
    asked: dict[tuple[str, str], float | None]


CELLS = [("infer", "fp32"), ("train", "fp32"), ("infer", "bf16"), ("train", "bf16")]


def case(authors, size, batch, milliseconds, mib, asked) -> Case:
    return Case(authors, size, batch, dict(zip(CELLS, milliseconds)), mib, dict(zip(CELLS, asked)))


CASES = {
    "metaformer_pooling_s12": case("poolformer_s12", 224, 8, (127, 382, 125, 238), 794, (1.4, 1.4, 1.8, 1.5)),
    "raftmlp_s": case("authors_raftmlp_s", 224, 8, (238, 674, 139, 300), 973, (1.8, 1.8, 1.8, 1.5)),
    "wavemix_192_16": case("authors_wavemix_192_16", 224, 2, (129, 576, 118, None), 721, (1.1, 1.3, 1.3, None)),
    "wavemix_144_7": case("authors_wavemix_144_7", 32, 32, (166, 771, 129, None), 743, (1.2, 1.4, 1.3, None)),
    "ninformer_cifar": case("authors_ninformer_cifar", 32, 128, (456, 3006, 156, 1711), 1862, (2.5, 4, 1.5, 4)),
    "minattn_symmetric_nomlp_h4_cifar": case(
        "authors_minattn_symmetric_nomlp_h4_cifar", 32, 256, (8.2, 44, 7.8, 46), 106, (1.3, 1.3, 1.3, 1.3)
    ),
}


class Bench:
    """Models of one batch and size, each built once in each memory format that it is tried in."""

    def __init__(self, options: argparse.Namespace):
        self.device, self.authors = options.device, options.authors
        self.subjects: dict[tuple, Subject] = {}
        self.formats: dict[tuple, str] = {}

    def subject(self, name: str, batch: int, size: int, memory_format: str) -> Subject:
        key = name, batch, size, memory_format
        if key not in self.subjects:
            torch.manual_seed(0)
            model = peers.create(name, size, self.authors)
            self.subjects[key] = Subject(model, batch, size, memory_format, self.device)
        return self.subjects[key]

    def format(self, name: str, batch: int, size: int, mode: str, precision: str) -> str:
        """The memory format in which a trial finds the model faster; ours are made for channels_last."""
        if peers.ours(name):
            return "channels_last"
        key = name, batch, size, mode, precision
        if key not in self.formats:
            steps = {f: self.subject(name, batch, size, f).step(mode, precision) for f in FORMATS}
            seconds = timing.interleaved(steps, seconds=0, least=2)
            self.formats[key] = min(seconds, key=seconds.get)
        return self.formats[key]

    def measure(
        self, models: list[tuple], mode: str, precision: str, seconds: float, compiled: Collection[str]
    ) -> dict[str, dict]:
        """{name: {"format", "ms", "compiled_ms"}} of (name, batch, size), in turns, the last of those named in
        `compiled`; a peer that fails is left out."""
        steps, found = {}, {}
        for name, batch, size in models:
            try:
                memory_format = self.format(name, batch, size, mode, precision)
                subject = self.subject(name, batch, size, memory_format)
                subject.step(mode, precision)()
            except RuntimeError as error:
                if peers.ours(name):
                    raise
                print(f"{name} fails, {precision} {mode}: {str(error).splitlines()[0]}")
                continue
            found[name] = {"format": memory_format}
            steps[name, "ms"] = subject.step(mode, precision)
            if name in compiled:
                steps[name, "compiled_ms"] = subject.step(mode, precision, compiled=True)
        for (name, what), median in timing.interleaved(steps, seconds).items():
            found[name][what] = round(1000 * median, 3)
        return found

    def peak_mib(self, name: str, batch: int, size: int, precision: str) -> int:
        memory_format = self.format(name, batch, size, "train", precision)
        return timing.in_fresh_process(
            training_mib, name, batch, size, precision, memory_format, self.device, self.authors
        )


def training_mib(name, batch, size, precision, memory_format, device, authors) -> int:
    """Peak of three training steps above what the process held before: model, gradients, activations and workspaces."""
    before = timing.memory_mib(peak=False, device=device)
    step = Subject(peers.create(name, size, authors), batch, size, memory_format, device).step("train", precision)
    for _ in range(3):
        step()
    return round(timing.memory_mib(device=device) - before)


def run_models(options: argparse.Namespace) -> None:
    bench, rows = Bench(options), []
    names = list(dict.fromkeys([options.reference, *options.models]))
    for mode, precision in product(options.mode, options.precision):
        models = [(name, options.batch, options.size) for name in names]
        seconds = options.seconds * len(models)
        found = bench.measure(models, mode, precision, seconds, compiled=names if options.compile else ())
        if options.reference not in found:
            continue
        for name, cell in found.items():
            row = dict(model=name, mode=mode, precision=precision, batch=options.batch, size=options.size, **cell)
            row |= dict(reference=options.reference, ratio=round(found[options.reference]["ms"] / cell["ms"], 3))
            if mode == "train":
                row["peak_mib"] = bench.peak_mib(name, options.batch, options.size, precision)
            rows.append(row)
    machine = timing.machine(options.device)
    path = options.output or RESULTS / "speed.json"
    timing.save(path, machine, rows, ("model", "mode", "precision", "batch", "size", "reference"))
    columns = ["model", "mode", "precision", "format", "ms", "ratio"]
    columns += ["compiled_ms"] * options.compile + ["peak_mib"] * ("train" in options.mode)
    print(f"batch {options.batch}, {options.size} pixels; ratio: times as fast as {options.reference}; {machine}\n")
    print(table(columns, [[row.get(column, "") for column in columns] for row in rows]))


def run_cases(options: argparse.Namespace) -> None:
    rows, missing = [], []
    for name in options.cases:
        case, bench = CASES[name], Bench(options)
        need = peers.lacks(case.authors, options.authors)
        models = {(name, case.batch, case.size), (REFERENCE, 8, 224)}
        if not need:
            models.add((case.authors, case.batch, case.size))
        for mode, precision in product(options.mode, options.precision):
            seconds = options.seconds * len(models)
            found = bench.measure(sorted(models), mode, precision, seconds, compiled=[name] if options.compile else ())
            rows.append(case_row(name, mode, precision, found))
            if (mode, precision) == ("train", "fp32"):
                rows[-1]["mib"] = bench.peak_mib(name, case.batch, case.size, precision)
                if not need:
                    rows[-1]["authors_mib"] = bench.peak_mib(case.authors, case.batch, case.size, precision)
            print_case(rows[-1], header=len(rows) == 1)
        if need:
            missing.append(f"{case.authors} {need}.")
    path = options.output or RESULTS / "authors_speed.json"
    timing.save(path, timing.machine(options.device), rows, ("case", "mode", "precision"))
    if missing:
        print("\nNot timed here:", *missing, sep="\n")


def case_row(name: str, mode: str, precision: str, found: dict[str, dict]) -> dict:
    """What was found of a case, beside what was asked: `ratio` is the authors' time over ours, of their code in this
    run where it ran, else of their time elsewhere, rescaled by how fast the reference is here."""
    case, ours, here = CASES[name], found[name], found[REFERENCE]["ms"]
    elsewhere = case.milliseconds[mode, precision]
    rescaled = elsewhere and elsewhere * here / CASES["metaformer_pooling_s12"].milliseconds[mode, precision]
    measured = found.get(case.authors, {}).get("ms")
    row = dict(
        case=name, mode=mode, precision=precision, batch=case.batch, size=case.size, ms=ours["ms"], reference_ms=here
    )
    if "compiled_ms" in ours:
        row["compiled_ms"] = ours["compiled_ms"]
    row |= dict(listed_ms=elsewhere, rescaled_ms=rescaled and round(rescaled, 3), authors_ms=measured)
    theirs = measured or rescaled
    return row | dict(ratio=theirs and round(theirs / ours["ms"], 3), asked=case.asked[mode, precision])


def print_case(row: dict, header: bool) -> None:
    mib = f"{row['mib']} / {row.get('authors_mib', '-')} / {CASES[row['case']].mib}" if "mib" in row else ""
    cells = [row["case"], row["mode"], row["precision"], number(row["ms"]), number(row.get("compiled_ms"))]
    cells += [number(row[key]) for key in ("reference_ms", "listed_ms", "rescaled_ms", "authors_ms")]
    cells += [number(row["ratio"], 2), number(row["asked"], 1), mib]
    columns = ["case", "mode", "precision", "ours, ms", "compiled", REFERENCE]
    columns += ["authors: listed", "rescaled", "here", "ratio", "asked", "MiB: ours / authors here / listed"]
    lines = table(columns, [cells]).splitlines()
    print("\n".join(lines if header else lines[2:]), flush=True)


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def choices(accepted: tuple[str, ...]):
    """An argparse type: a comma list of some of `accepted`."""

    def parse(words: str) -> list[str]:
        given = words.split(",")
        for word in given:
            if word not in accepted:
                raise argparse.ArgumentTypeError(
                    f"{word!r}{peers.nearest(word, accepted)} Accepted: {', '.join(accepted)}."
                )
        return given

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=lambda s: s.split(","), default=[*MODELS, *PEERS], help="names, separated by commas"
    )
    parser.add_argument(
        "--cases", type=choices(tuple(CASES)), nargs="?", const=list(CASES), help="the table of cases, or these of it"
    )
    parser.add_argument("--mode", type=choices(MODES), default=list(MODES))
    parser.add_argument("--precision", type=choices(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--compile", action="store_true", help="time torch.compile too, with --cases of ours alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, in pixels")
    parser.add_argument("--reference", default=REFERENCE, help="the model that ratios are to")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each model and cell, 5 turns at least")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--authors", type=Path, help="folder that holds checkouts of the authors' repositories")
    parser.add_argument("--output", type=Path, help="JSON file, docs/speed.json or docs/cases.json by default")
    options = parser.parse_args()
    keep_freed_memory()
    if options.cases:
        if options.authors:
            peers.check_names([CASES[name].authors for name in options.cases], options.authors)
        run_cases(options)
    else:
        peers.check_names([options.reference, *options.models], options.authors)
        run_models(options)


if __name__ == "__main__":
    main()
