"""Measure deployed models: results/deploy.json.

    python -m benchmarks.measure.deploy convert --folder converted
    python -m benchmarks.measure.deploy speed --folder converted
    python -m benchmarks.measure.deploy accuracy --tag cifar10 --data-dir cifar10
    python -m benchmarks.measure.deploy profile --models metaformer_raft_s12 --threads 1

`speed` times models in each engine, in several runs. In a run, models of one size take turns with their reference:
timm's poolformer_s12 for s12, timm's tf_efficientnet_lite0 for tiny, and identity for nano. `convert` writes the files
that `speed` needs, and may run on a busy machine. `accuracy` exports the shipped models of a tag in lower precision
and compares their test accuracy and file sizes with fp32. `profile` shows in which operators OpenVINO spends its time.
New speeds replace all earlier speeds of the same models. A new profile replaces the earlier profile of the same model,
precision and batch size. A new accuracy replaces the earlier accuracy of the same model, format, precision and machine.
Earlier speeds and profiles are dropped if the machine, the number of threads or a version differs (for speeds, the
versions of metamix and nncf do not count). Earlier speeds are also dropped if the number of runs differs, and earlier
accuracies if the tag differs.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure.timing import list_of, today
from benchmarks.paths import RESULTS, read_json, write_json
from benchmarks.weight_cards import load_family, weights_digest
from metamix import list_mixers
from metamix.deploy import benchmark, export
from metamix.deploy.benchmark import ENGINES, FORMAT_OF, PRECISIONS, BenchmarkedModel, cells_of, random_model
from metamix.deploy.formats.openvino import compile_openvino
from metamix.utils.extras import installed
from metamix.utils.system import processor, versions
from metamix.utils.text import exit_with_message

FILE = RESULTS / "deploy.json"
# The model that the models of a size are compared with.
REFERENCES = {"s12": "poolformer_s12", "tiny": "tf_efficientnet_lite0", "nano": "metaformer_identity_nano"}
SIDE = 224  # side of the images of s12 and tiny in pixels
FAMILY = [f"metaformer_{mixer}_{size}" for size in REFERENCES for mixer in list_mixers()]
MODELS = (*FAMILY, REFERENCES["tiny"])
LOWER = ("onnx int8", "openvino bf16", "openvino int8")


def convert(options: argparse.Namespace) -> None:
    """Write the files of all models that `speed` needs."""
    cells = [cell for cell in cells_of(options.engines, options.precisions) if cell[0] in FORMAT_OF]
    for name in options.models:
        start = time.perf_counter()
        options.folder.mkdir(parents=True, exist_ok=True)
        subject = random_model(name, side_of(name))
        for cell in cells:
            subject.file(*cell, options.folder)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def speed(options: argparse.Namespace) -> None:
    """Time models interleaved with their reference; print and save the results."""
    for reference in dict.fromkeys(map(reference_of, options.models)):
        names = [name for name in options.models if reference_of(name) == reference]
        result = benchmark(
            names,
            engines=options.engines,
            precisions=options.precisions,
            img_size=side_of(reference),
            threads=options.threads,
            seconds=options.seconds,
            runs=options.runs,
            reference=reference,
            folder=options.folder,
        )
        for row in result["rows"]:
            if row["model"] in names:
                print(*(row[key] for key in ("model", "engine", "precision", "batch", "ms", "speedup", "from", "to")))
        for cell, why in result["failed"].items():
            print(f"{cell} failed: {why}")
        sys.stdout.flush()
        save("speed", add_speeds(load("speed"), names, result))


def reference_of(name: str) -> str:
    """Return the model that a model is compared with."""
    return REFERENCES.get(name.rpartition("_")[2], name)


def side_of(name: str) -> int | None:
    """Return the side of the images in pixels; None for the model's default size."""
    return None if name.endswith("_nano") else SIDE


def add_speeds(earlier: dict, names: Sequence[str], result: dict) -> dict:
    """Replace the earlier rows of some models, `names`, by the rows in the `result` of their `benchmark`.

    All earlier rows are dropped if the machine, a version, the number of threads or the number of runs differs.
    """

    def conditions(one: dict) -> list:
        # metamix may change without changing the models, and nncf chooses only the scales of int8 layers.
        versions = {k: version for k, version in one.get("versions", {}).items() if k not in ("metamix", "nncf")}
        return [versions, *(one.get(key) for key in ("machine", "threads", "runs"))]

    same = conditions(earlier) == conditions(result)
    reference = result.pop("reference")
    base = {row["batch"]: row["ms"] for row in reversed(result["rows"]) if row["model"] == reference}
    of_models = [row for row in result["rows"] if row["model"] in names]
    fresh = [row | {"reference": reference, "reference_ms": base[row["batch"]]} for row in of_models]
    kept = [row for row in earlier["rows"] if row["model"] not in names] if same else []
    failed = {cell: why for cell, why in earlier["failed"].items() if cell.split()[0] not in names} if same else {}
    return result | {"rows": kept + fresh, "failed": failed | result["failed"]}


def load(part: str) -> dict:
    """Read a part of the result file; return {} if it has no such part."""
    return read_json(FILE, {}).get(part, {})


def save(part: str, result: dict) -> None:
    """Replace a part of the result file."""
    earlier = read_json(FILE, {})
    write_json(FILE, earlier | {part: result})


def profile(options: argparse.Namespace) -> None:
    """Print and save the share of time that OpenVINO spends in each type of operator, for each model."""
    threads = options.threads or torch.get_num_threads()
    about = {"machine": processor(), "threads": threads, "versions": versions() | installed(["openvino"])}
    with TemporaryDirectory() as temporary:
        for name in options.models:
            subject, folder = random_model(name, side_of(name)), options.folder or Path(temporary)
            row = {"model": name, "precision": options.precision, "batch": options.batch_size}
            row |= {"shares": operator_shares(subject, folder, options.precision, options.batch_size, threads)}
            earlier = load("profile")
            same = all(earlier.get(key) == value for key, value in about.items())
            cell = ("model", "precision", "batch")
            kept = [old for old in earlier["rows"] if any(old[key] != row[key] for key in cell)] if same else []
            save("profile", about | {"measured": today(), "rows": [*kept, row]})
            print(name, *(f"{kind} {share:.1%}" for kind, share in row["shares"].items() if share >= 0.01), flush=True)


def operator_shares(
    subject: BenchmarkedModel, folder: Path, precision: str, batch: int, threads: int, runs: int = 20
) -> dict[str, float]:
    """Return the share of a model's time in OpenVINO that each type of operator takes, the largest first.

    The types come from OpenVINO's counters after fusing: a `Reorder` changes the memory layout, and a `Subgraph` holds
    several operators, such as a gate or a norm, in one kernel. The shortest of `runs` times of each operator counts,
    since other programs can only make it slower.
    """
    file = subject.file("openvino", precision, folder)
    images = subject.images[torch.arange(batch) % len(subject.images)].numpy()
    request = compile_openvino(file, threads, precision, images.shape, PERF_COUNT="YES").create_infer_request()
    request.infer([images])
    shortest: dict[tuple[str, str], float] = {}
    for _ in range(runs):
        request.infer([images])
        for node in request.profiling_info:
            key, seconds = (node.node_type, node.node_name), node.real_time.total_seconds()
            shortest[key] = min(seconds, shortest.get(key, seconds))
    spent: Counter[str] = Counter()
    for (kind, _), seconds in shortest.items():
        spent[kind] += seconds
    return {kind: round(seconds / spent.total(), 4) for kind, seconds in spent.most_common() if seconds}


def accuracy(options: argparse.Namespace) -> None:
    """Export the shipped models in fp32 and lower precision; print and save accuracy and file sizes."""
    about = {"tag": options.tag, "machine": processor(), "measured": today()}
    for mixer, card in load_family(options.tag).items():
        if mixer not in options.mixers:
            continue
        rows = []
        for format, precision in map(str.split, options.exports):
            with TemporaryDirectory() as folder:
                place = dict(format=format, data=card["recipe"]["data"], data_dir=options.data_dir, seconds=0)
                fp32 = export(card["name"], output=Path(folder) / "fp32", **place | {"data": None, "data_dir": None})
                report = export(
                    card["name"],
                    output=Path(folder) / precision,
                    precision=precision,
                    max_drop=options.max_drop if precision == "int8" else None,
                    **place,
                )
            row = {"model": card["name"], "weights": weights_digest(card), "format": format, "precision": precision}
            row |= {"limit": options.max_drop, "quantization": report["quantization"]}
            row |= {"eager_top1": report["scores"]["eager"]["top1"], "top1": report["scores"]["exported"]["top1"]}
            row |= {"fp32_bytes": sum(fp32["files"].values()), "bytes": sum(report["files"].values())}
            rows.append(row)
            print(*(row[key] for key in ("model", "format", "precision", "eager_top1", "top1", "bytes")), flush=True)
        save("accuracy", add_accuracy(load("accuracy"), about, rows))


def add_accuracy(earlier: dict, about: dict, rows: list[dict]) -> dict:
    """Add rows of a model, replace this machine's rows of the same format and precision, and drop rows of other tags.

    `about` has the tag, the machine and the date of the new rows.
    """
    fresh = {cell_of(row) for row in rows}
    parts = [part for part in earlier.get("parts", []) if part["tag"] == about["tag"]]
    others = [part for part in parts if part["machine"] != about["machine"]]
    kept = [row for part in parts if part not in others for row in part["rows"] if cell_of(row) not in fresh]
    return {"parts": [*others, about | {"rows": kept + rows}]}


def cell_of(row: dict) -> tuple[str, str, str]:
    """Return the model, format and precision of a row of `accuracy`."""
    return row["model"], row["format"], row["precision"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    converted = parts.add_parser("convert", help="write the files that `speed` needs")
    timed = parts.add_parser("speed", help="time models in each engine")
    for part in (converted, timed):
        part.add_argument("--models", type=list_of(MODELS), default=list(MODELS), help="comma-separated names")
        part.add_argument("--engines", type=list_of(tuple(ENGINES)), default=["eager", "onnxruntime", "openvino"])
        part.add_argument("--precisions", type=list_of(PRECISIONS), default=list(PRECISIONS))
        part.add_argument("--folder", type=Path, required=part is converted, help="folder of the converted models")
    timed.add_argument("--runs", type=int, default=3, help="number of repetitions; medians are reported")
    timed.add_argument("--threads", type=int, help="number of threads to compute with (default: torch's)")
    timed.add_argument(
        "--seconds",
        type=float,
        default=0.5,
        help="average seconds for each model, engine, precision and batch size in each run",
    )
    scored = parts.add_parser("accuracy", help="compare the accuracy of lower precision with fp32")
    scored.add_argument("--tag", default="cifar10", help="tag of the weights")
    scored.add_argument("--data-dir", help="folder of the data, as in training")
    scored.add_argument("--mixers", type=list_of(list_mixers()), default=list_mixers(), help="comma-separated names")
    scored.add_argument("--exports", type=list_of(LOWER), default=list(LOWER), help='such as "onnx int8,openvino bf16"')
    scored.add_argument("--max-drop", type=float, default=0.2, help="points that int8 may lose on training images")
    profiled = parts.add_parser("profile", help="measure the share of OpenVINO's time in each type of operator")
    profiled.add_argument("--models", type=list_of(MODELS), default=list(MODELS[:7]), help="comma-separated names")
    profiled.add_argument("--precision", choices=PRECISIONS, default="fp32")
    profiled.add_argument("--batch-size", type=int, default=8, help="images in a call")
    profiled.add_argument("--threads", type=int, help="number of threads to compute with (default: torch's)")
    profiled.add_argument("--folder", type=Path, help="folder of the converted models (default: they are not kept)")
    options = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError, ImportError):
        {"convert": convert, "speed": speed, "accuracy": accuracy, "profile": profile}[options.part](options)


if __name__ == "__main__":
    main()
