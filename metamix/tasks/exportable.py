"""Define trained models to export, the options of the export, the comparison of outputs, and calibration for int8."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from metamix.data.options import ImageOptions
from metamix.data.order import ListedOrder
from metamix.deploy.formats import FORMATS, PRECISIONS, check_format
from metamix.deploy.report import Difference
from metamix.layers.image_inference import Size
from metamix.training.forward import drop_unreadable, num_samples
from metamix.training.task import Batch
from metamix.utils.checks import parse_size
from metamix.utils.options import changed, check_needs, option, options_of, positional
from metamix.utils.rules import Count, NotNegative, one_of, rule
from metamix.weights.metadata import MAX_SIDE, ModelMetadata, Sides

from .find import task_of

Model = Callable[[Tensor], Any]
Pair = Sequence[Any]  # outputs of the eager and the exported model
AnySide = Annotated[int, Field(ge=1, le=MAX_SIDE)]
EXTRA = {  # entries of `Artifact.extra` for `PadAndCrop` and `CalibratedExport`
    "scale": rule(AnySide),
    "multiple": rule(Annotated[tuple[AnySide, AnySide], Field(description="two whole numbers from 1 to 65,536")]),
}
HELD_OUT_IMAGES = 5_000  # maximum number of training images on which the accuracy of int8 is checked
MAX_SCORED = 500  # maximum number of held-out images for tasks that take images one by one
MAX_BYTES = 2**30  # maximum size of the calibration images, which are held in memory
RANDOM_IMAGES = 4  # number of images to compare models on if there are no data


@dataclass
class ExportOptions(ImageOptions):
    """Export a trained model for an inference engine, and check that its outputs stay the same.

    One side in `img_size` means square images. In Python, `img_size` is a number or (height, width).
    """

    source: str = positional("NAME.TAG of metamix or timm, a run folder or a weight file", metavar="MODEL")
    output: Path = option(MISSING, "folder to write: a new folder, or the folder of an earlier export")
    model: str | None = option(None, "name of the model, for a file that does not name its model")
    format: Annotated[str, one_of(FORMATS)] = option("onnx", f"format to write: {', '.join(FORMATS)}")
    precision: Annotated[str, one_of(PRECISIONS)] = option("fp32", "fp32, bf16 or int8")
    img_size: Sides | None = option(None, "size of images in pixels, N or H,W; default: as in training")
    dynamic: bool = option(False, "accept any height and width; any batch size is always accepted")
    compile: bool = option(
        False, "with --format torch: also compile the graph for this CPU, which takes minutes", needs="format torch"
    )
    data: str | None = option(
        None, "data set to compare on (test split) and to calibrate int8 on (training split); default: random images"
    )
    data_dir: str | None = option(None, "folder of the data set")
    images: Count | None = option(None, "compare on at most this many images; default: all", needs="data or data_dir")
    max_drop: NotNegative | None = option(
        None,
        "how much int8 may lose on held-out training images; default: 0.3 points of accuracy, 0.5 "
        "points of AP or mean IoU, 0.1 dB of PSNR",
        needs="precision int8",
    )
    search_minutes: NotNegative = option(
        10.0, "minutes to search for layers to keep in fp32 if int8 loses too much", needs="precision int8"
    )
    calibration_images: Count = option(
        500, "calibrate int8 on at most this many training images", needs="precision int8"
    )
    threads: Count | None = option(None, "number of threads for the speed measurement; default: as many as torch uses")
    seconds: NotNegative = option(4.0, "seconds for the speed measurement; 0 skips it")

    def __post_init__(self) -> None:
        if isinstance(self.img_size, int):
            self.img_size = (self.img_size,)
        self.output = Path(self.output)
        super().__post_init__()
        if self.img_size is not None:
            self.img_size = self.img_size[0], self.img_size[-1]
        check_format(self.format, self.precision)
        check_needs(changed(self), vars(self), options_of(type(self)))
        if self.precision == "int8" and not (self.data or self.data_dir):
            raise ValueError("int8 is calibrated on images of the training split: give --data NAME or --data-dir DIR")

    @property
    def file(self) -> str | None:
        """Return the source if `task_of` finds a path for it; None if the task loads the weights by name."""
        return self.source if task_of(self.source, self.model)[1] else None


@dataclass
class Comparison:
    """The differences between an exported model and the eager model."""

    parity: dict[str, Any]  # measured differences of the outputs, by name
    scores: dict[str, dict[str, float]]  # scores of "eager" and "exported" on the data; empty without data
    problems: list[str]  # a sentence about each exceeded limit


class Exportable:
    """A trained model to export. It is compared with its export on test images or, without a task, on random images.

    Args:
        model: the fp32 model, which takes prepared images (n, C, H, W).
        metadata: metadata of the weights, with `in_chans` and the image size of the export.
        extra: see `Artifact.extra`.
        task: the task with the test images on which the models are compared; None for random images.
        images: maximum number of test images; None for all.
    """

    outputs: tuple[str, ...] = ("output",)  # names of the outputs
    ranked = False  # whether the outputs are scores of classes
    noise = staticmethod(torch.randn)  # draws the pixels of random images

    def __init__(
        self, model: nn.Module, metadata: ModelMetadata, extra: Any = None, task: Any = None, images: int | None = None
    ):
        self.model: Any = model.eval()
        self.metadata, self.task, self.images = metadata, task, images
        self.extra: dict[str, Any] = extra or {}
        self.notes: list[str] = list(task.notes) if task else []  # for the user

    def examples(self, count: int, taller: int = 0, wider: int = 0) -> Tensor:
        """Return random images (count, C, H, W) of the size of the export, plus `taller` rows and `wider` columns."""
        size: Any = self.metadata.img_size
        height, width = parse_size("img_size", size)
        shape = count, self.metadata.in_chans or 3, height + taller, width + wider
        return self.noise(shape, generator=torch.Generator().manual_seed(0))

    def random_images(self) -> Iterable[Tensor]:
        """Return the batches of random images to compare on."""
        raise NotImplementedError

    def test_outputs(self, exported: Model) -> Iterator[tuple[Batch, Pair, Pair]]:
        """Yield each batch of test images, and the outputs of both models twice: for `parity` and for the metric."""
        raise NotImplementedError

    def parity(self, precision: str) -> Any:
        """Return an object that measures how close the outputs of both models are."""
        return Difference(precision, self.ranked)

    def pair(self, images: Tensor, outputs: Any) -> Pair:
        """Run the fp32 model on prepared images; return its outputs and the `outputs` of the exported model."""
        return self.model(images), outputs

    @torch.no_grad()
    def compare(self, exported: Model, precision: str) -> Comparison:
        """Run both models on the same images, and return their differences and scores."""
        parity, scores, on = self.parity(precision), {}, "random images"
        if self.task is None:
            for images in self.random_images():
                parity.update(*self.pair(images, exported(images)))
        else:
            metric, on = self.task.metric, f"{self.task.data.name}, test"
            states = {"eager": metric.start(), "exported": metric.start()}
            for batch, compared, scored in self.test_outputs(exported):
                parity.update(*compared)
                for state, outputs in zip(states.values(), scored):
                    metric.update(state, outputs, batch)
            scores = {name: metric.result([state]) for name, state in states.items()}
        return Comparison({"on": on} | parity.result(), scores, parity.problems())


class CalibratedExport(Exportable):
    """An `Exportable` that can be quantized to int8 with the training images of its task.

    `task.data.training_images` opens the training images, without images that are scored as "test".
    `task.data.scoring_loader` loads them one by one, prepared as for scoring. `extra["scale"]` is the factor by which
    the graph enlarges an image.
    """

    max_drop, unit = 0.5, "points"  # default of `--max-drop`, and the unit of the scores, "points" or "dB"

    def apply(self, model: Model, batch: Batch) -> Any:
        """Run a model on the only image of a batch, padded or cut into tiles as in the task."""
        raise NotImplementedError

    def image_score(self, model: Model, batch: Batch) -> float:
        """Return the score of a model on the only image of a batch; NaN if the image has nothing to score."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return the images that `apply` gives to the model, (1, C, H, W) each: the padded image, or its tiles."""
        inputs: list[Tensor] = []

        def record(images: Tensor) -> Tensor:
            inputs.append(images)
            return F.interpolate(images, scale_factor=self.extra["scale"])

        self.apply(record, batch)
        return inputs

    @cached_property
    def training_images(self) -> Any:
        """Return the training images, a `SampleReader`; raise ValueError if there are none."""
        samples, name = self.task.data.training_images(), self.task.data.name
        if not len(samples):
            raise ValueError(
                f"{name} has no training split, and int8 is not calibrated on the test split: give other data. "
                f"If {name} was trained on with --test-share, restore the files of training"
            )
        return samples

    @cached_property
    def order(self) -> Tensor:
        """Return the indices of the training images in random order. The first images are for calibration."""
        return torch.randperm(len(self.training_images), generator=torch.Generator().manual_seed(0))

    @property
    def held_out(self) -> int:
        """Return how many training images to hold out from calibration: half of them, at most `HELD_OUT_IMAGES`."""
        return min(HELD_OUT_IMAGES, len(self.training_images) // 2)

    def calibration_count(self, count: int) -> int:
        """Return how many images to calibrate on, at most `count`; raise ValueError if training has fewer than 5."""
        if (total := len(self.training_images)) < 5:
            raise ValueError(
                f"int8 is calibrated and checked on training images, but there are {total}: give at least 5"
            )
        return min(count, total - self.held_out)

    def calibration(self, count: int) -> Iterator[np.ndarray]:
        """Yield batches (n, C, H, W) of the first `count` training images in `order`.

        In this class a batch is an image or one of its tiles. The first batch is always yielded; further batches are
        yielded while the total is at most 1 GiB.
        """
        left = MAX_BYTES
        for number, batch in enumerate(self.load(slice(count))):
            inputs = self.inputs(batch)
            images = inputs[number % len(inputs)].numpy()
            left -= images.nbytes
            if number and left < 0:
                return
            yield images

    @torch.inference_mode()
    def held_out_scores(self, model: Model, count: int) -> np.ndarray:
        """Score a model on training images that `calibration(count)` does not yield.

        This class scores at most `MAX_SCORED` images.

        Returns:
            The score of each image that can be scored, (n,); higher is better. For a classifier it is 100 or 0, so that
            the mean is the top-1 accuracy in percent, or the F1 score in percent if images may have several labels.
        """
        held_out = min(self.held_out, MAX_SCORED)
        scores = [self.image_score(model, batch) for batch in self.load(slice(count, count + held_out))]
        if not (scores := [score for score in scores if not math.isnan(score)]):
            raise ValueError(f"none of the {held_out} training images that int8 is checked on can be scored")
        return np.array(scores)

    def load(self, part: slice) -> Iterator[Batch]:
        """Yield the batches of the training images in the slice `part` of `order`."""
        return readable_batches(self.task.data.scoring_loader(self.training_images, ListedOrder(self.order[part])))

    def test_images(self) -> Iterator[Batch]:
        """Yield the batches of the test images to compare on."""
        return islice(readable_batches(self.task.data.eval_loaders(1, 0, 1)["test"]), self.images)


def readable_batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of a loader without images that cannot be read; skip a batch without readable images."""
    return filter(num_samples, map(drop_unreadable, loader))


class MapExport(CalibratedExport):
    """An exportable model whose outputs are maps: restored images or logits. `size` is (height, width) of an image.

    If the graph is dynamic, one random image is larger: its sides are longer by `larger` times `extra["multiple"]`.
    """

    larger = 1

    def __init__(self, model: nn.Module, metadata: ModelMetadata, size: Size, options: Any, task: Any, extra: Any):
        super().__init__(model, replace(metadata, img_size=size), extra, task, options.images)
        self.fixed = None if options.dynamic else size

    def scored(self, output: Tensor, batch: Batch) -> Any:
        """Convert an output of `apply` to what the task's metric takes."""
        return output

    def random_images(self) -> Iterable[Tensor]:
        larger = (self.larger * step for step in self.extra["multiple"])
        return [*self.examples(RANDOM_IMAGES).split(1), *([] if self.fixed else [self.examples(1, *larger)])]

    def test_outputs(self, exported: Model) -> Iterator[tuple[Batch, Pair, Pair]]:
        for batch in self.test_images():
            outputs = [self.apply(model, batch) for model in (self.model, exported)]
            yield batch, outputs, [self.scored(output, batch) for output in outputs]
