"""Decode a split into memory as one uint8 tensor; find the size and the statistics of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor
from tqdm import tqdm

from .files import CorruptImage
from .formats.base import ImageSplit
from .options import SourceOptions, check_both
from .sources import SMALL_SIDE, Source, read_image

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass
class Pixels:
    """The decoded images of a split.

    `images` is (N, size, size, C) uint8. Broken images are black, and `broken` maps their indices to error messages.
    """

    images: Tensor
    broken: dict[int, str]


# Decoded images by split, then by (size, interpolation). The training part and the holdout share one entry.
_decoded: WeakKeyDictionary[ImageSplit, dict[tuple[int, str], Pixels]] = WeakKeyDictionary()


def image_size(source: Source, options: SourceOptions) -> int:
    """Return the side in pixels of the loaders' images: `img_size` if it is set, else the source's size, else 224."""
    return options.img_size or source.size or 224


def in_memory(source: Source, options: SourceOptions) -> bool:
    """Return whether loaders hold the split in memory.

    With memory "auto", small images that `img_size` enlarges beyond `SMALL_SIDE` are streamed.
    """
    if options.memory == "auto":
        return source.small and image_size(source, options) <= SMALL_SIDE
    return options.memory == "yes"


def channel_statistics(source: Source, options: SourceOptions) -> Statistics:
    """Return mean and standard deviation per channel, for pixel values from 0 to 1.

    If the options do not give them, they are computed from all readable images of a split in memory, even if some are
    held out or scored. For a streamed split, ImageNet's values are used, averaged over the channels for grey images.

    Raises:
        ValueError: the options give only mean or only std, or values that do not fit the images.
    """
    check_both(options.mean, options.std)
    if options.mean is not None and options.std is not None:
        return check_statistics(options.mean, options.std, len(source.images.mode))
    if in_memory(source, options):
        decoded = pixels(source, options)
        readable = [i for i in range(len(decoded.images)) if i not in decoded.broken]
        return mean_std(decoded.images[readable] if decoded.broken else decoded.images)
    if source.images.mode == "L":
        return (sum(IMAGENET_DEFAULT_MEAN) / 3,), (sum(IMAGENET_DEFAULT_STD) / 3,)
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> Statistics:
    """Return mean and std as tuples; raise ValueError unless they fit `channels` channels with values from 0 to 1."""
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must have one value per channel: {channels}")
    if not all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std)):
        words = "must be for pixel values from 0 to 1, with std above 0: divide them by 255?"
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} {words}")
    return tuple(mean), tuple(std)


def pixels(source: Source, options: SourceOptions) -> Pixels:
    """Decode all images of a source's split, and keep them for later calls.

    An image that differs from `image_size` is resized so that its shorter side fits, and cropped at the centre.

    Raises:
        ValueError: no `img_size` is given and the images differ in size, although the images that `common_size` opened
            have one size.
    """
    split, size = source.images, image_size(source, options)
    done = _decoded.setdefault(split, {})
    key = size, options.interpolation
    if key in done:
        return done[key]
    resize = transforms_imagenet_eval(size, crop_pct=1.0, interpolation=options.interpolation, normalize=False)
    images = torch.zeros(len(split.labels), size, size, len(split.mode), dtype=torch.uint8)
    array, broken = images.numpy(), {}
    for i in tqdm(range(len(array)), desc="decoding", unit="img", leave=False, disable=None):
        try:
            image = read_image(split, i)
        except CorruptImage as error:
            broken[i] = str(error)
            continue
        if image.size == (size, size):
            content = np.asarray(image)
        elif options.img_size is None and source.size:
            raise ValueError(
                f"{split.path(i)} is {image.width}x{image.height}, but the other images seemed to be "
                f"{size}x{size}: give --img-size to resize all images, or --memory no"
            )
        else:
            content = resize(image).permute(1, 2, 0).numpy()
        array[i] = content.reshape(array.shape[1:])
    done[key] = Pixels(images, broken)
    return done[key]


def mean_std(images: Tensor) -> Statistics:
    """Compute mean and standard deviation of each channel of (N, H, W, C) uint8 images, on a scale from 0 to 1.

    They are computed from exact counts of the values. The standard deviation of a constant channel is 1 instead of 0,
    so that images can be divided by it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float((share @ (values - mean[-1]) ** 2).sqrt()) or 1.0)
    return tuple(mean), tuple(std)
