"""Check the images and masks of a segmentation data set.

    metamix verify DIR --task segmentation                                  DIR/train/images, DIR/train/masks, ...
    metamix verify DIR --task segmentation --data cityscapes

Missing partners, sizes that differ, files that cannot be read, values that are not labels and classes without a pixel
are printed, one in a line, and then the share of the pixels of each class, by split. The exit code is 1 if there is a
problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from metamix.data import CorruptImage
from metamix.data.find import Unmatched
from metamix.utils.text import exit_with_message, plural, printable

from .data import read_image
from .labels import IGNORED, BadMask, Labels, ignored_hint, read_mask
from .options import SegmentationOptions
from .sources import OPENERS, MaskedImage, MaskedSet, open_set, samples_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix verify` for segmentation.

    Returns:
        1 if something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="metamix verify --task segmentation",
        description="Check the images and masks of a segmentation data set.",
        allow_abbrev=False,
    )
    parser.add_argument("data_dir", help="folder of the data set")
    parser.add_argument(
        "--data", choices=list(OPENERS), default="folder", help="layout of the folder (default: folder)"
    )
    parser.add_argument(
        "--ignore-index", type=label_or_none, default=255, help="value of ignored pixels, or none (default: 255)"
    )
    parser.add_argument("--reduce-zero-label", action="store_true", help="ignore the value 0")
    parser.add_argument("--mask-name", default="{name}", help="name of the mask of the image {name}")
    args = parser.parse_args(argv)
    with exit_with_message(ValueError, OSError):
        options = SegmentationOptions(
            data=args.data,
            data_dir=args.data_dir,
            mask_name=args.mask_name,
            ignore_index=args.ignore_index,
            reduce_zero_label=args.reduce_zero_label,
        )
        found = open_set(options)
        labels = found.labels(options.ignore_index, options.reduce_zero_label)
    return 1 if verify(found, labels) else 0


def label_or_none(text: str) -> int | None:
    """Parse a value of a mask, or "none"."""
    if text == "none":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 255, or none")
    return int(text)


def verify(found: MaskedSet, labels: Labels) -> int:
    """Print each problem of a data set, their number, and the share of the pixels of each class.

    Returns:
        The number of problems.
    """
    problems, counts = 0, {}
    for split in found.splits:
        try:
            samples = found.find(split)
        except Unmatched as error:
            print(printable("\n".join(error.problems)))
            problems += len(error.problems)
            samples = samples_of(error.pairs)
        except (ValueError, OSError) as error:
            print(printable(f"{split}: {error}"))
            problems += 1
            continue
        found_pixels = torch.zeros(256, dtype=torch.int64)
        for problem in check_samples(samples, labels, found_pixels):
            print(printable(problem))
            problems += 1
        if not found_pixels.any():  # no mask could be used, which says nothing of the classes
            continue
        counts[split] = found_pixels
        empty = [name for name, count in zip(labels.classes, counts[split]) if not count]
        if empty:
            listed = ", ".join(empty) + ignored_hint(counts[split], labels)
            print(printable(f"{split}: no pixel of {len(empty)} of {len(labels.classes)} classes: {listed}"))
            problems += 1
    print(plural(problems, "problem") if problems else "nothing is wrong")
    if counts:
        print(printable(table_of_shares(counts, labels)))
    return problems


def check_samples(samples: Sequence[MaskedImage], labels: Labels, counts: Tensor) -> Iterator[str]:
    """Describe each problem of images and masks, and count the pixels of each label."""
    for sample in tqdm(samples, unit="img", leave=False, disable=None):
        try:
            image, mask = read_image(sample.image), read_mask(sample.mask, labels)
        except (CorruptImage, BadMask) as error:
            yield str(error)
            continue
        counts += torch.bincount(mask.flatten(), minlength=256)
        if image.shape[1:] != mask.shape:
            (h, w), (mask_h, mask_w) = image.shape[1:], mask.shape
            yield f"{sample.image} has {h} x {w} pixels and its mask {sample.mask} {mask_h} x {mask_w}"


def table_of_shares(counts: dict[str, Tensor], labels: Labels) -> str:
    """Return a table of the pixels of each split: the share of each class among labelled ones, and of ignored ones."""
    width = max(map(len, ["% of the pixels", *labels.classes]))
    known = [found[: len(labels.classes)] for found in counts.values()]
    lines = [f"{'% of the pixels':{width}}  " + "  ".join(f"{split:>8}" for split in counts)]
    for k, name in enumerate(labels.classes):
        shares = (100 * int(found[k]) / max(1, int(found.sum())) for found in known)
        lines.append(f"{name:{width}}  " + "  ".join(f"{share:8.2f}" for share in shares))
    ignored = (100 * int(found[IGNORED]) / max(1, int(found.sum())) for found in counts.values())
    return "\n".join([*lines, f"{'(ignored)':{width}}  " + "  ".join(f"{share:8.2f}" for share in ignored)])
