"""Batches for detectors: torchvision's transforms in worker processes, every random number a function of (seed, epoch,
index).

A batch is {"image": a list of (3, H, W) uint8 tensors of differing sizes, "target": a list of what each shows,
"index": (n,) int64}; for evaluation images have the size of their files. An image that cannot be read is replaced by
the next one, and its index by -1, so that nobody scores one as the other.
"""

import torch
from torchvision.transforms import v2

from metamix.data.loader import EvalOrder, StreamLoader, TrainOrder
from metamix.data.sources import CorruptImage, first_readable

from .coco import BoxSource


def train_loader(sources: list[BoxSource], options, *, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0):
    """Training batches of the images of all sources: `len()` steps an epoch, and `epoch(epoch, start=0)`, an
    iterator."""
    samples = Samples(sources)
    order = TrainOrder(len(samples), batch_size, rank, world, seed)
    return BoxLoader(samples, options, order, train_transform(options), seed)


def eval_loader(source: BoxSource, options, *, batch_size: int, rank: int = 0, world: int = 1):
    """Every image once over all ranks, in order."""
    order = EvalOrder(len(source), max(1, batch_size // world), rank, world)
    return BoxLoader(Samples([source]), options, order, v2.Identity())


def train_transform(options) -> v2.Compose:
    """A crop, flips, a size and colours, each at random; boxes follow, and those that are no longer there are
    dropped."""
    low, high = (max(1, round(options.min_size * scale)) for scale in options.scales)
    return v2.Compose(
        [
            v2.ClampBoundingBoxes(),
            v2.RandomApply([v2.RandomIoUCrop()], p=options.iou_crop),
            v2.RandomHorizontalFlip(options.flip),
            v2.RandomVerticalFlip(options.flip_vertical),
            v2.RandomChoice(
                [
                    v2.RandomShortestSize(size, max_size=round(options.max_size * size / options.min_size))
                    for size in range(low, high + 1)
                ]
            ),
            v2.RandomPhotometricDistort(p=options.photometric),
            v2.SanitizeBoundingBoxes(),
        ]
    )


class Samples:
    """The images of several sources, one after the other, as `StreamLoader` reads them."""

    def __init__(self, sources: list[BoxSource]):
        self.places = [(source, i) for source in sources for i in range(len(source))]

    def __len__(self) -> int:
        return len(self.places)

    def read_or_next(self, index: int):
        """(sample, None, [(path, reason), ...]): see `first_readable`."""
        sample, broken = first_readable(len(self), index, self.read, self.path)
        return sample, None, broken

    def read(self, index: int):
        source, place = self.places[index]
        return source.read(place)

    def path(self, index: int) -> str:
        source, place = self.places[index]
        return source.path(place)


class BoxLoader(StreamLoader):
    """`StreamLoader` of images and boxes."""

    def __init__(self, samples: Samples, options, order, transform, seed: int = 0):
        super().__init__(samples, options, order, transform, seed, mark_replaced=True)
        self.loader.collate_fn = collate
        self.corrupt.command = f"python -m metamix.detection.verify {options.data_dir}"


def collate(samples) -> dict:
    for sample in samples:
        if isinstance(sample, CorruptImage):
            return {"failure": str(sample)}
    pairs, _, indices, broken = zip(*samples)
    images, targets = zip(*pairs)
    return {
        "image": [image.as_subclass(torch.Tensor) for image in images],
        "target": [{key: value.as_subclass(torch.Tensor) for key, value in target.items()} for target in targets],
        "index": torch.tensor(indices),
        "broken": [pair for pairs in broken for pair in pairs],
    }
