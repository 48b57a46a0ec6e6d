"""Time the papers' models in our code and in the authors' code: results/authors_speed.json.

    python -m benchmarks.measure.authors_speed
    python -m benchmarks.measure.authors_speed --models raftmlp_s,ninformer_cifar --authors CLONES --mode infer

timm's PoolFormer and the `wavemix` package need no clone. The other authors' code is timed where `--authors` has its
repository. Otherwise the time from another machine (`MODELS`) is rescaled by timm's poolformer_s12, which is timed on
both.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.measure import reference_models, timing
from benchmarks.measure.arguments import add_modes, add_run, list_of
from benchmarks.measure.speed import REFERENCE, Bench
from benchmarks.paths import RESULTS
from metamix.utils.system import keep_freed_memory

CELLS = [("infer", "fp32"), ("train", "fp32"), ("infer", "bf16"), ("train", "bf16")]


@dataclass(frozen=True)
class Published:
    """A published model and the cost of its authors' code on two AMD EPYC cores with torch 2.13.

    Attributes:
        authors: name of the authors' model in `reference_models`.
        size: side of the images in pixels.
        batch: images in a step.
        milliseconds: of one step by (mode, precision); None where their code fails.
        mib: peak memory of fp32 training.
    """

    authors: str
    size: int
    batch: int
    milliseconds: dict[tuple[str, str], float | None]
    mib: int


def published(authors: str, size: int, batch: int, milliseconds: tuple[float | None, ...], mib: int) -> Published:
    return Published(authors, size, batch, dict(zip(CELLS, milliseconds)), mib)


MODELS = {
    "metaformer_pooling_s12": published("poolformer_s12", 224, 8, (127, 382, 125, 238), 794),
    "raftmlp_s": published("authors_raftmlp_s", 224, 8, (238, 674, 139, 300), 973),
    "wavemix_192_16": published("authors_wavemix_192_16", 224, 2, (129, 576, 118, None), 721),
    "wavemix_144_7": published("authors_wavemix_144_7", 32, 32, (166, 771, 129, None), 743),
    "ninformer_cifar": published("authors_ninformer_cifar", 32, 128, (456, 3006, 156, 1711), 1862),
    "minattn_symmetric_nomlp_h4_cifar": published(
        "authors_minattn_symmetric_nomlp_h4_cifar", 32, 256, (8.2, 44, 7.8, 46), 106
    ),
}


def make_row(name: str, mode: str, precision: str, found: dict[str, dict]) -> dict:
    """Make the result row of a model.

    `ratio` is the authors' time over ours. Their time is that of their code in this run if it ran, else that on the
    other machine, rescaled by the speed of the reference here.
    """
    model, ours, here = MODELS[name], found[name], found[REFERENCE]["ms"]
    elsewhere = model.milliseconds[mode, precision]
    rescaled = elsewhere and elsewhere * here / MODELS["metaformer_pooling_s12"].milliseconds[mode, precision]
    measured = found.get(model.authors, {}).get("ms")
    row = dict(model=name, mode=mode, precision=precision, batch=model.batch, size=model.size, ms=ours["ms"])
    row["reference_ms"] = here
    if "compiled_ms" in ours:
        row["compiled_ms"] = ours["compiled_ms"]
    row |= dict(elsewhere_ms=elsewhere, rescaled_ms=rescaled and round(rescaled, 3), authors_ms=measured)
    theirs = measured or rescaled
    return row | dict(ratio=theirs and round(theirs / ours["ms"], 3))


def print_row(row: dict, header: bool) -> None:
    mib = f"{row['mib']} / {row.get('authors_mib', '-')} / {MODELS[row['model']].mib}" if "mib" in row else ""
    cells = [row["model"], row["mode"], row["precision"], number(row["ms"]), number(row.get("compiled_ms"))]
    cells += [number(row[key]) for key in ("reference_ms", "elsewhere_ms", "rescaled_ms", "authors_ms")]
    cells += [number(row["ratio"], 2), mib]
    columns = ["model", "mode", "precision", "ours, ms", "compiled", REFERENCE]
    columns += ["authors: elsewhere", "rescaled", "here", "ratio", "MiB: ours / authors here / elsewhere"]
    lines = table(columns, [cells]).splitlines()
    print("\n".join(lines if header else lines[2:]), flush=True)


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=list_of(tuple(MODELS)), default=list(MODELS), help="comma list")
    add_modes(parser)
    add_run(parser)
    parser.add_argument("--output", type=Path, default=RESULTS / "authors_speed.json", help="JSON file")
    options = parser.parse_args()
    if options.authors:
        reference_models.check_names([MODELS[name].authors for name in options.models], options.authors)
    keep_freed_memory()
    rows, missing = [], []
    for name in options.models:
        model, bench = MODELS[name], Bench(options.device, options.authors)
        need = reference_models.lacks(model.authors, options.authors)
        models = {(name, model.batch, model.size), (REFERENCE, 8, 224)}
        if need:
            missing.append(f"{model.authors} {need}.")
        else:
            models.add((model.authors, model.batch, model.size))
        for mode, precision in product(options.mode, options.precision):
            compiled = [name] if options.compile else ()
            found = bench.measure(sorted(models), mode, precision, options.seconds * len(models), compiled)
            rows.append(make_row(name, mode, precision, found))
            if (mode, precision) == ("train", "fp32"):
                rows[-1]["mib"] = bench.peak_mib(name, model.batch, model.size, precision)
                if not need:
                    rows[-1]["authors_mib"] = bench.peak_mib(model.authors, model.batch, model.size, precision)
            print_row(rows[-1], header=len(rows) == 1)
    timing.save(options.output, timing.machine(options.device), rows, ("model", "mode", "precision"))
    if missing:
        print("\nNot timed here:", *missing, sep="\n")


if __name__ == "__main__":
    main()
