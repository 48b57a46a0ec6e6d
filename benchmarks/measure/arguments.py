"""Define command line arguments that several measurements share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure.timing import MODES, PRECISIONS
from metamix.utils.text import did_you_mean


def list_of(accepted: Sequence[str]) -> Callable[[str], list[str]]:
    """Make an argparse type for a comma-separated list of some of `accepted`."""

    def parse(words: str) -> list[str]:
        given = words.split(",")
        for word in given:
            if word not in accepted:
                raise argparse.ArgumentTypeError(
                    f"{word!r}{did_you_mean(word, accepted)} Accepted: {', '.join(accepted)}."
                )
        return given

    return parse


def add_modes(parser: argparse.ArgumentParser) -> None:
    """Add --mode and --precision."""
    parser.add_argument("--mode", type=list_of(MODES), default=list(MODES), help="comma list of infer, train")
    parser.add_argument(
        "--precision", type=list_of(PRECISIONS), default=list(PRECISIONS), help="comma list of fp32, bf16"
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add --batch and --size."""
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images in pixels")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add --compile, --seconds, --device and --authors."""
    parser.add_argument("--compile", action="store_true", help="time torch.compile of the models too")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for each model, mode and precision; 5 turns at least"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--authors", type=Path, help="folder with clones of the authors' repositories")
