"""Calibrate int8 on training images, and compare exported models whose outputs are maps."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.data.order import ListedOrder
from metamix.layers.image_inference import Size
from metamix.training.task import Batch
from metamix.weights.metadata import ModelMetadata

from .exportable import Exportable, Model, Pair

HELD_OUT_IMAGES = 5_000  # maximum number of training images on which the accuracy of int8 is checked
MAX_SCORED = 500  # maximum number of held-out images for tasks that take images one by one
MAX_BYTES = 2**30  # maximum size of the calibration images, which are held in memory
RANDOM_IMAGES = 4  # number of images to compare models on if there are no data


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
                f"{name} has no training split, and int8 is not calibrated on the test split: give other data"
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
        """Return how many of `count` images to calibrate on; raise ValueError for fewer than 5 training images."""
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
        """Score a model on training images that `calibration(count)` does not yield; at most 500 in this class.

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
        return readable(self.task.data.scoring_loader(self.training_images, ListedOrder(self.order[part])))

    def test_images(self) -> Iterator[Batch]:
        """Yield the batches of the test images to compare on."""
        return islice(readable(self.task.data.eval_loaders(1, 0, 1)["test"]), self.images)


def readable(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of one image each; skip images that cannot be read."""
    return (batch for batch in loader if int(batch["index"][0]) >= 0)


class MapExport(CalibratedExport):
    """An exportable model whose outputs are maps: restored images or logits.

    It is compared on its task's data, or else on random images. If the graph is dynamic, one random image is larger:
    its sides are longer by `larger` times `extra["multiple"]`.

    Args:
        size: (height, width) of the graph or, if it is dynamic, of an example image.
        options: options of the export; only `dynamic` and `images` are used.
        extra: see `Artifact.extra`.
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
