"""A whole split decoded into one uint8 tensor, so that training never waits for a decoder."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from timm.data.transforms_factory import transforms_imagenet_eval

from .sets import CorruptImage, decode

_decoded = WeakKeyDictionary()  # a split's images -> what was decoded of them, shared by train and holdout


@dataclass
class Pixels:
    """`images` (N, size, size, C) uint8, black where broken; `broken` says by number which could not be read, and why."""

    images: torch.Tensor
    broken: dict[int, str]


def pixels(source, size, interpolation):
    """Decode all images of the split that `source` views, once; those of another size are resized and cropped to its centre."""
    done = _decoded.setdefault(source.images, {})
    if (size, interpolation) not in done:
        done[size, interpolation] = _decode(source, size, interpolation)
    return done[size, interpolation]


def _decode(source, size, interpolation):
    split = source.images
    resize = transforms_imagenet_eval(size, crop_pct=1.0, interpolation=interpolation, normalize=False)
    images = torch.zeros(len(split.labels), size, size, len(split.mode), dtype=torch.uint8)
    array, broken = images.numpy(), {}
    for i in range(len(array)):
        try:
            image = decode(split, i)
        except CorruptImage as error:
            broken[i] = str(error)
            continue
        if image.size != (size, size):
            if size == source.size:
                raise ValueError(
                    f"{split.path(i)} is {image.width}x{image.height}, the images before it {size}x{size}: "
                    "give --img-size to resize all of them, or --memory no"
                )
            image = resize(image).permute(1, 2, 0)
        array[i] = np.asarray(image).reshape(array.shape[1:])
    return Pixels(images, broken)


def mean_std(images):
    """Mean and standard deviation of each channel of (N, H, W, C) uint8, in [0, 1], from exact counts of its 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float((share @ (values - mean[-1]) ** 2).sqrt()))
    return tuple(mean), tuple(std)
