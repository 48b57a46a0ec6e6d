"""`metamix export`: write a trained model as ONNX, OpenVINO IR or torch.export, and check that it computes the same."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import metamix  # noqa: F401 - registers the models with timm
from metamix.deploy.artifact import FORMATS, PRECISIONS
from metamix.utils.arguments import counts, not_negative, positive
from metamix.utils.text import exit_with_message, plural, printable
from metamix.utils.user_modules import add_imports, import_modules

EXAMPLES = """examples:
  metamix export metaformer_raft_nano.cifar10 --format onnx --output raft-onnx
  metamix export metaformer_raft_nano.cifar10 --format openvino --precision int8 --data cifar10 --output raft-int8
  metamix predict --model raft-int8 photo.jpg"""


def main(argv: Sequence[str] | None = None) -> None:
    """Export a model. Exits with a message if the input is invalid or a limit is missed."""
    options = make_parser().parse_args(argv)
    with exit_with_message(ValueError, OSError, ImportError):
        import_modules(options.imports)
        from metamix.tasks.export import export

        report = export(
            options.source,
            output=options.output,
            model=options.model,
            format=options.format,
            precision=options.precision,
            img_size=options.img_size,
            dynamic=options.dynamic,
            compiled=options.compile,
            data=options.data,
            data_dir=options.data_dir,
            images=options.images,
            max_drop=options.max_drop,
            threads=options.threads,
            seconds=options.seconds,
        )
    print(printable(summary(report, options.output)))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="metamix export",
        description="Write a trained model for an inference engine, and check that it computes the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="MODEL", help="NAME.TAG of metamix or timm, a run folder or a weight file")
    parser.add_argument("--model", metavar="NAME", help="name of the model, for a file that does not name it")
    parser.add_argument("--format", default="onnx", help=f"{', '.join(FORMATS)} (default: onnx)")
    parser.add_argument("--precision", default="fp32", help=f"{', '.join(PRECISIONS)} (default: fp32)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--img-size", type=size, metavar="N or H,W", help="images in pixels (default: as in training)")
    parser.add_argument(
        "--dynamic", action="store_true", help="accept any height and width; any batch size is always accepted"
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch: also compile the graph for this CPU, which takes minutes"
    )
    parser.add_argument("--data", help="data set to compare on, and to calibrate int8 on (default: random images)")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--images", type=positive, metavar="N", help="compare on at most N images (default: all)")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="points of accuracy that int8 may lose on training images not used for calibration (default: 0.3)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads of the speed measurement (default: torch's number)"
    )
    parser.add_argument(
        "--seconds", type=not_negative, default=4.0, help="seconds of the speed measurement; 0: none (default: 4)"
    )
    add_imports(parser)
    return parser


def size(text: str) -> int | tuple[int, int]:
    """Parse "224" or "480,640"."""
    sides = counts(text)
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} has more than two sides: give one for a square, or height,width")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def summary(report: dict[str, Any], folder: Path) -> str:
    """Return the lines that the command prints."""
    lines = [f"note: {note}" for note in report["notes"]]
    lines.append(f"parity: {parity(report['parity'])}")
    if quantized := report["quantization"]:
        lines.append(
            f"int8: {quantized['fp32']:.2f} to {quantized['int8']:.2f} on training images held out, "
            f"{len(quantized['kept'])} of {quantized['layers']} layers kept in fp32"
        )
    for name, scores in report["scores"].items():
        listed = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
        lines.append(f"{name}: {listed or 'no score, since the images show no object'}")
    for name, figures in report["speed"].items():
        lines.append(
            f"{name}: {figures['batch_1_ms']:.3g} ms for 1 image, {figures['batch_8_ms']:.3g} ms for 8 "
            f"({figures['img_per_s']:.0f} img/s)"
        )
    megabytes = sum(report["files"].values()) / 1e6
    lines.append(f"written: {folder}, {megabytes:.1f} MB, {report['format']} {report['precision']}")
    return "\n".join(lines)


def parity(figures: dict[str, Any]) -> str:
    """Say how close the outputs are."""
    on = f"on {plural(figures['images'], 'image')} ({figures['on']})"
    if "largest_difference_px" in figures:
        return (
            f"{figures['objects'] - figures['unmatched']:,} of {figures['objects']:,} objects are found, their boxes "
            f"differ by up to {figures['largest_difference_px']:.2g} pixels, {on}"
        )
    same = f", same class for {figures['same_top1']:.2%}" if "same_top1" in figures else ""
    return f"outputs differ by at most {figures['of_the_deviation']:.1e} standard deviations{same}, {on}"
