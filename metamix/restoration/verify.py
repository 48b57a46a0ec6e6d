"""Check the images of a restoration data set.

    metamix verify DIR --task restoration            pairs: DIR/input and DIR/target, or in DIR/train and DIR/test
    metamix verify DIR --task restoration --clean    clean images, which training degrades

Every image is decoded, and names, sizes and the scale of pairs are checked. Each problem is printed. The exit code is 1
if there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from metamix.data import CorruptImage
from metamix.data.find import Unmatched
from metamix.utils.text import exit_with_message, plural, printable

from .data import read_tensor
from .degradations import PAIRS
from .options import RestorationOptions
from .sources import ImagePair, find_roots, find_samples, leave_out, samples_of, scale_of_pair


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix verify` for restoration.

    Returns:
        1 if something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="metamix verify --task restoration",
        description="Check the images of a restoration data set.",
        allow_abbrev=False,
    )
    parser.add_argument("data", type=Path, help="folder of the images, or one with train/ and test/")
    parser.add_argument("--clean", action="store_true", help="the images are clean ones, without partners")
    for name, what in (
        ("input_folder", "folder of the degraded images of pairs"),
        ("target_folder", "folder of the clean images of pairs"),
        ("input_name", "name of the degraded image of the clean image {name}"),
    ):
        default = getattr(RestorationOptions, name)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"{what} (default: {default})")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError):
        options = RestorationOptions(
            data_dir=str(args.data),
            degradation="noise:0" if args.clean else PAIRS,
            input_folder=args.input_folder,
            target_folder=args.target_folder,
            input_name=args.input_name,
            crop=1,
        )
    return 1 if verify(options) else 0


def verify(options: RestorationOptions) -> int:
    """Print each problem of a data set, and their number.

    Returns:
        The number of problems.
    """
    paired = options.degradation == PAIRS
    samples, unmatched = list[ImagePair](), list[str]()
    roots = find_roots(options).values()
    for root in roots:
        try:
            found = find_samples(root, options, paired)
        except Unmatched as error:
            unmatched += error.problems
            found = samples_of(error.pairs)
        except (ValueError, OSError) as error:
            unmatched.append(str(error))
            continue
        samples += leave_out(found, root, roots)  # those of a folder inside come with that folder
    problems = 0
    for problem in chain(unmatched, find_problems(samples)):
        print(printable(problem))
        problems += 1
    count = plural(len(samples), "pair" if paired else "image")
    print(f"{plural(problems, 'problem')}; {count} checked" if problems else f"all {count} can be read")
    return problems


def find_problems(samples: Sequence[ImagePair]) -> Iterator[str]:
    """Decode the images of both sides, and describe each that cannot be read and each pair of another scale."""
    scale = None
    for sample in tqdm(samples, unit="img", leave=False, disable=None):
        broken = False
        for path in filter(None, (sample.target, sample.input)):
            try:
                read_tensor(path, "rgb")
            except CorruptImage as error:
                broken = True
                yield str(error)
        if sample.input is None or broken:
            continue
        try:
            scale = scale_of_pair(sample, scale)
        except ValueError as error:
            yield str(error)
