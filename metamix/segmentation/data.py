"""Load images and masks in batches, augmented by worker processes.

A training batch is {"image": (n, 3, h, w) uint8, "target": (n, h, w) uint8, "index": (n,) int64, "name": a list}. The
target holds labels, and 255 for ignored pixels. A batch to score has the same keys, but its images and targets are
lists: the images are resized, and the targets keep their original size. Images are resized bilinearly, and masks with
nearest-neighbour interpolation. If an image or its mask cannot be read, the next readable sample takes its place. In a
batch to score, the replacement has the index -1, and it is not scored. A mask with a value that is not a label stops
the run. Every random number is a function of (seed, epoch, index).
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from metamix.data import CorruptImage, normalize
from metamix.data.files import content_digest, read_pixels
from metamix.data.loader import SampleReader, StreamLoader, collate_crops, collate_pairs
from metamix.data.options import choose_splits
from metamix.data.order import EvalOrder, TrainOrder
from metamix.layers.image_inference import Size
from metamix.layers.spatial import resize_nearest
from metamix.training.task import Batch
from metamix.weights.checksums import digest

from .labels import IGNORED, Labels, ignored_hint, read_mask
from .options import SegmentationOptions, verify_command
from .sources import Split, check_sizes, open_set

TRIES = 10  # maximum number of crops to draw; the last is used even if a class still has too large a share
# Longest side of an enlarged image, in multiples of `min_size`. Without this limit, an image of 1 x 100 pixels
# takes minutes.
LONGEST = 8
MEMORY_LIMIT = 2**30  # bytes; with memory="auto", larger training splits are not decoded into memory

Pair = tuple[str, Tensor, Tensor]  # name, image (3, H, W) uint8, mask (H, W) uint8


class SegmentationData:
    """Open the splits of a data set, check them, and make their loaders.

    Args:
        options: the training options. To evaluate a model, give the values that it was trained with.
        train: whether to open the training split.
    """

    def __init__(self, options: SegmentationOptions, *, train: bool = True):
        self.options, self.notes = options, list[str]()
        self.name = Path(options.data_dir).resolve().name
        self.verify = verify_command(options)
        self.mean = options.mean or tuple(IMAGENET_DEFAULT_MEAN)  # loading weights may replace mean and std
        self.std = options.std or tuple(IMAGENET_DEFAULT_STD)
        self.set = open_set(options)
        self.labels = self.set.labels
        self.classes = self.labels.classes
        test, held_out = choose_splits(self.set.splits, options.test_on, options.train_on, train=train)
        self.test_split = test  # the data set's name for the split that is scored as "test"
        if not options.test_on and test not in self.set.splits:
            raise ValueError(
                f"there are no images to score: the data have only the split {', '.join(self.set.splits)}. Move some "
                f"images and masks to a split named val, or give --test-on"
            )
        self.parts = {"train": [s for name in options.train_on for s in self.set.find(name)]} if train else {}
        self.scored = {"test": self.set.find(test)} | ({"holdout": self.set.find("val")} if held_out else {})
        self.parts |= self.scored
        sizes = {split: check_sizes(samples) for split, samples in self.parts.items()}
        if train:
            self._check_crops(self.parts["train"], sizes["train"])
            self._check_scored_masks()
            self.in_memory = options.memory == "yes" or (
                options.memory == "auto" and sum(4 * h * w for h, w in sizes["train"]) <= MEMORY_LIMIT
            )
        self.identity: dict[str, Any] = {
            "test_split": self.test_split,
            "samples": {split: len(samples) for split, samples in self.parts.items()},
            "classes": list(self.classes),
            "digest": {
                split: digest((s.name, s.image.stat().st_size, s.mask.stat().st_size) for s in samples)
                for split, samples in self.parts.items()
            },
        }
        if train:
            self.identity["content"] = {
                split: content_digest([path for sample in samples for path in (sample.image, sample.mask)])
                for split, samples in self.parts.items()
            }

    def _check_crops(self, samples: Split, sizes: Sequence[tuple[int, int]]) -> None:
        options = self.options
        if options.pad:
            return
        for sample, size in zip(samples, sizes):
            h, w = resized_size(size, options.min_size, options.max_size, options.scales[0])
            if h < options.crop_size[0] or w < options.crop_size[1]:
                raise ValueError(
                    f"{sample.image} has {h} x {w} pixels at the smallest scale, less than the crop of "
                    f"{options.crop_size[0]} x {options.crop_size[1]}: give a smaller --crop, or --pad"
                )

    def _check_scored_masks(self) -> None:
        """Raise ValueError before training if a mask to score has a wrong value, or a split has no labelled pixels."""
        for samples in self.scored.values():
            counts = MaskedImages(samples, self.labels).label_counts()
            if counts.any() and not counts[:IGNORED].any():
                raise ValueError(f"all pixels of the masks in {samples[0].mask.parent} are ignored: none can be scored")

    @cached_property
    def train_images(self) -> "MaskedImages":
        """Open the images to train on, and decode them into memory if the option `memory` says so."""
        images = MaskedImages(self.parts["train"], self.labels)
        if self.in_memory:
            images.load()
        return images

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> StreamLoader:
        """Make a loader of augmented crops; raise ValueError if masks in memory are wrong or show at most one class."""
        images = self.train_images
        if images.loaded:
            counts = images.label_counts()
            missing = [c for c, n in zip(self.classes, counts) if not n]
            text = f"no mask to train on has a pixel of {', '.join(missing)}"
            if len(missing) >= len(self.classes) - 1:
                raise ValueError(
                    f"{text}, so there is nothing to tell apart{ignored_hint(counts, self.labels)}. To list all "
                    f"problems: {self.verify}"
                )
            if missing:
                # Replace the notes instead of adding one, since the engine may make the loader twice.
                self.notes = [f"{text}; to see the shares of all classes: {self.verify}"]
        order = TrainOrder(len(images), batch_size, rank, world_size, seed)
        transform = train_transform(self.options, self.mean)
        return StreamLoader(images, self.options, order, transform, seed, collate=collate_crops, verify=self.verify)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> dict[str, StreamLoader]:
        """Make the loaders of the splits to score, with one image in a batch."""
        return {
            split: self.scoring_loader(MaskedImages(samples, self.labels), EvalOrder(len(samples), 1, rank, world_size))
            for split, samples in self.scored.items()
        }

    def scoring_loader(self, images: SampleReader, order: EvalOrder) -> StreamLoader:
        """Make a loader of images to score, with one image in a batch."""
        transform = partial(resize_pair, options=self.options)
        return StreamLoader(images, self.options, order, transform, collate=collate_pairs, verify=self.verify)

    def training_images(self) -> "MaskedImages":
        """Open the images to train on, without the images of the split that is scored as "test"."""
        names = [name for name in self.options.train_on if name in self.set.splits and name != self.test_split]
        samples = [sample for name in names for sample in self.set.find(name)]
        check_sizes(samples)
        return MaskedImages(samples, self.labels)

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Normalise the images, and convert the targets to int64. The workers have already augmented both."""
        return batch | {"image": self.normalize(batch["image"]), "target": batch["target"].long()}

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images (n, 3, H, W) uint8 to float32."""
        return normalize(images, self.mean, self.std)


class MaskedImages:
    """Read the images and masks of a split for `StreamLoader`.

    `load`, `label_counts` and `read` raise `BadMask` if a mask is wrong; see `read_mask`.
    """

    def __init__(self, samples: Split, labels: Labels):
        self.samples, self.labels = samples, labels
        self.loaded: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def load(self) -> None:
        """Decode all images and masks into memory, except for files that cannot be read."""
        for i in tqdm(range(len(self)), desc="decoding", unit="img", leave=False, disable=None):
            with suppress(CorruptImage):  # the loader reports it when it reads the sample
                self.loaded[i] = self.read(i)

    def label_counts(self) -> Tensor:
        """Count the pixels of each label in the readable masks: (256,) int64."""
        counts = torch.zeros(256, dtype=torch.int64)
        for i, sample in enumerate(tqdm(self.samples, desc="counting", unit="mask", leave=False, disable=None)):
            with suppress(CorruptImage):  # the loader reports it when it reads the sample
                mask = self.loaded[i][2] if i in self.loaded else read_mask(sample.mask, self.labels)
                counts += torch.bincount(mask.flatten(), minlength=256)
        return counts

    def path(self, index: int) -> str:
        return str(self.samples[index].image)

    def read(self, index: int) -> Pair:
        """Read an image and its mask; raise CorruptImage if either cannot be decoded."""
        if index in self.loaded:
            return self.loaded[index]
        sample = self.samples[index]
        image, mask = read_pixels(sample.image), read_mask(sample.mask, self.labels)
        return sample.name, tv_tensors.Image(image), tv_tensors.Mask(mask)


def resize_pair(pair: Pair, options: SegmentationOptions) -> Pair:
    """Resize the image of a sample to score; its mask keeps its original size."""
    name, image, mask = pair
    return v2.ToPureTensor()((name, resize_image(image, options.min_size, options.max_size), mask))


def resized_size(size: Size, min_size: int, max_size: int, scale: float = 1.0) -> Size:
    """Return the size of an image resized to a shorter side of `scale` * `min_size`, with the same aspect ratio.

    Args:
        size: (height, width).
        min_size: shorter side in pixels, before `scale` is applied; 0 keeps the size of the image.
        max_size: limit of the longer side in pixels, before `scale` is applied. With 0, an image is not enlarged beyond
            `LONGEST` times `min_size`.
    """
    factor = min_size / min(size) if min_size else 1.0
    factor = min(factor, (max_size or max(*size, LONGEST * min_size)) / max(size))
    return max(1, round(size[0] * factor * scale)), max(1, round(size[1] * factor * scale))


def resize_image(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """Resize an image (3, H, W) to the size that `resized_size` returns for it."""
    size = resized_size((image.shape[-2], image.shape[-1]), min_size, max_size)
    return F.resize_image(image, list(size), antialias=True)


def random_scale(pair: Pair, options: SegmentationOptions) -> Pair:
    """Resize an image and its mask by the same random factor."""
    name, image, mask = pair
    low, high = options.scales
    scale = low + (high - low) * float(torch.rand(()))
    height, width = mask.shape[-2:]
    size = list(resized_size((height, width), options.min_size, options.max_size, scale))
    return name, F.resize(image, size, antialias=True), tv_tensors.Mask(resize_nearest(mask, size))


def limited_crop(pair: Pair, options: SegmentationOptions, fill: Sequence[int]) -> Pair:
    """Crop an image and its mask at random; draw up to ten crops until no class has too large a share.

    An image that is smaller than the crop is padded with the colour `fill` on the right and at the bottom, and its mask
    with ignored pixels.
    """
    name, image, mask = pair
    (height, width), (h, w) = options.crop_size, mask.shape[-2:]
    place = {"top": 0, "left": 0, "height": min(height, h), "width": min(width, w)}
    for _ in range(TRIES):
        place["top"], place["left"] = (
            int(torch.randint(free + 1, ())) for free in (h - place["height"], w - place["width"])
        )
        if options.crop_share == 1 or largest_share(F.crop_mask(mask, **place)) <= options.crop_share:
            break
    image, mask = F.crop(image, **place), F.crop(mask, **place)
    padding = [0, 0, width - place["width"], height - place["height"]]
    if any(padding):
        image, mask = F.pad(image, padding, fill=list(fill)), F.pad(mask, padding, fill=IGNORED)
    return name, image, mask


def largest_share(mask: Tensor) -> float:
    """Return the share of the most frequent class among the pixels that are not ignored, or 0 if there are none."""
    counts = torch.bincount(mask.flatten(), minlength=256)[:IGNORED]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 0.0


def train_transform(options: SegmentationOptions, mean: tuple[float, ...]) -> v2.Compose:
    """Compose the random scale, crop, flip and colour jitter of training, for a sample (name, image, mask)."""
    fill = [round(255 * value) for value in mean]
    steps = [
        partial(random_scale, options=options),
        partial(limited_crop, options=options, fill=fill),
        v2.RandomHorizontalFlip(options.flip),
    ]
    if options.photometric:
        colours = v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)
        steps.append(v2.RandomApply([colours], p=options.photometric))
    return v2.Compose([*steps, v2.ToPureTensor()])
