"""Measure deployed models: results/deploy.json.

    python -m benchmarks.measure.deploy speed
    python -m benchmarks.measure.deploy int8 --tag cifar10 --data-dir cifar10

`speed` times the s12 and nano models in each engine, several times, and keeps the median of the runs. `int8` exports
the shipped models of a tag to int8 and compares accuracy on the test split and sizes of files with fp32. Both print
their table.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.markdown import table
from benchmarks.measure.arguments import list_of
from benchmarks.measure.timing import today
from benchmarks.paths import RESULTS
from benchmarks.weight_cards import by_mixer, load_tag
from metamix import list_mixers
from metamix.deploy import benchmark, export
from metamix.deploy.benchmark import ENGINES, PRECISIONS
from metamix.utils.files import write_text
from metamix.utils.system import processor
from metamix.utils.text import exit_with_message

FILE = RESULTS / "deploy.json"
REFERENCE = "poolformer_s12"
MODELS = tuple(f"metaformer_{mixer}_{size}" for size in ("s12", "nano") for mixer in list_mixers())
FORMATS = ("onnx", "openvino")


def speed(options: argparse.Namespace) -> dict:
    """Run the benchmark several times and return one result, with the medians of the runs and their range."""
    runs = [
        benchmark(
            options.models,
            engines=options.engines,
            precisions=options.precisions,
            threads=options.threads,
            seconds=options.seconds,
            reference=REFERENCE,
        )
        for _ in range(options.runs)
    ]
    return runs[-1] | {"runs": len(runs), "rows": merge([run["rows"] for run in runs])}


def merge(runs: Sequence[Sequence[dict]]) -> list[dict]:
    """Return the rows with the median of times and speedups over runs, and the smallest and largest speedup."""
    merged = []
    for rows in zip(*runs):
        speedups = [row["speedup"] for row in rows]
        ms = median(row["ms"] for row in rows)
        row = rows[0] | {"ms": ms, "img_per_s": round(1000 * rows[0]["batch"] / ms, 1), "speedup": median(speedups)}
        merged.append(row | {"from": min(speedups), "to": max(speedups)})
    return merged


def int8(options: argparse.Namespace) -> dict:
    """Export the shipped models in fp32 and int8, and return accuracy and sizes."""
    rows = []
    for mixer, card in by_mixer(load_tag(options.tag)).items():
        for format in options.formats:
            with TemporaryDirectory() as folder:
                place = dict(format=format, data=card["recipe"]["data"], data_dir=options.data_dir, seconds=0)
                fp32 = export(card["name"], output=Path(folder) / "fp32", **place | {"data": None, "data_dir": None})
                report = export(
                    card["name"], output=Path(folder) / "int8", precision="int8", max_drop=options.max_drop, **place
                )
            row = {"mixer": mixer, "model": card["name"], "format": format, "limit": options.max_drop}
            row |= {"eager_top1": report["scores"]["eager"]["top1"], "top1": report["scores"]["exported"]["top1"]}
            row |= {"fp32_bytes": sum(fp32["files"].values()), "bytes": sum(report["files"].values())}
            rows.append(row | {"quantization": report["quantization"]})
            print(int8_table({"rows": rows[-1:]}).splitlines()[-1], flush=True)
    return {"tag": options.tag, "machine": processor(), "measured": today(), "rows": rows}


def speed_table(result: dict, batch: int = 8) -> str:
    """Make the table of one batch size: milliseconds, and in brackets times as fast as the reference."""
    cells = list(dict.fromkeys((row["engine"], row["precision"]) for row in result["rows"]))
    models: dict[str, dict] = {}
    for row in result["rows"]:
        if row["batch"] == batch:
            models.setdefault(row["model"], {})[row["engine"], row["precision"]] = row
    rows = [
        [f"`{name}`", *(f"{own[cell]['ms']:.1f} ({own[cell]['speedup']:.2f})" if cell in own else "" for cell in cells)]
        for name, own in models.items()
    ]
    return table(["model", *(f"{engine} {precision}" for engine, precision in cells)], rows)


def int8_table(result: dict) -> str:
    """Make the table of what int8 costs and saves."""
    rows = []
    for row in result["rows"]:
        kept = row["quantization"]
        rows.append([
            f"`{row['model']}`",
            row["format"],
            f"{row['eager_top1']:.2f}",
            f"{row['top1']:.2f}",
            f"{row['eager_top1'] - row['top1']:+.2f}",
            f"{row['bytes'] / row['fp32_bytes']:.0%}",
            f"{len(kept['kept'])} of {kept['layers']}",
        ])  # fmt: skip
    columns = ["model", "format", "top-1 fp32, %", "int8, %", "lost", "files, of fp32's", "layers in fp32"]
    return table(columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    timed = parts.add_parser("speed", help="time models in each engine")
    timed.add_argument("--models", type=lambda s: s.split(","), default=list(MODELS), help="names, comma list")
    timed.add_argument("--engines", type=list_of(tuple(ENGINES)), default=["eager", "onnxruntime", "openvino"])
    timed.add_argument("--precisions", type=list_of(PRECISIONS), default=list(PRECISIONS))
    timed.add_argument("--runs", type=int, default=3, help="of which the median is taken")
    timed.add_argument("--threads", type=int, help="to compute with (default: torch's number)")
    timed.add_argument("--seconds", type=float, default=1.0, help="for each cell and run")
    scored = parts.add_parser("int8", help="compare the accuracy of int8 with that of fp32")
    scored.add_argument("--tag", default="cifar10", help="tag of the weights")
    scored.add_argument("--data-dir", help="folder of the data, as in training")
    scored.add_argument("--formats", type=list_of(FORMATS), default=list(FORMATS), help="comma list of onnx, openvino")
    scored.add_argument("--max-drop", type=float, default=0.2, help="points that int8 may lose on training images")
    options = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError, ImportError):
        results = json.loads(FILE.read_text()) if FILE.exists() else {}
        if options.part == "speed":
            results["speed"] = speed(options)
            for batch in (1, 8):
                print(f"\nbatch {batch}: ms, times as fast as {REFERENCE} in eager fp32")
                print(speed_table(results["speed"], batch))
        else:
            results["int8"] = int8(options)
            print(int8_table(results["int8"]))
        write_text(FILE, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
