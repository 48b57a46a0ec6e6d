"""Augment batches of images on the device that holds them.

The augmentation of a sample depends only on (seed, epoch, index), not on the batch or the device. The parameters of
mixing depend on (seed, epoch, step) and are the same on every process.

Each sample of the global batch is mixed with its neighbour: 0 with 1, 2 with 3, and so on. The order is random, so
these pairs are random too. An even number of samples per process keeps each pair on one process.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from timm.data.mixup import cutmix_bbox_and_lam
from torch import Tensor

from .auto_augment import apply_policy, make_policy
from .counter_rng import MIX, SAMPLE, hash64, normal, randint, seeded, uniform
from .loader import Batch
from .options import DataOptions

# Purposes of the random numbers drawn from a sample's `key`, the hash of (seed, epoch, index). Each purpose has its own
# stream, so switching one option on does not change the random numbers of another option.
TOP, LEFT, FLIP, POLICY, CUT_Y, CUT_X, ERASE, ERASE_AREA, ERASE_RATIO, ERASE_TOP, ERASE_LEFT, NOISE = range(12)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn (n, C, H, W) uint8 images into (x / 255 - mean) / std, float32 and channels_last."""
    n, channels, height, width = images.shape
    means, stds = torch.tensor(mean), torch.tensor(std)
    scale, shift = (x.to(images.device).repeat(width) for x in (1 / (255 * stds), -means / stds))
    # The CPU vectorises over long rows, but not over the three channels of a pixel.
    rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels).float()
    return rows.mul_(scale).add_(shift).view(n, height, width, channels).permute(0, 3, 1, 2)


class Augment:
    """Augment and normalise a batch of `train_loader`.

    `augment(batch, epoch, step)` returns the batch with a new "image", (n, C, H, W) float32, channels_last, and a
    "target". The target is the labels or, with mixup or cutmix, the share of each class, (n, num_classes) float32. The
    result is the same on any number of processes.

    Args:
        mean, std: mean and standard deviation of each channel, for pixel values from 0 to 1.
        size: side of the images in pixels.
        cropped: whether workers have already cropped, flipped and augmented the images. Only
            normalisation and the steps after it are then applied.

    Raises:
        ValueError: `auto_augment` is unknown, `cutout` is larger than an image, or `padding` is larger than an image
            that workers have not cropped.
    """

    def __init__(
        self,
        options: DataOptions,
        *,
        seed: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: int,
        num_classes: int,
        cropped: bool = False,
    ):
        for name, value in (("cutout", options.cutout), ("padding", 0 if cropped else options.padding)):
            if value > size:
                raise ValueError(f"{name} is {value} pixels, but images are {size} pixels wide: give at most {size}")
        self.options, self.seed, self.num_classes, self.cropped = options, seed, num_classes, cropped
        self.mean, self.std = mean, std
        self.policy = make_policy(options.auto_augment, mean)

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        options = self.options
        key = hash64(self.seed, SAMPLE, epoch, batch["index"])
        image, target = batch["image"], batch["label"]
        if not self.cropped:
            image = image.permute(0, 2, 3, 1)  # (n, H, W, C)
            image = crop_flip(image, options.padding, options.flip, key)
            if self.policy:
                image = apply_policy(self.policy, image, hash64(key, POLICY))
            image = image.permute(0, 3, 1, 2)
        image = normalize(image, self.mean, self.std).permute(0, 2, 3, 1)
        if options.cutout:
            image = cutout(image, options.cutout, key)
        if options.erase:
            image = erase(image, options.erase, key)
        if options.mixup or options.cutmix:
            if target.ndim == 1:
                target = torch.nn.functional.one_hot(target, self.num_classes).float()
            if not options.mix_off_epoch or epoch < options.mix_off_epoch:
                with seeded(self.seed, MIX, epoch, step):
                    image, target = mix(image, target, options.mixup, options.cutmix, options.mix_prob)
        return {**batch, "image": image.permute(0, 3, 1, 2), "target": target}


def crop_flip(image: Tensor, padding: int, probability: float, key: Tensor) -> Tensor:
    """Pad images (n, H, W, C) with black, crop to (H, W) at random, and flip some images left to right."""
    n, height, width, channels = image.shape
    device = image.device
    top = randint(hash64(key, TOP), 2 * padding + 1)
    left = randint(hash64(key, LEFT), 2 * padding + 1)
    flipped = uniform(hash64(key, FLIP)) < probability

    padded = torch.nn.functional.pad(image, (0, 0, padding, padding, padding, padding))
    x = torch.arange(width, device=device)
    x = left[:, None] + torch.where(flipped[:, None], width - 1 - x, x)  # (n, W)
    y = top[:, None] + torch.arange(height, device=device)  # (n, H)
    y = y + torch.arange(n, device=device)[:, None] * padded.shape[1]
    pixel = y[:, :, None] * padded.shape[2] + x[:, None, :]  # (n, H, W)
    return padded.reshape(-1, channels).index_select(0, pixel.flatten()).view(image.shape)


def cutout(image: Tensor, side: int, key: Tensor) -> Tensor:
    """Set a square around a random pixel to 0, the mean (DeVries & Taylor, arXiv:1708.04552)."""
    height, width = image.shape[1:3]
    top = randint(hash64(key, CUT_Y), height) - side // 2
    left = randint(hash64(key, CUT_X), width) - side // 2
    return image * (1 - box(top, left, side, side, image))


def erase(image: Tensor, probability: float, key: Tensor) -> Tensor:
    """Fill a random rectangle in some of the images with Gaussian noise.

    The rectangle covers 2 % to a third of the image, and its sides are in a ratio of at most 10 : 3 (Zhong et al.,
    "Random erasing data augmentation", AAAI 2020, with timm's ranges).
    """
    chosen = (uniform(hash64(key, ERASE)) < probability).nonzero()[:, 0]
    key, part = key[chosen], image[chosen]
    height, width = image.shape[1:3]
    area = (0.02 + (1 / 3 - 0.02) * uniform(hash64(key, ERASE_AREA))) * height * width
    ratio = torch.exp((2 * uniform(hash64(key, ERASE_RATIO)) - 1) * math.log(10 / 3))
    box_height = (area * ratio).sqrt().round().long().clamp(1, height)
    box_width = (area / ratio).sqrt().round().long().clamp(1, width)
    top = randint(hash64(key, ERASE_TOP), height - box_height + 1)
    left = randint(hash64(key, ERASE_LEFT), width - box_width + 1)

    counter = torch.arange(image[0].numel(), device=image.device).view(image.shape[1:])
    noise = normal(hash64(hash64(key, NOISE)[:, None, None, None], counter))
    result = image.clone()
    result[chosen] = torch.where(box(top, left, box_height, box_width, part) > 0, noise, part)
    return result


def box(top: Tensor, left: Tensor, box_height: int | Tensor, box_width: int | Tensor, image: Tensor) -> Tensor:
    """Make masks in the shape of `image`, (n, H, W, C) float32: 1 inside a rectangle, 0 outside.

    The corners (top, left) and the sides are in pixels, (n,) int64. Each side may also be one number for all images.
    """
    _, height, width, channels = image.shape
    y = torch.arange(height, device=image.device) - top[:, None]
    x = torch.arange(width, device=image.device).repeat_interleave(channels) - left[:, None]
    box_height, box_width = (torch.as_tensor(n, device=image.device).view(-1, 1) for n in (box_height, box_width))
    rows, columns = ((y >= 0) & (y < box_height)).float(), ((x >= 0) & (x < box_width)).float()
    return (rows[:, :, None] * columns[:, None, :]).view(image.shape)


def mix(image: Tensor, target: Tensor, mixup: float, cutmix: float, probability: float) -> tuple[Tensor, Tensor]:
    """Mix each sample with its neighbour, by mixup or cutmix.

    Mixup is from Zhang et al. (ICLR 2018), and cutmix is from Yun et al. (ICCV 2019). All samples of a batch are mixed
    in the same ratio.

    Args:
        image: (n, H, W, C), n even.
        target: (n, classes).
        mixup, cutmix: alpha of each method; 0 turns it off. If both are on, one is drawn at random for the batch.
        probability: probability that the batch is mixed at all.
    """
    if np.random.rand() >= probability:
        return image, target
    use_cutmix = cutmix > 0 and (mixup == 0 or np.random.rand() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = np.random.beta(alpha, alpha)
    if use_cutmix:
        (top, bottom, left, right), share = cutmix_bbox_and_lam(image.permute(0, 3, 1, 2).shape, share)
        image = image.clone()
        image[:, top:bottom, left:right] = neighbour(image[:, top:bottom, left:right])
    else:
        image = (image * share).add_(neighbour(image).mul_(1 - share))
    return image, target * share + neighbour(target) * (1 - share)


def neighbour(x: Tensor) -> Tensor:
    """Swap rows 0 and 1, 2 and 3, and so on: (n, ...) -> (n, ...)."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
