"""Time the papers' models in our code and in the authors' code, in turns: results/authors_speed.json.

    python -m benchmarks.measure.authors_speed --authors CLONES
    python -m benchmarks.measure.authors_speed --authors CLONES --models raftmlp_s,ninformer_cifar --mode infer

CLONES holds the authors' repositories, each in a folder of its name. timm's PoolFormer and the package `wavemix` need
no clone. A model whose authors' code is missing is left out.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.measure import reference_models, timing
from benchmarks.measure.arguments import add_modes, add_run, list_of
from benchmarks.measure.speed import Bench
from benchmarks.paths import RESULTS
from metamix.utils.system import keep_freed_memory


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        authors: name of the authors' model in `reference_models`.
        size: side of the images in pixels.
        batch: images in a step.
    """

    authors: str
    size: int
    batch: int


MODELS = {
    "metaformer_pooling_s12": Published("poolformer_s12", 224, 8),
    "raftmlp_s": Published("authors_raftmlp_s", 224, 8),
    "wavemix_192_16": Published("authors_wavemix_192_16", 224, 2),
    "wavemix_144_7": Published("authors_wavemix_144_7", 32, 32),
    "ninformer_cifar": Published("authors_ninformer_cifar", 32, 128),
    "minattn_symmetric_nomlp_h4_cifar": Published("authors_minattn_symmetric_nomlp_h4_cifar", 32, 256),
}


def compare(bench: Bench, name: str, mode: str, precision: str, seconds: float, compile: bool) -> dict:
    """Time a model and its authors' in turns.

    Returns:
        A result row. `ratio` is the authors' time over ours; it is missing if their code fails.
    """
    model = MODELS[name]
    pair = [(each, model.batch, model.size) for each in (name, model.authors)]
    found = bench.measure(pair, mode, precision, seconds * len(pair), [name] if compile else [])
    row = dict(model=name, mode=mode, precision=precision, batch=model.batch, size=model.size)
    row |= {key: value for key, value in found[name].items() if key != "format"}
    if model.authors in found:
        theirs = found[model.authors]["ms"]
        row |= dict(authors_ms=theirs, ratio=round(theirs / row["ms"], 3))
        if (mode, precision) == ("train", "fp32"):
            row["mib"], row["authors_mib"] = (bench.peak_mib(*each, precision) for each in pair)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=list_of(tuple(MODELS)), default=list(MODELS), help="comma list")
    add_modes(parser)
    add_run(parser)
    parser.add_argument("--output", type=Path, default=RESULTS / "authors_speed.json", help="JSON file")
    options = parser.parse_args()
    keep_freed_memory()
    missing = {name: reference_models.lacks(MODELS[name].authors, options.authors) for name in options.models}
    rows = []
    for name in (name for name in options.models if not missing[name]):
        bench = Bench(options.device, options.authors)
        for mode, precision in product(options.mode, options.precision):
            rows.append(compare(bench, name, mode, precision, options.seconds, options.compile))
            print(*(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    timing.save(options.output, timing.machine(options.device), rows, ("model", "mode", "precision"))
    columns = ["model", "mode", "precision", "ms", "authors_ms", "ratio", "compiled_ms", "mib", "authors_mib"]
    print("", table(columns, [[row.get(column, "") for column in columns] for row in rows]), sep="\n")
    for name, need in missing.items():
        if need:
            print(f"Not timed: {name}, since {MODELS[name].authors} {need}.")


if __name__ == "__main__":
    main()
