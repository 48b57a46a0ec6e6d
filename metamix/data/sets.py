"""Sets of labelled images, by name.

    digits                  scikit-learn's handwritten digits, embedded: 1,797 images of 8x8 and one channel, enlarged to 32x32
                            (bicubic); 1,437 for training and 360 for testing, always the same ones
    cifar10, mnist, ...     torchvision's sets (`TORCHVISION`), with their own test split
    folder                  data_dir/train/CLASS/*.jpg and data_dir/val/CLASS/*.jpg

What opens the images of a split is a small class with `labels` (N,), `classes`, `mode` ("RGB" or "L") and `open(i)`, `path(i)`.
`Source` is a view of one (all of it, or the part that a holdout leaves): what loaders take.
"""

import difflib
import os
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets as tv
from PIL import Image
from timm.data import create_dataset

from .random import SPLIT, hash64

TEST_FOLDERS = "val", "valid", "validation", "test"
MEMORY_LIMIT = 2**31  # bytes of decoded images that `memory="auto"` takes at most
SMALL_SIDE = 96  # pixels; larger images want crops by area and stream, whatever their number

# name: torchvision's class, the arguments of its train and test splits, its private list of files where it has files.
# None stands for the sets that timm's factory knows.
TORCHVISION = {
    "cifar10": None,
    "cifar100": None,
    "mnist": None,
    "fashion_mnist": None,
    "kmnist": None,
    "emnist": (tv.EMNIST, [dict(split="balanced", train=True)], [dict(split="balanced", train=False)]),
    "svhn": (tv.SVHN, [dict(split="train")], [dict(split="test")]),
    "flowers": (tv.Flowers102, [dict(split="train"), dict(split="val")], [dict(split="test")]),
    "pets": (tv.OxfordIIITPet, [dict(split="trainval")], [dict(split="test")]),
    "food": (tv.Food101, [dict(split="train")], [dict(split="test")]),
}


class CorruptImage(Exception):
    """An image that cannot be decoded; the message names it and says why."""


class Digits:
    """One split of scikit-learn's digits."""

    mode = "L"
    classes = tuple("0123456789")

    def __init__(self, train):
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        test = stratified(labels, 360, seed=0)
        keep = ~test if train else test
        self.labels, self.numbers = labels[keep], keep.nonzero()[:, 0].tolist()
        self.images = (digits.images[keep.numpy()] * (255 / 16)).round().astype(np.uint8)

    def open(self, i):
        return Image.fromarray(self.images[i]).resize((32, 32), Image.Resampling.BICUBIC)

    def path(self, i):
        return f"digit {self.numbers[i]}"


class Files:
    """Image files in folders named by class."""

    mode = "RGB"

    def __init__(self, root):
        reader = create_dataset("", root=str(root), search_split=False).reader
        paths, labels = zip(*reader.samples)
        self.paths, self.labels, self.classes = paths, torch.tensor(labels), tuple(reader.class_to_idx)
        if "" in self.classes or len(self.classes) < 2:
            raise ValueError(f"{root} must hold one folder of images per class, and at least two; found {list(self.classes)}")

    def open(self, i):
        return Image.open(BytesIO(Path(self.paths[i]).read_bytes()))

    def path(self, i):
        return self.paths[i]


class Torchvision:
    """A split of one of torchvision's sets, which may be several of its own joined (flowers: train and val)."""

    def __init__(self, name, root, train, download):
        entry = TORCHVISION[name]
        try:
            if entry is None:
                parts = [create_dataset(f"torch/{name}", root, "train" if train else "validation", download=download)]
            else:
                parts = [entry[0](root, download=download, **kwargs) for kwargs in entry[1 if train else 2]]
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{name} is not in {os.path.abspath(root)} ({error}): give its place with --data-dir, or --download true"
            ) from error
        self.name = f"{name} {'train' if train else 'test'}"
        self.dataset = torch.utils.data.ConcatDataset(parts)
        self.labels = torch.cat([torch.as_tensor(_labels(part)).long() for part in parts])
        self.classes = tuple(getattr(parts[0], "classes", map(str, range(int(self.labels.max()) + 1))))
        self.mode = "L" if self.dataset[0][0].mode == "L" else "RGB"

    def open(self, i):
        return self.dataset[i][0]

    def path(self, i):
        return f"{self.name} {i}"


def _labels(dataset):
    """torchvision has no one name for them."""
    for name in "targets", "labels", "_labels":
        if hasattr(dataset, name):
            return getattr(dataset, name)
    raise AttributeError(f"{type(dataset).__name__} has no list of labels")


class Source:
    """Some of the images of a split, in a fixed order.

    `read(index)` gives a PIL image in the mode of the set and its label, or raises CorruptImage; `path(index)` names it.
    `size` is the side of the images in pixels where all are square and alike, else None.
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
        return decode(self.images, i), int(self.images.labels[i])

    def after(self, index):
        """Positions in the split of the samples after `index`, wrapping: where a replacement is looked for."""
        return self.indices.roll(-index - 1).tolist()

    def read_or_next(self, index):
        """(image, label, [(path, reason), ...]): sample `index` or the first after it that can be read, and those that cannot."""
        broken = []
        for i in [int(self.indices[index]), *self.after(index)]:
            try:
                return decode(self.images, i), int(self.images.labels[i]), broken
            except CorruptImage as error:
                broken.append((self.images.path(i), str(error)))
        raise CorruptImage(f"none of {len(self)} images can be read; the first is {broken[0][1]}")


def decode(images, i):
    """Image `i` with its pixels read: what is broken shows up here, whether on opening or, when truncated, on converting."""
    try:
        return images.open(i).convert(images.mode)
    except Exception as error:  # decoders fail in many ways on bad bytes; all of them mean the same
        raise CorruptImage(f"{images.path(i)}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Splits:
    """A set, opened. `size` is the side of its images in pixels, None where they differ; `holdout` is None if not asked for."""

    train: Source
    holdout: Source | None
    test: Source
    classes: tuple[str, ...]
    in_chans: int
    size: int | None


def stratified(labels, count, seed):
    """Choose `count` of N samples, each class by its share (to within one), at random by `seed`: (N,) bool.

    Samples are sorted by class, and within a class by hash; every (N / count)-th of them is taken.
    """
    total = len(labels)
    by_hash = hash64(seed, SPLIT, torch.arange(total)).argsort()
    by_class = by_hash[labels[by_hash].argsort(stable=True)]
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[by_class[(torch.arange(count) * 2 + 1) * total // (2 * count)]] = True
    return chosen


def open_data(name, *, root=None, holdout=0.0, seed=0, download=False, memory="auto"):
    """Open the set called `name`; nothing is decoded yet but a few images, to know their size.

    Args:
        root: where the set lies; the current folder's `data` if not given.
        holdout: share of train, in [0, 1), kept out for tuning: stratified by class, drawn from `seed` alone. That is not the
            run's seed: runs that differ in seed are tuned on the same samples.
        memory: "yes", "no", or "auto": in memory if all images are squares of one size, at most 96 pixels, and 2 GiB in all.

    Raises:
        ValueError: an unknown name or value, or a folder laid out in another way.
        FileNotFoundError: the set is not there.
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

    def source(images, mask):
        return Source(images, mask.nonzero()[:, 0], in_memory, size)

    everything = torch.ones(len(train.labels), dtype=torch.bool)
    held = stratified(train.labels, round(holdout * len(everything)), seed) if holdout else ~everything
    return Splits(
        train=source(train, ~held),
        holdout=source(train, held) if holdout else None,
        test=source(test, torch.ones(len(test.labels), dtype=torch.bool)),
        classes=train.classes,
        in_chans=len(train.mode),
        size=size,
    )


def _open(name, root, download):
    if name == "digits":
        return Digits(train=True), Digits(train=False)
    if name in TORCHVISION:
        return [Torchvision(name, root or "data", train, download) for train in (True, False)]
    if name == "folder":
        return open_folder(root)
    known = ["digits", "folder", *TORCHVISION]
    nearest = difflib.get_close_matches(name, known, 1, 0)[0]
    place = f"; for the folder {name}, give --data folder --data-dir {name}" if os.path.exists(name) else ""
    raise ValueError(f"no data set is called {name!r}: did you mean {nearest!r}{place}? Known are {', '.join(known)}")


def open_folder(root):
    layout = f"expected train/ and {TEST_FOLDERS[0]}/ (or {', '.join(TEST_FOLDERS[1:])}), each with one folder of images per class"
    if root is None:
        raise ValueError(f"a folder of images needs --data-dir; {layout} in it")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root.absolute()}; {layout}")
    test = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not test:
        found = ", ".join(sorted(os.listdir(root))[:10]) or "nothing"
        raise FileNotFoundError(f"{root.absolute()} holds {found}; {layout}")
    train, test = Files(root / "train"), Files(test[0])
    align_classes(train, test)
    return train, test


def align_classes(train, test):
    """Number the classes of `test` as `train` does."""
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise ValueError(f"the test split has classes that train has not: {', '.join(unknown[:5])}")
    numbers = torch.tensor([train.classes.index(name) for name in test.classes])
    test.labels, test.classes = numbers[test.labels], train.classes


def common_size(images):
    """The side in pixels if 16 images spread over the set are squares of one size, else None."""
    sizes = set()
    for i in torch.linspace(0, len(images.labels) - 1, 16).long().unique().tolist():
        try:
            sizes.update(images.open(i).size)
        except Exception:  # a broken image is reported when it is decoded
            continue
    return sizes.pop() if len(sizes) == 1 else None
