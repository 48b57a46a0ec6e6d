"""Export image models. The graph has one output, the restored images.

A graph of a fixed size restores an image that fits it in one call. A larger image is split into square tiles, with the
graph's shorter side as their side. Images and tiles are padded to the graph's size by reflection.

A dynamic graph restores images of any size, padded to the multiples that the model needs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from metamix.deploy.report import Difference, missed_limits
from metamix.deploy.runtime import ExportedModel
from metamix.layers.image_inference import pad_for_graph, tiles
from metamix.tasks.calibration import CalibratedExport
from metamix.tasks.exportable import EXTRA, RANDOM_IMAGES, Comparison, ExportOptions, Model, readable_images
from metamix.tasks.load import refuse_name
from metamix.training.task import Batch
from metamix.utils.checks import check_finite
from metamix.utils.rules import rules_of
from metamix.weights.metadata import ModelMetadata

from .inference import Restorer
from .load import RestorationSpec, TrainedRestorer, load_restorer
from .metric import BEST_PSNR, psnr
from .options import RestorationEvalOptions
from .task import Restoration

TILE = 256  # pixels of the model's input; rounded up to the multiples that it takes


class ExportableRestorer(CalibratedExport):
    """An image model to export, and the task whose images the comparison uses; without a task, they are random."""

    outputs: tuple[str, ...] = ("restored",)
    max_drop, unit = 0.1, "dB"

    def __init__(self, trained: TrainedRestorer, options: ExportOptions, task: Restoration | None = None):
        self.model = cast(Any, trained.model)
        self.spec, self.dynamic, self.images, self.task = trained.spec, options.dynamic, options.images, task
        rows, columns = (math.lcm(step, 2) for step in self.model.multiple)  # padding by reflection makes sides even
        height, width = options.img_size or (-(-TILE // rows) * rows, -(-TILE // columns) * columns)
        if height % rows or width % columns:
            raise ValueError(
                f"img_size is {height} x {width}, but {options.source} takes multiples of {rows} x {columns} pixels"
            )
        self.size = height, width
        in_chans = self.model.in_chans
        self.metadata = replace(trained.metadata, task="restoration", img_size=self.size, in_chans=in_chans)
        self.extra = vars(self.spec) | {"scale": self.model.scale, "multiple": list(self.model.multiple)}
        self.fixed = None if self.dynamic else self.size
        self.restorer = Restorer(self.spec.enlarge, *tiles(self.fixed), whole=self.fixed)
        self.notes = list(task.notes) if task else []

    def examples(self, count: int, larger: int = 0) -> Tensor:
        """Return random images of the graph's size, with `larger` of the model's multiples added to each side."""
        height, width = (side + larger * step for side, step in zip(self.size, self.model.multiple))
        return torch.rand(count, self.model.in_chans, height, width, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def compare(self, exported: Model, precision: str) -> Comparison:
        difference, scores, on = Difference(), {}, "random images"
        if self.task is None:
            for images in [*self.examples(RANDOM_IMAGES).split(1), *([self.examples(1, 2)] if self.dynamic else [])]:
                difference.update(self.model(images), exported(images))
        else:
            metric, on = self.task.metric, f"{self.task.data.name}, test"
            models: dict[str, Model] = {"eager": self.model, "exported": exported}
            states = {name: metric.start() for name in models}
            for batch in readable_images(self.task.data.eval_loaders(1, 0, 1)["test"], self.images):
                outputs = {name: self.apply(model, batch) for name, model in models.items()}
                difference.update(outputs["eager"], outputs["exported"])
                for name, output in outputs.items():
                    metric.update(states[name], output, batch)
            scores = {name: metric.result([state]) for name, state in states.items()}
        figures: dict[str, Any] = {"on": on} | difference.result()
        return Comparison(figures, scores, missed_limits(figures, precision))

    def apply(self, model: Model, batch: Batch) -> Tensor:
        """Return the restored image (1, C, H, W) of a batch."""
        return self.restorer(pad_for_graph(model, self.extra, self.fixed), batch["image"][0][None])

    def image_score(self, model: Model, batch: Batch) -> float:
        """Return the PSNR of the image in dB, measured as in the task's scores."""
        assert self.task
        measure, restored = self.task.measure, check_finite(self.apply(model, batch)[0].float())
        return min(psnr(measure.prepare(restored), measure.prepare(batch["target"][0], round_it=False)), BEST_PSNR)


def open_restorer(options: ExportOptions) -> ExportableRestorer:
    """Load an image model, and the images to compare on if a folder is given."""
    file = options.file
    if file is None:
        refuse_name(options.model, options.source)
    if options.data:
        raise ValueError(
            f"data is {options.data}, but restoration reads one layout of folders: give only --data-dir DIR"
        )
    weights: Any = {"checkpoint": file, "model": options.model if file else options.source, "pretrained": not file}
    if not options.data_dir:
        return ExportableRestorer(load_restorer(**weights), options)
    eval_options = RestorationEvalOptions(data_dir=options.data_dir, workers=0, **weights)
    task, model, entries = Restoration.trained(eval_options)
    spec = RestorationSpec(task.data.channels, task.model.enlarge, task.options.degradation)
    metadata = ModelMetadata.from_dict(entries)
    return ExportableRestorer(TrainedRestorer(task.options.model, model, spec, metadata), options, task)


def exported_restorer(exported: ExportedModel) -> TrainedRestorer:
    """Use an exported model as a restorer; raise ValueError if an entry that restorers need is not in export.json."""
    artifact, rules = exported.artifact, rules_of(RestorationSpec)
    artifact.check(rules | EXTRA, {})
    spec = RestorationSpec(**{name: artifact.extra[name] for name in rules})
    model = pad_for_graph(exported, artifact.extra, artifact.size)
    return TrainedRestorer(artifact.model.model or "", model, spec, artifact.model, artifact.size)
