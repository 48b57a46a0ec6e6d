"""Make the table of paired comparisons on shared test images, from results/paired.json."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table
from benchmarks.measure.paired import FILE

BASELINES = "identity", "pooling"


def paired_table(tag: str) -> str:
    """Make the table of one tag: accuracy with one and six views, and each mixer against `BASELINES`."""
    return lay_out(json.loads(FILE.read_text())[tag])


def lay_out(found: Mapping[str, Any]) -> str:
    """Make the table of one comparison."""
    header = ["mixer", "one view, %", "six views, %", *(f"against {name}" for name in BASELINES)]
    rows = [
        [f"`{mixer}`", f"{top1['one_view']:.2f}", f"{top1['six_views']:.2f}"]
        + [against(found["pairs"], mixer, baseline) for baseline in BASELINES]
        for mixer, top1 in found["top1"].items()
    ]
    return table(header, rows)


def against(pairs: list[dict[str, Any]], mixer: str, baseline: str) -> str:
    """Format the images that only the mixer and only the baseline classifies correctly, and the p-value."""
    for pair in pairs:
        if {pair["first"], pair["second"]} == {mixer, baseline}:
            ours, theirs = pair["only_first"], pair["only_second"]
            if pair["first"] == baseline:
                ours, theirs = theirs, ours
            p = "p < 0.0001" if pair["p"] < 1e-4 else f"p = {pair['p']:.2g}"
            return f"{ours} : {theirs}, {p}"
    return ""
