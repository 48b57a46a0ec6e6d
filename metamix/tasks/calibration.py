"""Calibrate int8 on training images and check it on others, for tasks that take images one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metamix.data.loader import SampleReader
from metamix.data.order import ListedOrder
from metamix.training.task import Batch

from .exportable import HELD_OUT_IMAGES, Model, readable_images

MOST_SCORED = 500  # held-out images of tasks that take images one by one
MOST_BYTES = 2**30  # calibration images are held in memory


class CalibratedExport:
    """Quantize a model with the training images of its task; see `Quantizable`.

    `task.data` opens the images to train on, without those that are scored, by `training_images`, and loads them one
    by one, as for the scores, by `scoring_loader`. `extra` has the scale of the graph.
    """

    max_drop, unit = 0.5, "points"
    task: Any
    extra: dict[str, Any]

    def apply(self, model: Model, batch: Batch) -> Any:
        """Return what a graph makes of the image of a batch, with the task's own padding and tiles."""
        raise NotImplementedError

    def image_score(self, model: Model, batch: Batch) -> float:
        """Score a graph on the image of a batch; NaN if the image has nothing to score."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Return what the graph gets for the image of a batch, (1, C, H, W) each: the padded image or its tiles."""
        inputs: list[Tensor] = []

        def record(images: Tensor) -> Tensor:
            inputs.append(images)
            return F.interpolate(images, scale_factor=self.extra["scale"])

        self.apply(record, batch)
        return inputs

    @cached_property
    def training_images(self) -> SampleReader:
        """Return the training images; raise ValueError if there are none."""
        samples = self.task.data.training_images()
        if not len(samples):
            raise no_training_split(self.task.data.name)
        return samples

    def calibration_count(self, count: int) -> int:
        return calibration_count(len(self.training_images), count)

    def calibration(self, count: int, batch_size: int) -> Iterator[np.ndarray]:
        """Yield one input of the graph for each image: the image or one of its tiles, up to 1 GiB together."""
        left = MOST_BYTES
        for number, batch in enumerate(self.load(slice(count))):
            inputs = self.inputs(batch)
            images = inputs[number % len(inputs)].numpy()
            left -= images.nbytes
            if number and left < 0:
                return
            yield images

    @torch.inference_mode()
    def held_out_scores(self, model: Model, count: int) -> np.ndarray:
        held_out = min(held_out_images(len(self.training_images)), MOST_SCORED)
        scores = [self.image_score(model, batch) for batch in self.load(slice(count, count + held_out))]
        if not (scores := [score for score in scores if not math.isnan(score)]):
            raise ValueError(f"none of the {held_out} training images that int8 is checked on can be scored")
        return np.array(scores)

    def load(self, part: slice) -> Iterator[Batch]:
        """Yield the batches of a part of the training images, which are in random order."""
        order = torch.randperm(len(self.training_images), generator=torch.Generator().manual_seed(0))
        return readable_images(self.task.data.scoring_loader(self.training_images, ListedOrder(order[part])), None)


def calibration_count(total: int, count: int) -> int:
    """Return how many of `total` training images to calibrate on, at most `count`; ValueError if there are too few."""
    if total < 5:
        raise ValueError(
            f"int8 needs training images to calibrate on and to check, but there are {total}: give at least 5"
        )
    return min(count, total - held_out_images(total))


def held_out_images(total: int) -> int:
    """Return how many of `total` training images check the accuracy of int8: at most a fifth."""
    return min(HELD_OUT_IMAGES, total // 5)


def no_training_split(name: str) -> ValueError:
    """Make the error for data without images to calibrate on."""
    return ValueError(
        f"{name} has no training split, and int8 is never calibrated on the test split: give data that have one"
    )
