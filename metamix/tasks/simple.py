"""Provide parts for tasks with one output per image and images of one size; docs/extend.md builds a task from them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from metamix.data.files import CorruptImage, check_several, content_digest, decode_file, limit_pixels
from metamix.data.loader import SampleReader, StreamLoader
from metamix.data.options import ReadingOptions
from metamix.data.order import EvalOrder, Order, TrainOrder
from metamix.models import count_macs, registry
from metamix.models.backbone import per_channel
from metamix.training.task import Batch, Loss, Metric, Pictures, State, TaskModel
from metamix.utils.options import option
from metamix.utils.system import usable_workers
from metamix.weights.checksums import digest
from metamix.weights.find import read_weights
from metamix.weights.metadata import ModelMetadata

from .exportable import Comparison, Exportable, Model
from .network import describe_initial_weights, load_initial_weights
from .options import BackboneOptions

RANDOM_IMAGES, BATCH_SIZE = 64, 32  # for comparing an exported model with the original


class SimpleData:
    """Load samples from files.

    Args:
        splits: samples of the splits "train" and "test", and of "holdout" if there is one.
        options: options of the task.
        transform: function that turns a sample of `SampleReader.read` into an image (C, H, W) uint8 and a number, the
            label; by default, `read` must return both. Worker processes import it, so it must not be a lambda.
        verify: command that lists broken images, for messages.
        mean, std: mean and standard deviation of each channel, for pixel values from 0 to 1; by default the values of
            the weights that training starts from or, without such weights, 0 and 1.
        labels: labels of all samples, as numbers, texts or nested lists. A run is not continued with other labels.
    """

    def __init__(
        self,
        splits: Mapping[str, SampleReader],
        options: "SimpleOptions",
        transform: Callable[[Any], tuple[Tensor, float]] = tuple,
        verify: str = "metamix verify",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        labels: Sequence[Any] = (),
    ):
        self.splits, self.options, self.transform, self.verify = splits, options, transform, verify
        start = describe_initial_weights(options) or ModelMetadata()
        self.mean, self.std = mean or start.mean, std or start.std
        files = [Path(samples.path(i)) for samples in splits.values() for i in range(len(samples))]
        rows = [(file.name, file.stat().st_size if file.is_file() else 0) for file in files]
        self.identity: dict[str, Any] = {
            "samples": {split: len(samples) for split, samples in splits.items()},
            "digest": digest([*rows, labels] if labels else rows),
            "content": content_digest(files),
        }

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> StreamLoader:
        """Make the training loader; see `metamix.training.task.TaskData`."""
        samples = self.splits["train"]
        return self._loader(samples, TrainOrder(len(samples), batch_size, rank, world_size, seed), seed)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> dict[str, StreamLoader]:
        """Make the loader of each split that can be scored."""
        share = max(1, batch_size // world_size)
        return {
            split: self._loader(samples, EvalOrder(len(samples), share, rank, world_size))
            for split, samples in self.splits.items()
            if split != "train"
        }

    def _loader(self, samples: SampleReader, order: Order, seed: int = 0) -> StreamLoader:
        return StreamLoader(samples, self.options, order, self.transform, seed, verify=self.verify)

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Normalise the images."""
        return batch | {"image": self.normalize(batch["image"])}

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images (n, C, H, W) uint8."""
        return normalize(images, self.mean, self.std)


def normalize(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Turn images (n, C, H, W) uint8 into (x / 255 - mean) / std; None stands for a mean of 0 and a std of 1."""
    values = (per_channel(each, images.shape[1]) for each in (mean or (0.0,), std or (1.0,)))
    means, stds = (torch.tensor(each, device=images.device)[:, None, None] for each in values)
    return (images / 255 - means) / stds


@dataclass
class SimpleDataOptions(ReadingOptions):
    """Options that training and evaluation share."""

    data_dir: str = option("", "folder of the data set")


@dataclass
class SimpleEvalOptions(SimpleDataOptions):
    """Options of `metamix eval`."""

    checkpoint: str = option("", "run folder or weight file to score")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("there are no weights to evaluate: give --checkpoint RUN_OR_FILE")


@dataclass
class SimpleOptions(BackboneOptions, SimpleDataOptions):
    """Options of `metamix train`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_backbone(dict.fromkeys(("in_chans", "num_classes"), "the task"))


@dataclass
class SimpleModel(TaskModel):
    """Build a model and describe it.

    Attributes:
        make: function that builds the model. Its argument is whether to load the weights that training starts from; it
            is False when a run is resumed.
        about: plain values for the metadata of the weights; at least task, model, data, in_chans and img_size.
        data: the data, whose identity, mean and std are added to the metadata.
    """

    make: Callable[[bool], nn.Module]
    about: dict[str, Any]
    data: SimpleData

    def build(self, metadata: Mapping[str, Any] | None = None) -> nn.Module:
        """Build the model. A resumed run keeps its mean and std; the engine loads the weights of its checkpoint."""
        if metadata is not None:
            self.data.mean, self.data.std = metadata.get("mean"), metadata.get("std")
        return self.make(metadata is None)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Describe the model for the summary and for the metadata of its weights."""
        data, size = self.data, (self.about["in_chans"], self.about["img_size"], self.about["img_size"])
        parameters = sum(weight.numel() for weight in model.parameters())
        statistics = {"mean": data.mean or (0.0,), "std": data.std or (1.0,)}
        entries = {name: [*per_channel(values, size[0])] for name, values in statistics.items()}
        return self.about | data.identity | entries | {"parameters": parameters, "macs": count_macs(model, size)}


@dataclass
class MeanMetric(Metric):
    """Average a value over all images that can be read.

    Attributes:
        name: name of the score.
        compute: function that takes the outputs (n, ...) and the labels (n,), and returns the values (n,).
        normalize: function that normalises images, such as `SimpleData.normalize`.
        lower_is_better: whether lower values are better, as for an error.
    """

    name: str
    compute: Callable[[Tensor, Tensor], Tensor]
    normalize: Callable[[Tensor], Tensor]
    lower_is_better: bool = False

    def start(self) -> State:
        return {"sum": 0.0, "count": 0}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(self.normalize(batch["image"]))

    def update(self, state: State, outputs: Iterable[Any], batch: Batch) -> None:
        values = self.compute(torch.stack([*outputs]).float().cpu(), batch["label"].cpu())
        state["sum"] += float(values.sum())
        state["count"] += len(values)

    def result(self, states: list[State]) -> dict[str, float]:
        if not (count := sum(state["count"] for state in states)):
            raise ValueError("no image is left to score: all images are unreadable")
        return {self.name: sum(state["sum"] for state in states) / count}


class NoPictures(Pictures):
    """Draw no pictures and give no advice."""


@dataclass
class SimpleTask:
    """Hold the parts of a task; see `metamix.training.task.Task`."""

    Options: ClassVar[type] = SimpleOptions
    EvalOptions: ClassVar[type] = SimpleEvalOptions

    title: str
    data: SimpleData
    model: SimpleModel
    loss: Loss
    metric: Metric
    pictures: Any = field(default_factory=NoPictures)
    notes: list[str] = field(default_factory=list)
    same_image_shape = True
    check_model = staticmethod(registry.check_model)

    def create_model(self, options: SimpleOptions, start: bool, **arguments: Any) -> nn.Module:
        """Create the model that the options name; add a note about the checkpoint that it starts from.

        Args:
            start: whether to load the weights that the options name. If the file has no head, or a head for other
                classes or another number of outputs, the head of the model keeps its initial weights.
            arguments: arguments of timm, such as num_classes.
        """
        model = registry.create_model(options.model, options.pretrained and start, **arguments, **options.model_args)
        if (file := options.checkpoint) and start:
            tensors, metadata = read_weights(file)
            classes = self.model.about.get("classes", ())
            self.notes.append(load_initial_weights(model, file, tensors, metadata, classes))
        return model


@dataclass(frozen=True)
class SimpleTrained:
    """A trained model whose outputs are its predictions.

    Attributes:
        model: the model in evaluation mode.
        metadata: metadata of its weights.
        prepare: function that turns an image into (C, H, W) uint8, in the same way as the transform of `SimpleData`.
    """

    model: nn.Module
    metadata: ModelMetadata
    prepare: Callable[[Image.Image], Tensor]

    def __repr__(self) -> str:
        return f"SimpleTrained({self.metadata.model})"

    @property
    def spec(self) -> ModelMetadata:
        return self.metadata

    @torch.inference_mode()
    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[Tensor]:
        """Return the output for each image, copied to the CPU; images are files or PIL images."""
        check_several(images)
        device = next(self.model.parameters()).device
        prepared = (self.prepare(decode_file(image))[None].to(device) for image in images)
        mean, std = self.metadata.mean, self.metadata.std
        return [self.model(normalize(image, mean, std))[0].cpu() for image in prepared]


def broken_samples(samples: SampleReader, workers: int = 0, title: str = "") -> Iterator[str]:
    """Yield, in order, an error message for each sample that cannot be read; the progress bar shows `title`."""
    problems: DataLoader = DataLoader(
        range(len(samples)),  # type: ignore[arg-type]  # torch declares it as a Dataset
        batch_size=64,
        num_workers=usable_workers(workers),
        worker_init_fn=partial(limit_pixels, Image.MAX_IMAGE_PIXELS),
        collate_fn=partial(_problems, samples),
    )
    for batch in tqdm(problems, desc=title, unit="batch", disable=None):
        yield from batch


def _problems(samples: SampleReader, numbers: Sequence[int]) -> list[str]:
    problems = []
    for number in numbers:
        try:
            samples.read(number)
        except CorruptImage as error:
            problems.append(str(error))
    return problems


class SimpleExport(Exportable):
    """A model to export with one output for each image. It is compared on random images if `task` is None.

    Args:
        model: the model, which takes prepared images (n, C, H, W).
        metadata: metadata of its weights, with `in_chans` and `img_size`.
        dynamic: whether the graph takes images of any size.
        ranked: whether the outputs are scores of classes.
        data: other arguments of `Exportable`, such as `task`. A class that passes a task must define `test_outputs`.
    """

    def __init__(
        self, model: nn.Module, metadata: ModelMetadata, dynamic: bool = False, *, ranked: bool = False, **data: Any
    ):
        super().__init__(model, metadata, **data)
        self.dynamic, self.ranked = dynamic, ranked

    def random_images(self) -> Iterable[Tensor]:
        return self.examples(RANDOM_IMAGES).split(BATCH_SIZE)

    @torch.no_grad()
    def compare(self, exported: Model, precision: str) -> Comparison:
        """Compare the models. A dynamic graph is also compared on images larger than the example of the export."""
        comparison = super().compare(exported, precision)
        if self.dynamic:
            images, larger = self.examples(2, taller=32, wider=16), self.parity(precision)
            larger.update(*self.pair(images, exported(images)))
            size = " x ".join(map(str, images.shape[2:]))
            comparison.problems += [f"on images of {size} pixels, {problem}" for problem in larger.problems()]
        return comparison
