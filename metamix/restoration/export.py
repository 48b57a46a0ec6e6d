"""Export image models. The graph has one output: the restored images."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from metamix.deploy.runtime import ExportedModel
from metamix.layers import round_up
from metamix.layers.image_inference import PadAndCrop, tiles
from metamix.tasks.exportable import EXTRA, ExportOptions, MapExport, Model
from metamix.training.task import Batch
from metamix.utils.checks import check_finite
from metamix.utils.rules import rules_of

from .inference import Restorer
from .load import RestorationSpec, TrainedRestorer, load_restorer
from .metric import BEST_PSNR, psnr
from .options import RestorationEvalOptions
from .task import Restoration

TILE = 256  # default side of the model's input in pixels; rounded up to the multiples that the model takes


class ExportableRestorer(MapExport):
    """An image model to export."""

    outputs: tuple[str, ...] = ("restored",)
    max_drop, unit, larger = 0.1, "dB", 2
    noise = staticmethod(torch.rand)

    def __init__(self, trained: TrainedRestorer, options: ExportOptions, task: Restoration | None = None):
        model, spec = cast(Any, trained.model), trained.spec
        rows, columns = model.multiple
        height, width = options.img_size or round_up((TILE, TILE), (rows, columns))
        if height % rows or width % columns:
            raise ValueError(f"img_size is {height} x {width}: {options.source} takes multiples of {rows} x {columns}")
        metadata = replace(trained.metadata, task="restoration", in_chans=model.in_chans)
        extra = vars(spec) | {"scale": model.scale, "multiple": list(model.multiple)}
        super().__init__(model, metadata, (height, width), options, task, extra)
        self.restorer = Restorer(spec.enlarge, *tiles(self.fixed), whole=self.fixed)

    def apply(self, model: Model, batch: Batch) -> Tensor:
        """Return the restored image (1, C, H, W) for the only image in a batch."""
        return self.restorer(PadAndCrop(model, self.fixed or self.extra["multiple"]), batch["image"][0][None])

    def image_score(self, model: Model, batch: Batch) -> float:
        """Return the PSNR of the image in dB, measured as in the task's scores."""
        measure, restored = self.task.measure, check_finite(self.apply(model, batch)[0].float())
        return min(psnr(measure.prepare(restored), measure.prepare(batch["target"][0], round_it=False)), BEST_PSNR)


def open_restorer(options: ExportOptions) -> ExportableRestorer:
    """Load an image model, and open the images to compare it on if `data_dir` is given."""
    file = options.file
    if options.data:
        raise ValueError(f"data is {options.data}, but restoration reads one layout: give only --data-dir DIR")
    weights: Any = {"checkpoint": file, "model": options.model if file else options.source, "pretrained": not file}
    if not options.data_dir:
        return ExportableRestorer(load_restorer(**weights), options)
    eval_options = RestorationEvalOptions(data_dir=options.data_dir, workers=0, **weights)
    task, model, metadata = Restoration.for_evaluation(eval_options)
    spec = RestorationSpec(task.data.channels, task.model.enlarge, task.options.degradation)
    return ExportableRestorer(TrainedRestorer(task.options.model, model, spec, metadata), options, task)


def exported_restorer(exported: ExportedModel) -> TrainedRestorer:
    """Use an exported model as a restorer; raise ValueError if export.json is incomplete or wrong."""
    artifact, rules = exported.artifact, rules_of(RestorationSpec)
    artifact.check(rules | EXTRA)
    spec = RestorationSpec(**{name: artifact.extra[name] for name in rules})
    model = PadAndCrop(exported, artifact.size or artifact.extra["multiple"])
    return TrainedRestorer(artifact.model.model or "", model, spec, artifact.model, artifact.size)
