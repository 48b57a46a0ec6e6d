"""The options of data and augmentation, flat on the command line."""

from dataclasses import dataclass, field
from typing import Literal


def _option(default, help, group="data", on_resume="refuse"):
    return field(default=default, metadata={"help": help, "group": group, "on_resume": on_resume})


def _augment(default, help):
    return _option(default, help, group="augmentation")


@dataclass
class SourceOptions:
    """What images there are."""

    data: str = _option("digits", "digits, cifar10 or another set of torchvision, folder, hfds/NAME, wds/NAME")
    data_dir: str | None = _option(None, "where the set lies; for folder, with train/ and val/ in it", on_resume="free")
    download: bool = _option(False, "fetch a set of torchvision that is not there yet", on_resume="free")
    holdout: float = _option(0.0, "share of train kept out for tuning; the same samples for every seed")
    memory: Literal["auto", "yes", "no"] = _option("auto", "decode the set at the start; auto: if small, of one size")
    workers: int = _option(2, "processes that decode a streamed set; 0: the training process does", on_resume="free")
    corrupt_limit: float = _option(0.01, "stop if more than this share of the images cannot be read", on_resume="free")
    img_size: int | None = _option(None, "side of the images in pixels; none: the set's own, 224 where sizes differ")
    interpolation: Literal["bicubic", "bilinear", "nearest"] = _option("bicubic", "how images are resized")
    mean: tuple[float, ...] | None = _option(None, "per channel, of values 0 to 1; none: the set's or ImageNet's")
    std: tuple[float, ...] | None = _option(None, "per channel, as mean")
    crop_pct: float = _option(0.875, "streamed sets: share of the shorter side that the centre crop of scoring keeps")

    def __post_init__(self):
        _check(self, shares=["corrupt_limit"], parts=["crop_pct"], least=[("workers", 0), ("img_size", 1)])


@dataclass
class DataOptions(SourceOptions):
    """What images there are, and how they are altered in training.

    Images held in memory are cropped at random from their padded selves (`padding`), streamed ones by area
    (`crop_scale`) by timm's transforms. All else means the same for both.
    """

    padding: int = _augment(4, "sets in memory: pixels of black around an image before it is cropped at random")
    crop_scale: float = _augment(0.08, "streamed sets: least share of the area that the random crop keeps")
    flip: float = _augment(0.5, "probability of a horizontal flip")
    auto_augment: str = _augment("none", "none, trivial, or rand-m9-n2: magnitude 0 to 10, number of operations")
    cutout: int = _augment(0, "side in pixels of a square set to the mean in every image")
    erase: float = _augment(0.0, "probability that a random rectangle is filled with noise")
    mixup: float = _augment(0.0, "alpha of mixup; 0: none")
    cutmix: float = _augment(0.0, "alpha of cutmix; 0: none; given both, each batch draws one of them")
    mix_prob: float = _augment(1.0, "probability that a batch is mixed")

    def __post_init__(self):
        super().__post_init__()
        least = [(name, 0) for name in ("padding", "cutout", "mixup", "cutmix")]
        _check(self, shares=["flip", "erase", "mix_prob"], parts=["crop_scale"], least=least)


def _check(options, *, shares, parts, least):
    for name in shares:
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name} is {getattr(options, name)}, but it must be between 0 and 1")
    for name in parts:
        if not 0 < getattr(options, name) <= 1:
            raise ValueError(f"{name} is {getattr(options, name)}, but it must be above 0 and at most 1")
    for name, bound in least:
        if getattr(options, name) is not None and getattr(options, name) < bound:
            raise ValueError(f"{name} is {getattr(options, name)}, but it must be at least {bound}")
