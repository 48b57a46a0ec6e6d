"""Open data sets of labelled images by name.

    digits              scikit-learn's handwritten digits, which need no files: 1,797 grey images of 8x8, enlarged to
                        32x32 (bicubic). 1,437 are for training, and 360 are for testing
    cifar10, mnist ...  torchvision's data sets (`TORCHVISION_SETS`), with their own test split
    tiny_imagenet       64x64 images of 200 classes of ImageNet, from the official archive
    folder              DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, at any depth below CLASS; train.tar and val.tar
                        also work. Names that begin with a dot are ignored. DIR/labels.csv gives images several labels
    hfds/NAME           a Hugging Face data set, from the hub or a local folder; needs the extra `datasets`
    wds/NAME            WebDataset shards in DIR/NAME

The modules in `formats/` open splits. A `Source` is a part of a split; loaders read sources.
"""

import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metamix.utils.text import did_you_mean, list_names, plural
from metamix.weights import checksums

from .counter_rng import stratified_choice
from .files import content_digest, decode
from .formats.base import ImageSplit, match_classes
from .formats.digits import open_digits
from .formats.folder import open_folder
from .formats.huggingface import open_huggingface
from .formats.tiny_imagenet import open_tiny_imagenet
from .formats.torchvision_sets import TORCHVISION_SETS, open_torchvision
from .formats.webdataset_shards import open_webdataset
from .tables import open_label_table

MEMORY_LIMIT = 2**31  # bytes of all images before they are resized; with memory="auto", larger data sets are streamed
IN_A_FOLDER = (*TORCHVISION_SETS, "tiny_imagenet")  # names of data sets whose files are in `data_dir`
SMALL_SIDE = 96  # pixels; larger images are streamed, since training crops a random area of them


def read_image(images: ImageSplit, i: int) -> Image.Image:
    """Decode image `i` of a split; raise CorruptImage if that fails."""
    return decode(lambda: images.open(i), images.path(i), images.mode)


class Source:
    """Some images of a split, in a fixed order.

    Args:
        indices: (n,) int64, positions of the images in the split.
        small: whether the images of the data set are small, of one size and few enough to be held in memory.
        size: side of the images in pixels if they are squares of one size, else None; see `common_size`.
    """

    def __init__(self, images: ImageSplit, indices: Tensor, small: bool, size: int | None):
        self.images, self.indices, self.small, self.size = images, indices, small, size

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, samples: slice | Tensor) -> "Source":
        """Return a source with some of the samples; `samples` is a slice or indices."""
        return Source(self.images, self.indices[samples], self.small, self.size)

    @cached_property
    def labels(self) -> Tensor:
        """Return the labels of the samples, in the form of `ImageSplit.labels`."""
        return self.images.labels[self.indices]

    def path(self, index: int) -> str:
        """Name a sample for messages."""
        return self.images.path(int(self.indices[index]))

    def read(self, index: int) -> tuple[Image.Image, int | Tensor]:
        """Decode a sample's image in the split's mode; return it with its label. Raise CorruptImage if that fails."""
        i = int(self.indices[index])
        label = self.images.labels[i]
        return read_image(self.images, i), label if label.ndim else int(label)


@dataclass(frozen=True)
class Splits:
    """An open data set.

    `holdout` is None if no share is held out. `train` is None if there is no training split, or if all images are
    scored. Such a data set can be scored, but not trained on.
    """

    train: Source | None
    holdout: Source | None
    test: Source
    classes: tuple[str, ...]
    in_chans: int

    @property
    def multi_label(self) -> bool:
        """Return whether an image may have any number of labels, instead of one class."""
        return self.test.images.labels.ndim == 2

    def sources(self) -> dict[str, Source]:
        """Return the splits that are not None, by name: train, holdout, test."""
        splits = {"train": self.train, "holdout": self.holdout, "test": self.test}
        return {name: source for name, source in splits.items() if source is not None}

    @cached_property
    def digest(self) -> dict[str, str]:
        """Return the digests of the training split (with its holdout) and of the test split."""
        return {name: digest(source.images) for name, source in self.sources().items() if name != "holdout"}

    @cached_property
    def content(self) -> dict[str, str]:
        """Return the digests of the images' content for the same splits as `digest`."""
        images = {name: source.images for name, source in self.sources().items() if name != "holdout"}
        digests = {each: content_digest(range(len(each.labels)), each.content) for each in set(images.values())}
        return {name: digests[each] for name, each in images.items()}


def open_data(
    name: str,
    *,
    root: str | Path | None = None,
    holdout: float = 0.0,
    download: bool = False,
    test_on: str = "",
    test_share: float = 0.1,
    classes: tuple[str, ...] = (),
    fine_tune: str = "",
    train_required: bool = True,
) -> Splits:
    """Open the data set called `name`. A few images are opened to find their size.

    Args:
        root: folder of the data set. It must be None if `name` is digits, and must be given if `name` is folder. For
            hfds/NAME it is the cache folder. For all other names, None stands for the folder `data`.
        holdout, download, test_on, test_share: see `SourceOptions`. Shares are stratified by class and do
            not depend on the seed of a run. A `test_share` of 1 scores all images.
        classes: class names of the trained model to evaluate, if there is one. Labels are numbered in this order.
        fine_tune: command that fine-tunes the trained model on the data, for error messages.
        train_required: reject a folder without a training split.

    Raises:
        ValueError: `name`, `test_on` or a class is unknown, the layout of the files is wrong, or a share leaves no
            images.
        FileNotFoundError: the data set is missing.
        ImportError: an extra is missing.
    """
    train, test = _open_splits(name, root, download, test_on, train_required)
    images = train or test
    # Some data sets, such as WebDataset shards, have numbers instead of class names: positions in the model's classes.
    numbered = images.classes == tuple(map(str, range(len(images.classes))))
    if classes and (not numbered or set(images.classes) & set(classes)):
        for split in [test] if train is test else filter(None, (train, test)):
            if unknown := match_classes(split, classes):
                raise ValueError(
                    f"{root if name == 'folder' else name} has the classes {list_names(unknown)}, which the model does "
                    f"not have; it has {list_names(classes)}. Name the classes as in training, or fine-tune first: "
                    f"{fine_tune}"
                )

    to_score, to_train_on = torch.arange(len(test.labels)), torch.arange(len(train.labels) if train else 0)
    if train is test:  # a folder without a test split
        to_score, to_train_on = _share_images(strata(test.labels), test_share)
    size = common_size(images)
    total = len(to_score) + len(to_train_on)
    small = size is not None and size <= SMALL_SIDE and total * size**2 * len(images.mode) <= MEMORY_LIMIT

    training = held_out = None
    if train and len(to_train_on):
        images_left = len(to_train_on)
        count = round(holdout * images_left)
        if holdout and not 0 < count < images_left:
            shares = f"{count} to tune on and {images_left - count} to train on"
            raise ValueError(f"holdout {holdout} of {images_left} images leaves {shares}: give another share")
        held = stratified_choice(strata(train.labels[to_train_on]), count)
        training = Source(train, to_train_on[~held], small, size)
        held_out = Source(train, to_train_on[held], small, size) if holdout else None
    return Splits(
        train=training,
        holdout=held_out,
        test=Source(test, to_score, small, size),
        classes=images.classes,
        in_chans=len(images.mode),
    )


def _share_images(labels: Tensor, test_share: float) -> tuple[Tensor, Tensor]:
    """Choose the images to score and the images to train on, stratified by labels (N,); return the indices of both.

    Each class keeps at least one image to train on, unless all images are scored.
    """
    total = len(labels)
    if test_share == 1:
        return torch.arange(total), torch.arange(0)
    scored = stratified_choice(labels, min(max(1, round(test_share * total)), total - 1))
    for label in labels[scored].unique():
        if scored[labels == label].all():
            scored[(labels == label).nonzero()[0]] = False
    if len(labels.unique()) == total:
        raise ValueError(
            f"test_share {test_share} leaves no image to score, since each class has one image, which is kept to train "
            f"on: add images, or a folder val"
        )
    if not scored.any():
        raise ValueError(
            f"test_share {test_share} of {total} images leaves none to score: give a larger share, or more images"
        )
    return scored.nonzero()[:, 0], (~scored).nonzero()[:, 0]


def strata(labels: Tensor) -> Tensor:
    """Return one label per image, (N,): its rarest label if `labels` is (N, classes), or -1 if it has no label."""
    if labels.ndim == 2:
        rarest_first = labels.sum(0).argsort(stable=True)
        labels = rarest_first[labels[:, rarest_first].argmax(1)].where(labels.any(1), -1)  # argmax returns the first 1
    return labels


def common_size(images: ImageSplit) -> int | None:
    """Return the side in pixels if the opened images are squares of one size, else None.

    Up to 16 images, spread over the split, are opened.
    """
    sizes: set[int] = set()
    for i in torch.linspace(0, len(images.labels) - 1, 16).long().unique().tolist():
        try:
            sizes.update(images.open(i).size)
        except Exception:  # a broken image is reported when it is decoded
            continue
    return sizes.pop() if len(sizes) == 1 else None


def digest(images: ImageSplit) -> str:
    """Hash the relative paths, file sizes and labels of a split, which stay the same if the data set is moved."""
    classes, labels = images.classes, images.labels if images.labels.ndim == 2 else images.labels.tolist()
    names = ("|".join(compress(classes, k.tolist())) if isinstance(k, Tensor) else classes[k] for k in labels)
    return checksums.digest((images.fingerprint(i), name) for i, name in enumerate(names))


def scarce_classes(splits: Splits) -> list[str]:
    """Return a sentence for each split with classes that have no image to score, or at most one image to train on.

    Without a training split, a single image is too few, since it cannot be both trained on and scored. Further
    sentences say that there is a single class, or that no image of a multi-label data set has two labels.
    """
    notes = []
    if len(splits.classes) == 1:
        notes.append(f"there is one class, {splits.classes[0]}, and training needs two")
    for split, source in splits.sources().items():
        labels, classes = source.labels, len(splits.classes)
        counts = (labels.sum(0) if splits.multi_label else torch.bincount(labels, minlength=classes)).tolist()
        limit, lack = (1, "at most one image") if split == "train" or splits.train is None else (0, "no image")
        scarce = [name for name, count in zip(splits.classes, counts) if count <= limit]
        if scarce:
            place = f" in {source.images.split if split == 'test' else split}" if splits.train else ""
            verb = "has" if len(scarce) == 1 else "have"
            what = plural(len(scarce), "label" if splits.multi_label else "class")
            notes.append(f"{what} {verb} {lack}{place}: {list_names(scarce)}")
    if splits.multi_label and not any((source.labels.sum(1) > 1).any() for source in splits.sources().values()):
        if any("," in name for name in splits.classes):
            notes.append("no image has two labels, but a label has a comma: separate labels by |, as in cat|dog")
        else:
            notes.append("no image has two labels, such as cat|dog: metamix convert csv can make class folders instead")
    return notes


def folder_flags(root: str | Path) -> str:
    """Return the flags that open a folder of images."""
    return f"--data folder --data-dir {shlex.quote(str(root))}"


def _open_splits(
    name: str, root: str | Path | None, download: bool, test_on: str, train_required: bool
) -> tuple[ImageSplit | None, ImageSplit]:
    """Open the training and the test split of the data set called `name`."""
    kind, _, rest = name.partition("/")
    if name == "digits":
        if root:
            raise ValueError(
                f"data is digits, which are part of scikit-learn, but data_dir is {root}: for your own images "
                f"write {folder_flags(root)}, or leave --data-dir out"
            )
        return open_digits(test_on)
    if name in TORCHVISION_SETS:
        return open_torchvision(name, str(root or "data"), download, test_on)
    if name == "tiny_imagenet":
        return open_tiny_imagenet(Path(root or "data").expanduser(), download, test_on)
    if name == "folder":
        labelled = open_label_table(Path(root), test_on, train_required) if root else None
        return labelled or open_folder(root, test_on, train_required=train_required)
    if kind == "hfds":
        return open_huggingface(rest, str(root) if root else None, test_on)
    if kind == "wds":
        return open_webdataset(Path(root or "data", rest), test_on)
    names = ["digits", *IN_A_FOLDER, "folder", "hfds/NAME", "wds/NAME"]
    what, advice = "data set or folder", ""
    if os.path.isdir(name):
        what, advice = "data set", f" For the images in this folder, write {folder_flags(name)}."
    elif os.path.isfile(name):
        advice = " It is a file: give the folder of the data set, or the --task that reads such files."
    raise ValueError(f"no {what} is called {name!r}{did_you_mean(name, names)}{advice} Known: {', '.join(names)}")
