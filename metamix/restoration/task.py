"""Define the restoration task, which trains image models on pairs of images or on clean images that it degrades."""

from dataclasses import replace
from typing import cast

import timm
import torch
from torch import nn

from metamix.models.image_models import create_image_model, image_model_names, weights_of
from metamix.tasks.options import options_as_trained
from metamix.utils.text import plural
from metamix.weights.find import nothing_published
from metamix.weights.metadata import ModelMetadata

from .data import RestorationData
from .inference import Restorer, check_local_pooling
from .load import check_channels, load_restorer
from .loss import RestorationLoss
from .metric import Measure, RestorationMetric
from .model import RestorationModel
from .options import RestorationEvalOptions, RestorationOptions
from .pictures import RestorationPictures


class Restoration:
    """Assemble data, model, loss, metric and pictures of restoration; see `metamix.training.task.Task`.

    To evaluate weights, give their `metadata`. The training split is then not opened.
    """

    Options, EvalOptions = RestorationOptions, RestorationEvalOptions
    same_image_shape = False  # images to score may differ in size

    def __init__(self, options: RestorationOptions, seed: int = 0, metadata: ModelMetadata | None = None):
        self.options = options
        self.data = RestorationData(options, seed, metadata)
        self.title = f"{self.data.name}-{options.model}"
        enlarges = self.data.scale > 1
        channel = ("y" if enlarges else "rgb") if options.score_channel == "auto" else options.score_channel
        border = (self.data.scale if enlarges else 0) if options.score_border == "auto" else options.score_border
        self.measure = Measure(channel, border, options.score_rounding)
        ensemble = ", restored in eight orientations" if options.ensemble else ""
        self.measured = self.measure.describe(self.data.channels) + ensemble
        self.model = RestorationModel(options, self.data, self.measured)
        self.data.enlarge = self.model.enlarge
        if self.measure.channel == "y" and self.data.channels == "rgb" and self.data.scored_in_grey:
            grey = plural(self.data.scored_in_grey, "scored image")
            text = "grey files are compared as Y of 3 equal channels, 16 to 235, which adds 1.32 dB to PSNR"
            self.data.notes.append(f"{text} ({grey})")
        for sample in (sample for part in self.data.scored.values() for sample in part.samples):
            height, width = (side - side % self.data.scale for side in sample.header.size)
            self.measure.check_size(height, width, sample.target)
        restorer = Restorer(self.model.enlarge, options.tile, options.overlap, options.ensemble, options.local_pooling)
        self.loss = RestorationLoss(options.loss, options.crop)
        self.metric = RestorationMetric(self.measure, restorer)
        self.pictures = RestorationPictures(self.metric)

    @property
    def notes(self) -> list[str]:
        """Describe how data and model were made, and what the scores compare."""
        made = self.options.degradation
        inputs = "images of the input folder" if self.data.paired else f"clean images degraded by {made}"
        return [*self.data.notes, *self.model.notes, f"inputs: {inputs}", self.measured]

    @staticmethod
    def check_model(name: str, pretrained: bool) -> None:
        """Raise ValueError unless an image model of this name exists, with published weights if `pretrained`."""
        base, _, tag = name.partition(".")
        if timm.is_model(base) and base not in image_model_names():
            raise ValueError(f"{name} is a classifier; restoration takes image restoration models, such as maxim_nano")
        with torch.device("meta"):
            create_image_model(name)
        if pretrained and not tag and not weights_of(base):
            raise nothing_published(name)

    @classmethod
    def for_evaluation(cls, options: RestorationEvalOptions) -> tuple["Restoration", nn.Module, ModelMetadata]:
        """Load weights and make their task; options that are not set are as in training."""
        restorer = load_restorer(**options.weights())
        metadata, name, in_chans = restorer.metadata, restorer.name, cast(int, restorer.model.in_chans)
        check_local_pooling(restorer.model, name, options.local_pooling)
        values = vars(restorer.spec) | {"model": name, "model_args": metadata.model_args}
        # The authors' files have neither entry, and older files of metamix have no crop.
        for entry, kind in {"test_share": float, "crop": int}.items():
            values |= {entry: value} if isinstance(value := metadata.extra.get(entry), kind) else {}
        made = options_as_trained(RestorationOptions, values, options)
        task = cls(made, metadata=replace(metadata, in_chans=in_chans))
        check_channels(name, in_chans, task.data.in_chans)
        if options.pretrained:
            task.model.notes.append(f"published weights {name}")
        return task, restorer.model, metadata
