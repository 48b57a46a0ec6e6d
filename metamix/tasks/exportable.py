"""What `metamix export` needs to know about a model of a task: `Exportable`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from metamix.models.image_models import image_model_names
from metamix.training.task import Batch
from metamix.weights.files import WEIGHTS, load_metadata
from metamix.weights.find import find_weights
from metamix.weights.metadata import ModelMetadata

Model = Callable[[Tensor], Any]
HELD_OUT_IMAGES = 5_000  # most training images that decide on precision


@dataclass(frozen=True)
class Request:
    """What the user asks to export.

    Attributes:
        source: a model's name, which may have a tag; a run folder or a weight file.
        img_size: side of the images in pixels, or (height, width); None: as in training.
        data: name of the data set to compare and calibrate on; None for random images.
        data_dir: folder of the data set.
        images: most images of the test split to compare on; None for all.
        dynamic: whether height and width may vary.
        format: "torch", "onnx" or "openvino".
        model: name of the model, for a file that does not name it.
    """

    source: str
    img_size: int | tuple[int, int] | None = None
    data: str | None = None
    data_dir: str | None = None
    images: int | None = None
    dynamic: bool = False
    format: str = "onnx"
    model: str | None = None

    @cached_property
    def task(self) -> str:
        """Return the task of the model; kept, since it may have to be read from the weights."""
        return task_of(self.source, self.model)


@dataclass
class Comparison:
    """The differences between an exported model and the eager one.

    Attributes:
        parity: differences of the outputs.
        scores: of "eager" and "exported" on the data; empty without data.
        problems: limits of the precision that are missed, in words.
    """

    parity: dict[str, Any]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Exportable(Protocol):
    """A trained model of a task.

    Attributes:
        model: in evaluation mode, fp32; called with prepared images (n, C, H, W).
        metadata: of the weights, with the image size of the export.
        outputs: names of the outputs.
        extra: see `Artifact.extra`.
        notes: what the user should know.
    """

    model: nn.Module
    metadata: ModelMetadata
    outputs: tuple[str, ...]
    extra: dict[str, Any]
    notes: list[str]

    def examples(self, count: int) -> Tensor:
        """Return prepared images (count, C, H, W): of the data, or random ones."""

    def compare(self, exported: Model, precision: str) -> Comparison:
        """Run both models on the same images."""


class Quantizable(Exportable, Protocol):
    """A model that can be quantized to int8, with its calibration data."""

    def calibration_count(self, count: int) -> int:
        """Return how many images of `count` to calibrate on, so that enough are left for `held_out_score`.

        Raises:
            ValueError: there are too few training images, or none.
        """

    def calibration(self, count: int, batch_size: int) -> Iterable[np.ndarray]:
        """Yield prepared images of the training split, at most `count`, in batches (n, C, H, W)."""

    def held_out_score(self, model: Model, count: int) -> float:
        """Score a model on training images that `calibration(count, ...)` does not yield: 5,000, at most a fifth.

        Higher is better; a classifier's score is its top-1 accuracy in percent. `--max-drop` is in its unit.
        """


def readable_images(loader: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """Yield the batches of one image, at most `count`, without those of images that cannot be read."""
    return islice((batch for batch in loader if int(batch["index"][0]) >= 0), count)


def task_of(source: str, model: str | None = None) -> str:
    """Return the task of a model; `model` is its name, for a file that does not name it."""
    if source.partition(".")[0] in image_model_names():
        return "restoration"
    path = weight_path(source)
    return "classification" if path is None else task_of_weights(path, model)


def task_of_weights(path: Path, model: str | None = None) -> str:
    """Return the task that trained a weight file or a run.

    If it does not say, the task is restoration for a file of MAXIM's authors (.npz) and for an image model, else
    classification.
    """
    if path.suffix == ".npz":
        return "restoration"
    if (path / WEIGHTS).exists():  # all files of a run say the same
        path = path / WEIGHTS
    restores = model is not None and model.partition(".")[0] in image_model_names()
    return ModelMetadata.from_dict(load_metadata(path), path).task or ("restoration" if restores else "classification")


def weight_path(source: str) -> Path | None:
    """Return the path of a weight file, a run folder or shipped weights; None for a model of timm.

    Raises:
        FileNotFoundError: `source` is a path, and there is nothing.
    """
    try:
        return find_weights(source)
    except FileNotFoundError:
        if "/" in source or Path(source).suffix in (".safetensors", ".pt", ".pth", ".npz"):
            raise
        return None
