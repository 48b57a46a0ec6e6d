"""`metamix benchmark`: measure how fast models are in each engine on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import metamix  # noqa: F401 - registers the models with timm
from metamix.utils.arguments import counts, not_negative, positive, words
from metamix.utils.files import write_text
from metamix.utils.text import exit_with_message
from metamix.utils.user_modules import add_imports, import_modules

EXAMPLES = """examples:
  metamix benchmark metaformer_pooling_s12 resnet18
  metamix benchmark metaformer_raft_s12 --engines eager,openvino --precisions fp32,int8 --batch-sizes 1 --threads 1"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and write the JSON. Exits with a message if the input is invalid."""
    from metamix.deploy.benchmark import ENGINES, PRECISIONS, benchmark, table

    options = make_parser(tuple(ENGINES), PRECISIONS).parse_args(argv)
    with exit_with_message(ValueError, OSError, ImportError):
        import_modules(options.imports)
        if options.json:  # refuse a wrong path before the measurement
            if options.json.is_dir():
                raise ValueError(f"--json {options.json} is a folder: give a file")
            options.json.parent.mkdir(parents=True, exist_ok=True)
        result = benchmark(
            options.models,
            engines=options.engines,
            precisions=options.precisions,
            batch_sizes=options.batch_sizes,
            img_size=options.img_size,
            threads=options.threads,
            seconds=options.seconds,
            reference=options.reference,
        )
        print(table(result))
        if options.json:
            write_text(options.json, json.dumps(result, indent=1) + "\n")


def make_parser(engines: Sequence[str], precisions: Sequence[str]) -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="metamix benchmark",
        description="Time models in several engines, in turns. Weights and images are random.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of a model of metamix or timm")
    for name, known in (("engines", engines), ("precisions", precisions)):
        parser.add_argument(f"--{name}", type=words, default=list(known), help=f"default: {','.join(known)}")
    parser.add_argument("--batch-sizes", type=counts, default=[1, 8], metavar="N,N", help="default: 1,8")
    parser.add_argument(
        "--img-size", type=positive, metavar="N", help="side of the images in pixels (default: the model's)"
    )
    parser.add_argument("--threads", type=positive, help="number of threads (default: torch's)")
    parser.add_argument("--seconds", type=not_negative, default=1.0, help="seconds per row of the table (default: 1)")
    parser.add_argument("--reference", metavar="MODEL", help="model that speedups refer to (default: the first)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON too")
    add_imports(parser)
    return parser
