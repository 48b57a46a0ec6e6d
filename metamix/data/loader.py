"""Batches of a source: from memory for small sets, through worker processes for the others.

The samples of a step are a slice of a permutation that depends on (seed, epoch) alone, and rank r of `world` takes
the r-th part of it: the global batch is the same on any number of processes, and an epoch can be entered at any step.

An image that cannot be read is replaced, label included, by the next one of its source that can (the first follows
the last). In evaluation the index of the sample is then -1, so that nobody scores one as the other.
"""

import logging
import signal
import weakref

import torch
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.transforms import Compose

from .auto_augment import pil_transform
from .counter_rng import ORDER, SAMPLE, generator, seeded
from .memory import channel_statistics, image_size, in_memory, pixels
from .sources import CorruptImage, first_readable

log = logging.getLogger(__name__)


def train_loader(source, options, *, batch_size, rank=0, world=1, seed=0):
    """Batches for training: an object with `len()`, the steps of an epoch, and `epoch(epoch, start=0)`, an iterator.

    Args:
        batch_size: images of the global batch, a multiple of `world`. What is left over at the end of an epoch is
            dropped; a source smaller than one batch is repeated to fill one.
        rank, world: this process gets the rank-th of `world` contiguous parts.

    A batch is {"image": (n, C, H, W) uint8, channels_last, "label": (n,) int64, "index": (n,) int64}, with n =
    batch_size / world. From memory, images are as they are in the set. Streamed ones were cropped, flipped and put
    through `auto_augment` by the workers, and the batch says so: "cropped", (n,) bool, true. `Augment` does the rest.
    """
    if batch_size % world:
        raise ValueError(
            f"a global batch of {batch_size} cannot be divided over {world} processes: give a multiple of {world}"
        )
    order = TrainOrder(len(source), batch_size, rank, world, seed)
    if in_memory(source, options):
        return MemoryLoader(source, options, order)
    return StreamLoader(source, options, order, transform(source, options, train=True), seed)


def eval_loader(source, options, *, batch_size, rank=0, world=1):
    """Batches for evaluation, an iterable: every sample once over all ranks, in order; the last ones may be smaller.

    They are those of `train_loader`, but for the index of samples that were replaced, -1: leave these out of scores.
    """
    order = EvalOrder(len(source), max(1, batch_size // world), rank, world)
    if in_memory(source, options):
        return MemoryLoader(source, options, order, mark_replaced=True)
    return StreamLoader(source, options, order, transform(source, options, train=False), mark_replaced=True)


class TrainOrder:
    """Which samples make up this rank's part of each step of an epoch."""

    def __init__(self, total, batch_size, rank, world, seed):
        self.total, self.batch_size, self.seed = total, batch_size, seed
        self.part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def __len__(self):
        return max(1, self.total // self.batch_size)

    def epoch(self, epoch, start):
        order = torch.randperm(self.total, generator=generator(self.seed, ORDER, epoch))
        order = order.repeat(-(-self.batch_size // self.total))
        return [order[step * self.batch_size :][: self.batch_size][self.part] for step in range(start, len(self))]


class EvalOrder:
    """Every sample once, over all ranks."""

    def __init__(self, total, batch_size, rank, world):
        part = torch.arange(rank * total // world, (rank + 1) * total // world)
        self.batches = part.split(batch_size) if len(part) else ()

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch, start):
        return self.batches[start:]


class MemoryLoader:
    """Batches picked from the decoded split."""

    def __init__(self, source, options, order, mark_replaced=False):
        decoded = pixels(source, options)
        self.order, self.images, self.labels = order, decoded.images, source.images.labels
        self.corrupt = Corrupt(len(source), options)
        numbers, rows, index = source.indices.tolist(), [], []

        def row(i):
            if numbers[i] in decoded.broken:
                raise CorruptImage(decoded.broken[numbers[i]])
            return numbers[i]

        for i in range(len(numbers)):
            found, broken = first_readable(len(numbers), i, row, source.path)
            for path, reason in broken:
                self.corrupt.add(path, reason)
            rows.append(found)
            index.append(-1 if broken and mark_replaced else i)
        self.rows, self.index = torch.tensor(rows), torch.tensor(index)  # where sample i is found, and its index

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch, start=0):
        for index in self.order.epoch(epoch, start):
            rows = self.rows[index]
            image = self.images.index_select(0, rows).permute(0, 3, 1, 2)
            yield {"image": image, "label": self.labels[rows], "index": self.index[index]}


class StreamLoader:
    """Batches decoded and transformed by worker processes."""

    def __init__(self, source, options, order, transform, seed=0, mark_replaced=False):
        self.order = order
        self.corrupt = Corrupt(len(source), options)
        self.sampler = Schedule(order)
        self.loader = DataLoader(
            Decoder(source, transform, seed, mark_replaced),
            batch_sampler=self.sampler,
            num_workers=options.workers,
            worker_init_fn=outlive_first_signal,
            persistent_workers=options.workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_initialized(),  # else training is on the CPU, though there may be a GPU
            generator=torch.Generator(),  # or every epoch would draw from the run's own generator
        )
        # At its end Python sends workers one SIGTERM and waits for them: for ever, unless they have been let go before.
        weakref.finalize(self, setattr, self.loader, "_iterator", None)

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch, start=0):
        self.sampler.epoch, self.sampler.start = epoch, start
        for batch in self.loader:
            if "failure" in batch:
                raise CorruptImage(batch["failure"])
            for path, reason in batch.pop("broken"):
                self.corrupt.add(path, reason)
            yield batch


def outlive_first_signal(worker):
    """Ctrl-C comes to all processes of a terminal, a cluster's SIGTERM to all of a job; training, which stops in its
    own time, still needs these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class Schedule:
    """The batches of one epoch, as (epoch, index) of each sample: workers live on over epochs and need to be told."""

    def __init__(self, order):
        self.order, self.epoch, self.start = order, 0, 0

    def __len__(self):
        return len(self.order) - self.start

    def __iter__(self):
        for index in self.order.epoch(self.epoch, self.start):
            yield [(self.epoch, i) for i in index.tolist()]


class Decoder:
    """The data set that workers read: one sample, decoded and transformed; what is random is drawn for it alone."""

    def __init__(self, source, transform, seed, mark_replaced):
        self.source, self.transform, self.seed, self.mark_replaced = source, transform, seed, mark_replaced

    def __getitem__(self, key):
        epoch, index = key
        try:
            image, label, broken = self.source.read_or_next(index)
        except CorruptImage as error:
            return error  # raised here, it would arrive as the text of a traceback
        with seeded(self.seed, SAMPLE, epoch, index):
            return self.transform(image), label, -1 if broken and self.mark_replaced else index, broken


def collate(samples):
    for sample in samples:
        if isinstance(sample, CorruptImage):
            return {"failure": str(sample)}
    images, labels, indices, broken = zip(*samples)
    return {
        "image": torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2),  # channels_last
        "cropped": torch.ones(len(images), dtype=torch.bool),
        "label": torch.tensor(labels),
        "index": torch.tensor(indices),
        "broken": [pair for pairs in broken for pair in pairs],
    }


def transform(source, options, train):
    """timm's transforms of a PIL image into a (C, H, W) uint8 tensor."""
    size = image_size(source, options)
    common = dict(input_size=size, interpolation=options.interpolation, use_prefetcher=True)  # uint8, not normalised
    if not train:
        return create_transform(**common, crop_pct=options.crop_pct)
    random = dict(scale=(options.crop_scale, 1.0), hflip=options.flip, color_jitter=None)
    crop, _, finish = create_transform(**common, **random, is_training=True, separate=True)
    policy = pil_transform(options.auto_augment, size, channel_statistics(source, options)[0])
    return Compose([crop, policy, finish] if policy else [crop, finish])


class Corrupt(dict):
    """Images that could not be read: path -> why. Each is named in the log once; too many of them end the run."""

    def __init__(self, total, options):
        super().__init__()
        self.total, self.limit = total, options.corrupt_limit
        self.command = f"python -m metamix.data.verify {options.data}"
        if options.data_dir:
            self.command += f" --data-dir {options.data_dir}"

    def add(self, path, reason):
        if path in self:
            return
        self[path] = reason
        log.warning("unreadable image %d of %d, left out: %s", len(self), self.total, reason)
        if len(self) > self.limit * self.total:
            raise CorruptImage(
                f"{len(self)} of {self.total} images cannot be read, more than corrupt_limit allows (a share of "
                f"{self.limit:g}); the last was {reason}. To list them all: {self.command}"
            )
