"""Check the images of a restoration data set.

    metamix verify DIR --task restoration            pairs: DIR/input and DIR/target, or in DIR/train and DIR/test
    metamix verify DIR --task restoration --clean    clean images, which training degrades

Names, sizes and scale of pairs are checked, then every image is decoded. Each problem is printed. The exit code is 1 if
there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from metamix.data import CorruptImage
from metamix.utils.text import readable

from .data import RestorationData, read_tensor
from .degradations import PAIRS
from .options import RestorationOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix verify` for restoration.

    Returns:
        1 if something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="metamix verify", description="Check the images of a restoration data set.")
    parser.add_argument("data", type=Path, help="folder of the images, or one with train/ and test/")
    parser.add_argument("--clean", action="store_true", help="the images are clean ones, without partners")
    for name in "input_folder", "target_folder", "input_name":
        default = getattr(RestorationOptions, name)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"of pairs (default: {default})")
    words = parser.parse_args(argv)
    try:
        options = RestorationOptions(
            data_dir=str(words.data),
            degradation="noise:0" if words.clean else PAIRS,
            input_folder=words.input_folder,
            target_folder=words.target_folder,
            input_name=words.input_name,
            crop=1,
        )
        samples = RestorationData(options).all_samples()
    except (ValueError, OSError) as error:
        print(readable(str(error)))
        return 1
    broken = 0
    for path in (path for sample in samples for path in (sample.target, sample.input) if path is not None):
        try:
            read_tensor(path, "rgb")
        except CorruptImage as error:
            print(readable(str(error)))
            broken += 1
    count = f"{len(samples):,} {'images' if words.clean else 'pairs'}"
    print(f"{broken} images of {count} cannot be read" if broken else f"all {count} can be read")
    return 1 if broken else 0
