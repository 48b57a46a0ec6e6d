"""The options of data and augmentation, flat on the command line."""

from dataclasses import dataclass, field


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class DataOptions:
    """What to train on and how images are altered.

    Sets held in memory are cropped with `padding`; streamed sets are cropped by area (`crop_scale`, then resized) with timm's
    transforms. The other options of augmentation mean the same for both.
    """

    data: str = option("digits", "digits, a torchvision set such as cifar10, folder, hfds/NAME or wds/SPLIT")
    data_dir: str | None = option(None, "where the set lies: for folder, a directory with train/ and val/")
    download: bool = option(False, "let torchvision fetch a set that is not in data_dir")
    holdout: float = option(0.0, "share of train kept out for tuning, the same samples for every seed")
    memory: str = option("auto", "decode the set into memory: yes, no, or auto (small images of one size)")
    workers: int = option(2, "processes that decode a streamed set; 0 decodes in the training process")
    corrupt_limit: float = option(0.01, "stop once more than this share of a set cannot be read")
    img_size: int | None = option(None, "side of the training images in pixels; the set's own, or 224 where sizes differ")
    interpolation: str = option("bicubic", "how images are resized: bicubic, bilinear or nearest")
    mean: tuple[float, ...] | None = option(None, "mean per channel in [0, 1]; the set's own, or ImageNet's when streamed")
    std: tuple[float, ...] | None = option(None, "standard deviation per channel, as mean")
    padding: int = option(4, "sets in memory: crop at random from the image padded by so many black pixels")
    crop_scale: float = option(0.08, "streamed sets: smallest share of the image's area that a random crop keeps")
    crop_pct: float = option(0.875, "streamed sets: share of the resized image that the centre crop of evaluation keeps")
    flip: float = option(0.5, "probability of a horizontal flip")
    auto_augment: str = option("none", "none, trivial, or rand-m9-n2: magnitude 0 to 10, number of operations")
    cutout: int = option(0, "side in pixels of a square set to the mean in every image")
    erase: float = option(0.0, "probability that a random rectangle is filled with noise")
    mixup: float = option(0.0, "alpha of mixup; 0 for none")
    cutmix: float = option(0.0, "alpha of cutmix; with mixup, each batch draws one of the two")
    mix_prob: float = option(1.0, "probability that a batch is mixed at all")
