"""Define the options of data and augmentation."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from metamix.utils.options import Options, changed_flags, option
from metamix.utils.rules import Count, Natural, NotNegative, PositiveShare, Share, ShareBelowOne, where
from metamix.weights.metadata import MIN_CROP_PCT, Side

from .files import limit_pixels

Splits = Annotated[
    tuple[str, ...],
    where(
        lambda splits: 0 < len(splits) == len(set(splits)), "one or more different splits, such as train or train,val"
    ),
]
Template = Annotated[str, where(lambda name: "{name}" in name, "a string that holds {name}, such as {name}x2")]
Memory = Literal["auto", "yes", "no"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
CropShare = Annotated[float, Field(ge=MIN_CROP_PCT, le=1)]
Factor = Annotated[float, Field(gt=0, lt=16)]
Factors = Annotated[
    tuple[Factor, ...],
    where(
        lambda factors: len(factors) == 2 and factors[0] <= factors[1],
        "two factors above 0 and below 16, the smaller first, such as 0.5,2",
    ),
]

_reading = partial(option, group="reading images", on_resume="ignore")
_source = partial(option, group="data")
_augment = partial(option, group="augmentation")


@dataclass(kw_only=True)
class ImageOptions(Options):
    """Limit the size of the images that a command reads; `open_image`, which opens all image files, enforces it."""

    max_pixels: Count | None = _reading(None, "largest number of pixels in an image; default: 89,478,485, as in Pillow")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_pixels is not None:
            limit_pixels(self.max_pixels)


@dataclass
class ReadingOptions(ImageOptions):
    """Options for reading image files, shared by all tasks."""

    workers: Natural | None = _reading(
        None,
        "processes that read images, at most one per core; 0: the main process reads them; default: 2, or on a GPU "
        "this process's share of the cores, at most 16",
    )
    corrupt_limit: Share = _reading(0.01, "stop if more than this share of the images cannot be read")


@dataclass
class LocationOptions(ReadingOptions):
    """Options that choose a data set and its split to score."""

    data: str = _source(
        "digits", "digits, cifar10 or another torchvision data set, tiny_imagenet, folder, hfds/NAME, wds/NAME"
    )
    data_dir: str | None = _source(
        None,
        "folder of the data set; for --data folder, it holds train/ and val/, class folders, or labels.csv",
        on_resume="ignore",
    )
    download: bool = _source(False, "download a missing torchvision data set, or tiny_imagenet", on_resume="ignore")
    test_on: str = _source("", "split to score; default: the first of val, valid, validation and test that exists")


@dataclass
class SourceOptions(LocationOptions):
    """Options that choose and prepare the images of a data set."""

    test_share: PositiveShare = _source(0.1, "share of the images to score if a folder has no test split")
    holdout: ShareBelowOne = _source(0.0, "share of train to hold out for tuning; the same samples for every seed")
    memory: Memory = _source(
        "auto",
        "decode all images at the start; auto: if they are small, of one size, and at most 2 GiB before resizing",
    )
    img_size: Side | None = _source(
        None,
        "side of the images in pixels; default: the size in the initial weights; else the size of the data set's "
        "images, if all are squares of one size; else 224",
    )
    interpolation: Interpolation = _source("bicubic", "how images are resized")
    mean: tuple[float, ...] | None = _source(
        None,
        "mean of each channel, for pixel values from 0 to 1; default: the mean in the initial weights; else the "
        "mean of images in memory; else ImageNet's mean",
    )
    std: tuple[float, ...] | None = _source(None, "standard deviation of each channel; the default is as for mean")
    crop_pct: CropShare = _source(
        0.875, "streamed images: share of the shorter side that the centre crop in evaluation keeps"
    )


@dataclass
class DataOptions(SourceOptions):
    """Options that choose, prepare and augment the images of a data set.

    Images in memory are padded by `padding` and cropped at random. Streamed images get timm's random resized crop, set
    by `crop_scale`. All other augmentation options have the same effect on both.
    """

    sampling: Literal["shuffled", "balanced"] = _source(
        "shuffled",
        "shuffled: each image once per epoch; balanced: equally many images of each class, with images of rare classes "
        "repeated",
    )
    padding: Natural = _augment(4, "images in memory: black pixels added at each side before the random crop")
    crop_scale: PositiveShare = _augment(0.08, "streamed images: smallest share of the area that the random crop keeps")
    flip: Share = _augment(0.5, "probability of a horizontal flip")
    auto_augment: str = _augment("none", "none, trivial, or rand-m9-n2: magnitude 9 of 10, 2 operations")
    cutout: Natural = _augment(0, "side in pixels of a square that is set to the mean in every image")
    erase: Share = _augment(0.0, "probability that a random rectangle is filled with noise")
    mixup: NotNegative = _augment(0.0, "alpha of mixup; 0 turns it off")
    cutmix: NotNegative = _augment(
        0.0, "alpha of cutmix; 0 turns it off; if mixup is on too, each batch gets one of the two at random"
    )
    mix_prob: Share = _augment(1.0, "probability that a batch is mixed", needs="mixup or cutmix")
    mix_off_epoch: Natural = _augment(0, "epochs after which mixup and cutmix stop; 0: never", needs="mixup or cutmix")


def verify_command(options: LocationOptions) -> str:
    """Return the command that lists the broken images of a data set."""
    flags = changed_flags(options, "data_dir", "test_on", "max_pixels")
    return shlex.join(["metamix", "verify", options.data, *flags])


def train_command(checkpoint: object, *flags: str) -> str:
    """Return the command that trains a checkpoint further; the flags name the data and the model."""
    return shlex.join(["metamix", "train", *flags, "--checkpoint", str(checkpoint or "FILE")])


def check_both(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise ValueError if only one of mean and std is given."""
    if (mean is None) != (std is None):
        present, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise ValueError(f"{present} is given, but {missing} is not: give both or neither")


def choose_splits(splits: Collection[str], test_on: str, train_on: Sequence[str], *, train: bool) -> tuple[str, bool]:
    """Choose the splits to score.

    Args:
        test_on: the split that the user chose to score; if it is empty, test is scored, or val if there is no test.
        train: whether a model will be trained.

    Returns:
        The split to score as "test", and whether val is scored too, as "holdout". If nothing is trained and the user
        chose a split, only that split is scored.

    Raises:
        ValueError: the split to score is among the splits to train on.
    """
    test = test_on or next((name for name in ("test", "val") if name in splits), "test")
    if train and test in train_on:
        raise ValueError(
            f"{test} is among the splits to train on, so it cannot be the test split: give another --test-on, or "
            f"leave {test} out of --train-on. The splits are {', '.join(splits)}"
        )
    return test, "val" in splits and "val" not in (test, *train_on) and (train or not test_on)
