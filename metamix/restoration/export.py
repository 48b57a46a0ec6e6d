"""Export image models: one output, the restored images.

A graph of a fixed size restores images that fit it at once, and larger ones in square tiles of its shorter side; images
and tiles are padded to its size by reflection. A dynamic graph restores images of any size, padded to the multiples
that the model needs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from metamix.deploy.report import Difference, missed_limits
from metamix.deploy.runtime import ExportedModel
from metamix.layers.padding import pad_for_graph, tiles
from metamix.tasks.exportable import Comparison, ExportOptions, Model, readable_images
from metamix.tasks.load import refuse_name
from metamix.utils.checks import parse_size
from metamix.utils.rules import rule, rules_of
from metamix.weights.metadata import MAX_SIDE, ModelMetadata

from .inference import Restorer
from .load import RestorationSpec, TrainedRestorer, load_restorer
from .options import RestorationEvalOptions
from .task import Restoration

TILE = 256  # pixels of the model's input; rounded up to the multiples that it takes
RANDOM_IMAGES = 4
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
EXTRA = {  # what export.json says beside the spec
    "scale": rule(Side),
    "multiple": rule(Annotated[tuple[Side, Side], Field(description="two whole numbers from 1 to 65,536")]),
}


class ExportableRestorer:
    """An image model, and the images that it is compared on.

    Args:
        model: in evaluation mode.
        metadata: of its weights, with the size of the tiles.
        spec: how images go into it.
        dynamic: whether the graph takes any size.
        task: the task on a folder of images; None for random images.
        images: most images to compare on; None for all.
    """

    outputs: tuple[str, ...] = ("restored",)

    def __init__(
        self,
        model: Any,
        metadata: ModelMetadata,
        spec: RestorationSpec,
        dynamic: bool,
        task: Restoration | None = None,
        images: int | None = None,
    ):
        self.model, self.metadata, self.spec, self.task, self.images = model.eval(), metadata, spec, task, images
        size: Any = metadata.img_size
        self.size = parse_size("img_size", size)
        self.dynamic = dynamic
        self.extra: dict[str, Any] = {
            **vars(spec), "scale": model.scale, "multiple": list(model.multiple),
        }  # fmt: skip
        self.notes = list(task.notes) if task else []

    def examples(self, count: int, larger: int = 0) -> Tensor:
        """Return random images of the graph's size, with `larger` of the model's multiples added to each side."""
        height, width = (side + larger * step for side, step in zip(self.size, self.model.multiple))
        return torch.rand(count, self.model.in_chans, height, width, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def compare(self, exported: Model, precision: str) -> Comparison:
        difference = Difference()
        if self.task is None:
            for images in [*self.examples(RANDOM_IMAGES).split(1), *([self.examples(1, 2)] if self.dynamic else [])]:
                difference.update(self.model(images), exported(images))
            figures: dict[str, Any] = {"on": "random images"} | difference.result()
            return Comparison(figures, problems=missed_limits(figures, precision))
        metric = self.task.metric
        states = {"eager": metric.start(), "exported": metric.start()}
        size = None if self.dynamic else self.size
        models = {
            "eager": pad_for_graph(self.model, self.extra, size),
            "exported": pad_for_graph(exported, self.extra, size),
        }
        restorer = Restorer(self.spec.enlarge, *tiles(size), whole=size)
        for batch in readable_images(self.task.data.eval_loaders(1, 0, 1)["test"], self.images):
            outputs = {name: restorer(model, batch["image"][0][None]) for name, model in models.items()}
            difference.update(outputs["eager"], outputs["exported"])
            for name, output in outputs.items():
                metric.update(states[name], output, batch)
        figures = {"on": f"{self.task.data.name}, test"} | difference.result()
        scores = {name: metric.result([state]) for name, state in states.items()}
        return Comparison(figures, scores, missed_limits(figures, precision))


def open_restorer(options: ExportOptions) -> ExportableRestorer:
    """Load an image model, with the images if a folder is given.

    Raises:
        ValueError: the options do not fit, or there are no weights.
    """
    file = options.file
    if file is None:
        refuse_name(options.model, options.source)
    if options.data:
        raise ValueError(
            f"data is {options.data}, but restoration reads one layout of folders: give only --data-dir DIR"
        )
    name = options.model if file else options.source
    task = None
    model: Any
    if options.data_dir:
        task, model, entries = Restoration.trained(
            RestorationEvalOptions(
                data_dir=options.data_dir, workers=0, checkpoint=file, model=name, pretrained=file is None
            )
        )
        metadata = ModelMetadata.from_dict(entries)
        spec = RestorationSpec(task.data.channels, task.model.enlarge, task.options.degradation)
    else:
        trained = load_restorer(file, model=name, pretrained=file is None)
        model, metadata, spec = trained.model, trained.metadata, trained.spec
    rows, columns = (math.lcm(step, 2) for step in model.multiple)  # padding by reflection makes sides even
    height, width = options.img_size or (-(-TILE // rows) * rows, -(-TILE // columns) * columns)
    if height % rows or width % columns:
        raise ValueError(
            f"img_size is {height} x {width}, but {options.source} takes multiples of {rows} x {columns} pixels"
        )
    metadata = replace(metadata, task="restoration", img_size=(height, width), in_chans=model.in_chans)
    return ExportableRestorer(model, metadata, spec, options.dynamic, task, options.images)


def exported_restorer(exported: ExportedModel) -> TrainedRestorer:
    """Use an exported model as a restorer.

    Raises:
        ValueError: export.json lacks what a restorer needs.
    """
    artifact, rules = exported.artifact, rules_of(RestorationSpec)
    artifact.check(rules | EXTRA, {})
    spec = RestorationSpec(**{name: artifact.extra[name] for name in rules})
    model = pad_for_graph(exported, artifact.extra, artifact.size)
    return TrainedRestorer(artifact.model.model or "", model, spec, artifact.model, artifact.size)
