"""How large the images of a source are, what their statistics are, and, for small sets, all of them in one uint8
tensor, so that training never waits for a decoder."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import transforms_imagenet_eval
from tqdm import tqdm

from .sources import SMALL_SIDE, CorruptImage, read_image

_decoded = WeakKeyDictionary()  # the images of a split -> what was decoded of them, shared by train and holdout


def image_size(source, options):
    """Side in pixels of the images that loaders give: `img_size`, the set's own, or 224 where its images differ."""
    return options.img_size or source.size or 224


def in_memory(source, options):
    """Whether loaders hold the split: as `open_data` found, unless `img_size` enlarges small images to large ones."""
    return source.in_memory and (options.memory == "yes" or image_size(source, options) <= SMALL_SIDE)


def channel_statistics(source, options):
    """(mean, std) per channel, of values 0 to 1, for a set whose training split is `source`.

    As given in the options; else counted over the split, holdout included, if it is in memory; else ImageNet's.
    """
    if (options.mean is None) != (options.std is None):
        raise ValueError("give mean and std together, or neither")
    if options.mean is not None:
        channels = len(source.images.mode)
        if not len(options.mean) == len(options.std) == channels:
            raise ValueError(f"mean {options.mean} and std {options.std} must have one value per channel: {channels}")
        if not all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(options.mean, options.std)):
            raise ValueError(f"mean {options.mean} and std {options.std} must be of values 0 to 1: divide them by 255?")
        return tuple(options.mean), tuple(options.std)
    if in_memory(source, options):
        return mean_std(pixels(source, options).images)
    if source.images.mode == "L":
        return (sum(IMAGENET_DEFAULT_MEAN) / 3,), (sum(IMAGENET_DEFAULT_STD) / 3,)
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


@dataclass
class Pixels:
    """`images` (N, size, size, C) uint8, black where broken; `broken`: which could not be read, by number, and why."""

    images: torch.Tensor
    broken: dict[int, str]


def pixels(source, options):
    """Decode all images of the split that `source` is a view of, once. Images of another size than `image_size` are
    resized by their shorter side and cropped to the middle."""
    size = image_size(source, options)
    done = _decoded.setdefault(source.images, {})
    if (size, options.interpolation) not in done:
        done[size, options.interpolation] = _decode(source, size, options)
    return done[size, options.interpolation]


def _decode(source, size, options):
    split = source.images
    resize = transforms_imagenet_eval(size, crop_pct=1.0, interpolation=options.interpolation, normalize=False)
    images = torch.zeros(len(split.labels), size, size, len(split.mode), dtype=torch.uint8)
    array, broken = images.numpy(), {}
    for i in tqdm(range(len(array)), desc="decoding", unit="img", leave=False, disable=None):
        try:
            image = read_image(split, i)
        except CorruptImage as error:
            broken[i] = str(error)
            continue
        if image.size != (size, size):
            if options.img_size is None and source.size:
                raise ValueError(
                    f"{split.path(i)} is {image.width}x{image.height}, but the set seemed to be of {size}x{size} "
                    "throughout: give --img-size to resize all images, or --memory no"
                )
            image = resize(image).permute(1, 2, 0)
        array[i] = np.asarray(image).reshape(array.shape[1:])
    return Pixels(images, broken)


def mean_std(images):
    """Mean and deviation of each channel of (N, H, W, C) uint8, as shares of 255, from exact counts of its values.

    The deviation of a channel that is the same everywhere is given as 1, so that images can be divided by it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float((share @ (values - mean[-1]) ** 2).sqrt()) or 1.0)
    return tuple(mean), tuple(std)
