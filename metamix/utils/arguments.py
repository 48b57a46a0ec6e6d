"""Types and arguments for argparse that several commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def positive(text: str) -> int:
    """Parse a whole number of at least 1; a type for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> float:
    """Parse a number of at least 0; a type for argparse."""
    return _number(text, math.inf, "a number of at least 0")


def share(text: str) -> float:
    """Parse a number from 0 to 1; a type for argparse."""
    return _number(text, 1, "a number from 0 to 1")


def _number(text: str, most: float, accepted: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most or number == math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {accepted}")
    return number


def words(text: str) -> list[str]:
    """Parse words with commas between them; a type for argparse."""
    return [word.strip() for word in text.split(",")]


def counts(text: str) -> list[int]:
    """Parse whole numbers of at least 1 with commas between them; a type for argparse."""
    return [positive(word) for word in words(text)]


def add_places(parser: argparse.ArgumentParser, output: str) -> None:
    """Add the images of a command, and the folder that it writes to; `output` is the default."""
    parser.add_argument("places", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder (default: {output})")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the device to compute on."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
