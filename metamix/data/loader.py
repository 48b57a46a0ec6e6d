"""Load batches of a source: from memory for small data sets, through worker processes for others.

`metamix.data.order` decides which samples belong to a step.

An image that cannot be read is replaced, with its label, by the next readable image of its source. The first image
follows the last one. In evaluation, the replacement gets the index -1, so that it is not scored.
"""

import atexit
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, Protocol

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import Compose

from metamix.utils.system import usable_workers
from metamix.utils.text import package_logger

from .auto_augment import make_policy
from .counter_rng import SAMPLE, seeded
from .files import Broken, CorruptImage, first_readable, limit_pixels
from .memory import channel_statistics, image_size, in_memory, pixels
from .options import DataOptions, ReadingOptions, SourceOptions, verify_command
from .order import BalancedOrder, EvalOrder, Order, TrainOrder
from .sources import Source

log = package_logger(__name__)

Batch = dict[str, Any]
Transform = Callable[[Any], Any]  # function of a sample, run in a worker
# Iterators that are reading images, including iterators that only a traceback keeps alive.
RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()


class SampleReader(Protocol):
    """Read samples in worker processes. A `Source` is the reader of labelled images."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Any:
        """Read a sample.

        Raises:
            CorruptImage: the sample cannot be read, and the next one replaces it.
            ValueError: the sample cannot be read and must not be replaced, so the run ends with this message.
        """

    def path(self, index: int) -> str:
        """Name a sample for messages."""


def train_loader(
    source: Source, options: DataOptions, *, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
) -> "MemoryLoader | StreamLoader":
    """Make the loader of training batches.

    `len(loader)` is the number of steps in an epoch, and `loader.epoch(epoch, start=0)` yields their batches.

    A batch is {"image": (n, C, H, W) uint8, channels_last, "label": (n,) int64, "index": (n,) int64}, with n =
    batch_size / world_size. With several labels per image, "label" is (n, classes) float32. Images from memory are
    not augmented yet. Workers crop and flip streamed images and apply `auto_augment` to them. `Augment` does the rest.

    Args:
        batch_size: images in the global batch, a multiple of `world_size`. Images left over at the end of an epoch are
            dropped. A source smaller than one batch is repeated to fill a batch; repeats have an "index" of
            `len(source)` or more.
        rank, world_size: this process gets the rank-th of `world_size` contiguous parts of the batch.
        seed: the order of samples and the workers' random numbers depend on it.
    """
    order = TrainOrder(len(source), batch_size, rank, world_size, seed)
    if options.sampling == "balanced":
        order = BalancedOrder(source.labels, batch_size, rank, world_size, seed)
    if in_memory(source, options):
        return MemoryLoader(source, options, order)
    return StreamLoader(source, options, order, train_transform(source, options), seed, verify=verify_command(options))


def eval_loader(
    source: Source, options: SourceOptions, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> "MemoryLoader | StreamLoader":
    """Make an iterable loader of evaluation batches.

    The loaders of all ranks together yield every sample once, in order. Batches have the form that `train_loader`
    describes; the last one may be smaller. `batch_size` counts the images of all processes together, and this process
    gets the rank-th of `world_size` contiguous parts of the samples.
    """
    order = EvalOrder(len(source), max(1, batch_size // world_size), rank, world_size)
    if in_memory(source, options):
        return MemoryLoader(source, options, order)
    transform = create_transform(  # timm's resize and centre crop, to a (C, H, W) uint8 tensor
        input_size=image_size(source, options),
        interpolation=options.interpolation,
        use_prefetcher=True,  # uint8, not normalised
        crop_pct=options.crop_pct,
    )
    return StreamLoader(source, options, order, partial(transform_image, transform), verify=verify_command(options))


class MemoryLoader:
    """Pick batches from a split in memory."""

    def __init__(self, source: Source, options: SourceOptions, order: Order):
        decoded = pixels(source, options)
        self.order, self.images, self.labels = order, decoded.images, source.images.labels
        self.corrupt = CorruptImages(len(source), options.corrupt_limit, verify_command(options), order)
        numbers = source.indices.tolist()
        rows, index = [], []

        def row(i: int) -> int:
            if numbers[i] in decoded.broken:
                raise CorruptImage(decoded.broken[numbers[i]])
            return numbers[i]

        for i in range(len(numbers)):
            readable, broken = first_readable(len(numbers), i, row, source.path)
            for path, reason in broken:
                self.corrupt.add(path, reason)
            rows.append(readable)
            index.append(-1 if broken and not isinstance(order, TrainOrder) else i)
        self.rows = torch.tensor(rows)  # row of each sample in `images`
        self.index = torch.tensor(index)  # "index" of each sample in batches

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `start` on."""
        for number in self.order.epoch(epoch, start):
            sample = number % len(self.rows)
            rows = self.rows[sample]
            image = self.images.index_select(0, rows).permute(0, 3, 1, 2)
            yield {"image": image, "label": self.labels[rows], "index": self.index[sample] + number - sample}


class StreamLoader:
    """Decode and transform batches in worker processes.

    Args:
        transform: function that the workers apply to each sample.
        collate: function that makes a batch of transformed samples; the loader adds "index". Default: `collate_images`.
        verify: the command that lists all broken images, for a message.
    """

    def __init__(
        self,
        samples: SampleReader,
        options: ReadingOptions,
        order: Order,
        transform: Transform,
        seed: int = 0,
        *,
        collate: Callable[[list[Any]], Batch] | None = None,
        verify: str,
    ):
        self.order = order
        self.corrupt = CorruptImages(len(samples), options.corrupt_limit, verify, order)
        self.sampler = EpochSampler(order)
        workers = usable_workers(options.workers)
        self.loader: DataLoader = DataLoader(
            TransformedSamples(samples, transform, seed, order),  # type: ignore[arg-type]  # it has no length
            batch_sampler=self.sampler,
            num_workers=workers,
            worker_init_fn=partial(start_worker, Image.MAX_IMAGE_PIXELS),
            persistent_workers=workers > 0 and isinstance(order, TrainOrder),  # evaluation stops its workers
            collate_fn=partial(collate_read, collate or collate_images),
            pin_memory=torch.cuda.is_initialized(),  # useful only if this process uses a GPU
            generator=torch.Generator(),  # else every epoch would draw from torch's global generator
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `start` on.

        Raises:
            CorruptImage: too many images cannot be read, or a sample that must not be replaced cannot be read.
            OSError: a worker process died.
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        try:
            batches = iter(self.loader)
            RUNNING.add(batches)
            for batch in batches:
                if "failure" in batch:
                    raise CorruptImage(batch["failure"])
                for path, reason in batch.pop("broken"):
                    self.corrupt.add(path, reason)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"a process that reads images died ({error}), perhaps for lack of memory: lower --workers, or give the "
                f"machine more memory and shared memory, and repeat the command"
            ) from error


@atexit.register  # runs before the function that torch registered, after which torch stops no workers
def stop_workers() -> None:
    """Stop all workers that still run, in an unfinished epoch or between two epochs of a training loader.

    At exit, Python sends each worker one SIGTERM and waits. Workers ignore the first SIGTERM, so it would wait forever.
    """
    for batches in list(RUNNING):
        if hasattr(batches, "_shutdown_workers"):  # torch has no public function for this
            batches._shutdown_workers()


def stop_workers_at_exit(inherited: "weakref.WeakSet[Any]") -> None:
    """Stop workers also when a child process of multiprocessing exits: it runs finalizers but skips atexit."""
    inherited.clear()  # these workers belong to the parent process
    Finalize(None, stop_workers, exitpriority=100)


stop_workers_at_exit(RUNNING)
register_after_fork(RUNNING, stop_workers_at_exit)  # in a child process, multiprocessing drops the parent's finalizers


def start_worker(max_pixels: int | None, worker: int) -> None:
    """Set the limit on pixels, and make a worker ignore SIGINT, SIGHUP and the first SIGTERM.

    Terminals and clusters send signals to all processes of a job, but training needs its workers until it has stopped.
    """
    limit_pixels(max_pixels)
    Queue._on_queue_feeder_error = staticmethod(end_worker)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def end_worker(error: Exception, batch: object) -> None:
    """End a worker that cannot send a batch, for example because /dev/shm is full."""
    print(repr(error), file=sys.stderr)
    os._exit(1)  # by default, Python drops the batch, and the main process waits for it forever


class EpochSampler(Sampler):
    """Yield the batches of an epoch as lists of (epoch, index). Workers outlive an epoch, so they need its number."""

    def __init__(self, order: Order):
        self.order, self.epoch, self.start = order, 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index in self.order.epoch(self.epoch, self.start):
            yield [(self.epoch, i) for i in index.tolist()]


class TransformedSamples:
    """Read and transform samples in workers, with random numbers seeded for each sample."""

    def __init__(self, samples: SampleReader, transform: Transform, seed: int, order: Order):
        self.samples, self.transform, self.seed = samples, transform, seed
        self.scored = not isinstance(order, TrainOrder)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int, Broken] | Exception:
        epoch, index = key
        samples = self.samples
        try:
            sample, broken = first_readable(len(samples), index % len(samples), samples.read, samples.path)
        except (CorruptImage, ValueError) as error:
            return error  # an error raised in a worker would arrive as the text of a traceback
        with seeded(self.seed, SAMPLE, epoch, index):
            return self.transform(sample), -1 if broken and self.scored else index, broken


def collate_read(collate: Callable[[list[Any]], Batch], read: list[Any]) -> Batch:
    """Make a batch of the items of `TransformedSamples`; if some are errors, return only the first, as "failure"."""
    failure = next((item for item in read if isinstance(item, Exception)), None)
    if failure is not None:
        return {"failure": str(failure)}
    samples, indices, broken = zip(*read)
    return collate(list(samples)) | {"index": torch.tensor(indices), "broken": [*chain(*broken)]}


def transform_image(transform: Callable[[Image.Image], Tensor], sample: tuple[Image.Image, Any]) -> tuple[Tensor, Any]:
    """Apply a transform to the image of an (image, label) sample."""
    image, label = sample
    return transform(image), label


def collate_images(samples: list[tuple[Tensor, int | Tensor]]) -> Batch:
    """Make a batch of (image, label) samples."""
    images, labels = zip(*samples)
    return {
        "image": torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2),  # channels_last
        "label": torch.stack([torch.as_tensor(label) for label in labels]),
    }


def collate_pairs(samples: list[Any]) -> Batch:
    """Make a batch of (name, image, target) samples; a target may be a mask. Images and targets stay in lists."""
    names, images, targets = (list(column) for column in zip(*samples))
    return {"image": images, "target": targets, "name": names}


def collate_crops(samples: list[Any]) -> Batch:
    """Make a batch of (name, image, target) samples of one size. Images and targets are stacked into tensors."""
    batch = collate_pairs(samples)
    return batch | {key: torch.stack(batch[key]) for key in ("image", "target")}


def train_transform(source: Source, options: DataOptions) -> Transform:
    """Make the function that crops, flips and augments an (image, label) sample; PIL images become (C, H, W) uint8."""
    size = image_size(source, options)
    crop, _, finish = create_transform(
        input_size=size,
        interpolation=options.interpolation,
        use_prefetcher=True,  # uint8, not normalised
        scale=(options.crop_scale, 1.0),
        hflip=options.flip,
        color_jitter=None,  # type: ignore[arg-type]  # timm accepts None, which its annotation omits
        is_training=True,
        separate=True,
    )
    policy = make_policy(options.auto_augment, channel_statistics(source, options)[0])
    return partial(transform_image, Compose([crop, policy, finish] if policy else [crop, finish]))


class CorruptImages(dict[str, str]):
    """Collect the images that could not be read, path -> reason, and log each image once.

    If more than the share `limit` of the `total` images is broken, the run ends with a message that names `command`,
    which lists all broken images. Each process counts only the images that it reads.
    """

    def __init__(self, total: int, limit: float, command: str, order: Order):
        super().__init__()
        self.total, self.limit, self.command = total, limit, command
        self.consequence = "replaced" if isinstance(order, TrainOrder) else "not scored"

    def add(self, path: str, reason: str) -> None:
        """Add an image that could not be read; raise CorruptImage if there are too many."""
        if path in self:
            return
        self[path] = reason
        log.warning("cannot read an image (%d of %d so far), %s: %s", len(self), self.total, self.consequence, reason)
        if len(self) > self.limit * self.total:
            raise CorruptImage(
                f"{len(self)} of {self.total} images cannot be read, more than corrupt_limit allows (a share of "
                f"{self.limit:g}); the last was {reason}. Remove them, or raise --corrupt-limit to continue a run. To "
                f"list them all: {self.command}"
            )
