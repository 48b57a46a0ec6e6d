"""Sets of labelled images, by name.

    digits              scikit-learn's handwritten digits, embedded: 1,797 images of 8x8 and one channel, enlarged to
                        32x32 (bicubic); 1,437 for training and 360 for testing, always the same ones
    cifar10, mnist ...  torchvision's sets (`TORCHVISION`), with their own test split
    folder              data_dir/train/CLASS/*.jpg and data_dir/val/CLASS/*.jpg, at any depth under CLASS; train.tar and
                        val.tar do as well; names that begin with a dot are left out
    hfds/NAME           a Hugging Face data set, or a local folder of one, through timm's reader (extra: datasets)
    wds/NAME            the WebDataset shards in data_dir/NAME

`readers.py` opens the images of a split; `Source` is a view of one, all of it or the part that a holdout leaves, and is
what loaders take.
"""

import difflib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .counter_rng import stratified
from .readers import TORCHVISION, Digits, Torchvision, open_folder, open_hfds, open_wds

MEMORY_LIMIT = 2**31  # bytes of decoded images that memory="auto" takes at most
SMALL_SIDE = 96  # pixels; larger images want crops by area, so they are streamed however few they are


class CorruptImage(OSError):
    """An image that cannot be decoded, or too many of them; the message names it and says why."""


@dataclass(frozen=True)
class Splits:
    """A set, opened. `size`: side of the images in pixels, None where they differ; `holdout`: None if not asked for."""

    train: "Source"
    holdout: "Source | None"
    test: "Source"
    classes: tuple[str, ...]
    in_chans: int
    size: int | None


def open_data(name, *, root=None, holdout=0.0, seed=0, download=False, memory="auto"):
    """Open the set called `name`; only a few images are looked at yet, to know their size.

    Args:
        root: where the set lies; for torchvision's sets the folder `data`, if not given.
        holdout: share of train, at least 0 and below 1, kept out for tuning: stratified by class, drawn from `seed`
            alone. That is not the seed of a run: runs that differ in theirs are tuned on the same samples.
        memory: "yes", "no", or "auto": in memory if all images are squares of one size, at most 96 pixels, and 2 GiB
            in all. Each process of a run holds the set.

    Raises:
        ValueError: an unknown name or value, or a folder laid out in another way.
        FileNotFoundError: the set is not there.
        ImportError: an extra is missing.
    """
    if memory not in ("auto", "yes", "no"):
        raise ValueError(f"memory is {memory!r}: give auto, yes or no")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout is {holdout}: give a share of the training set, at least 0 and below 1")
    train, test = _open(name, root, download)

    size = common_size(train)
    small = size is not None and size <= SMALL_SIDE
    fits = small and (len(train.labels) + len(test.labels)) * size**2 * len(train.mode) <= MEMORY_LIMIT
    in_memory = memory == "yes" or memory == "auto" and fits

    def source(images, chosen):
        return Source(images, chosen.nonzero()[:, 0], in_memory, size)

    count = round(holdout * len(train.labels))
    if holdout and not 0 < count < len(train.labels):
        raise ValueError(
            f"holdout {holdout} of {len(train.labels)} images leaves {count} to tune on: give another share"
        )
    held = stratified(train.labels, count, seed)
    return Splits(
        train=source(train, ~held),
        holdout=source(train, held) if holdout else None,
        test=source(test, torch.ones_like(test.labels)),
        classes=train.classes,
        in_chans=len(train.mode),
        size=size,
    )


def common_size(images):
    """The side in pixels if 16 images spread over the set are squares of one size, else None."""
    sizes = set()
    for i in torch.linspace(0, len(images.labels) - 1, 16).long().unique().tolist():
        try:
            sizes.update(images.open(i).size)
        except Exception:  # a broken image is reported when it is decoded
            continue
    return sizes.pop() if len(sizes) == 1 else None


def decode(open_image, path, mode="RGB"):
    """The image that `open_image()` opens, upright as its EXIF data have it, with its pixels in `mode`; CorruptImage,
    "path: reason", if it has none.

    A broken file shows up here, on opening or, if truncated, on converting.
    """
    try:
        return eight_bits(ImageOps.exif_transpose(open_image())).convert(mode)
    except UnidentifiedImageError as error:
        raise CorruptImage(f"{path}: not an image of a known format") from error
    except CorruptImage as error:
        raise CorruptImage(f"{path}: {error}") from error
    except Exception as error:  # decoders fail in many ways on bad bytes, and all of them mean the same
        raise CorruptImage(f"{path}: {type(error).__name__}: {error}") from error


def eight_bits(image):
    """The upper 8 bits of a grey image of 16, as Pillow takes them of colours; grey ones it would clip to white."""
    if image.mode == "F":
        raise CorruptImage("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 65535:
        raise CorruptImage(f"its pixels go from {low} to {high}, not 0 to 65535; save it with 8 or 16 bits a channel")
    return Image.fromarray((pixels // 256).astype(np.uint8))


def read_image(images, i):
    """Image `i` of a split."""
    return decode(lambda: images.open(i), images.path(i), images.mode)


def first_readable(count, index, read, path):
    """(read(i), [(path(i), reason), ...]): of `index`, or of the first after it of `count` for which `read` does not
    raise CorruptImage (0 follows the last), and those for which it does."""
    broken = []
    for shift in range(count):
        i = (index + shift) % count
        try:
            return read(i), broken
        except CorruptImage as error:
            broken.append((path(i), str(error)))
    raise CorruptImage(f"none of {count} images can be read; the first is {broken[0][1]}")


class Source:
    """Some of the images of a split, in a fixed order.

    `read(index)` gives a PIL image in the mode of the set and its label, or raises CorruptImage; `path(index)` names
    it. `size` is the side of the images in pixels where all are squares of one size, else None.
    """

    def __init__(self, images, indices, in_memory, size):
        self.images, self.indices, self.in_memory, self.size = images, indices, in_memory, size

    def __len__(self):
        return len(self.indices)

    @cached_property
    def labels(self):
        return self.images.labels[self.indices]

    def path(self, index):
        return self.images.path(int(self.indices[index]))

    def read(self, index):
        i = int(self.indices[index])
        return read_image(self.images, i), int(self.images.labels[i])

    def read_or_next(self, index):
        """(image, label, [(path, reason), ...]): see `first_readable`."""
        (image, label), broken = first_readable(len(self), index, self.read, self.path)
        return image, label, broken


def _open(name, root, download):
    """(train, test) of the set called `name`."""
    kind, _, rest = name.partition("/")
    if name == "digits":
        return Digits(train=True), Digits(train=False)
    if name in TORCHVISION:
        return Torchvision(name, root or "data", True, download), Torchvision(name, root or "data", False, download)
    if name == "folder":
        return open_folder(root)
    if kind == "hfds":
        return open_hfds(rest, root)
    if kind == "wds":
        return open_wds(Path(root or "data", rest))
    known = ["digits", *TORCHVISION, "folder", "hfds/NAME", "wds/NAME"]
    nearest = difflib.get_close_matches(name, known, 1, 0)[0]
    place = f", or --data folder --data-dir {name}" if os.path.isdir(name) else ""
    raise ValueError(f"no data set is called {name!r}: did you mean {nearest!r}{place}? Known are {', '.join(known)}")
