"""Measure how the time and the memory for one image grow with its size, for every mixer: results/scaling.json.

    python -m benchmarks.measure.scaling                        all mixers, 32 to 1024 pixels
    python -m benchmarks.measure.scaling --mixers raft,nin      only these; the file keeps the rows of other mixers

The models are `metaformer_<mixer>_s12`, made for 224 pixels and run on images of each size: inference, batch 1, fp32,
channels_last. At each size, all mixers take turns. Memory is the peak of a process that runs one pass of each size in
rising order, minus its memory before the first pass. `python -m benchmarks.report.figures` draws the picture.
"""

import argparse
from pathlib import Path

from benchmarks.measure import reference_models, timing
from benchmarks.measure.timing import Subject, list_of
from benchmarks.paths import RESULTS
from metamix.mixers import list_mixers
from metamix.utils.system import keep_freed_memory
from metamix.utils.timing import interleaved

SIZES = (32, 64, 128, 224, 256, 512, 1024)


def subject(mixer: str, size: int) -> Subject:
    """Make a model for 224 pixels, and images whose side is `size`."""
    return Subject(reference_models.create(f"metaformer_{mixer}_s12", 224), 1, size, "channels_last")


def added_mib(mixer: str) -> list[float]:
    """Return, for each of SIZES, the MiB that the passes up to this size add to the peak memory of this process."""
    steps = {size: subject(mixer, size).step("infer", "fp32") for size in SIZES}
    before = timing.memory_mib(peak=False)
    peaks = []
    for step in steps.values():
        step()
        peaks.append(round(timing.memory_mib() - before, 1))
    return peaks


def measure(mixers: list[str], seconds: float) -> list[dict]:
    memory = {mixer: timing.in_fresh_process(added_mib, mixer) for mixer in mixers}
    rows = []
    for i, size in enumerate(SIZES):
        steps = {mixer: subject(mixer, size).step("infer", "fp32") for mixer in mixers}
        for mixer, spent in interleaved(steps, seconds).items():
            rows.append(dict(mixer=mixer, size=size, ms=round(1000 * spent, 3), mib=memory[mixer][i]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", type=list_of(tuple(list_mixers())), default=list_mixers(), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds for all mixers at a size; at least 5 turns")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json", help="JSON file")
    options = parser.parse_args()
    keep_freed_memory()
    timing.save(options.output, timing.machine(), measure(options.mixers, options.seconds), ("mixer", "size"))


if __name__ == "__main__":
    main()
