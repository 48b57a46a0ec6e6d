"""Build an image model from options, and describe it for the summary and its weight file."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from metamix.models import count_macs
from metamix.models.image_models import create_image_model, published_weights
from metamix.training.task import TaskModel
from metamix.weights.find import find_weights, read_weights

from .data import RestorationData
from .inference import check_local_pooling
from .load import RestorationSpec, check_channels, fit_arguments
from .options import RestorationOptions


class RestorationModel(TaskModel):
    """Build the image model and describe it; `measured` says what the scores compare, for the summary."""

    def __init__(self, options: RestorationOptions, data: RestorationData, measured: str):
        self.options, self.data, self.measured = options, data, measured
        self.notes: list[str] = []  # where the weights come from, and whether images are enlarged before the model
        self.arguments, self.enlarge = fit_arguments(options.model, options.model_args, data.in_chans, data.scale)
        if self.enlarge > 1:
            self.notes.append(f"images are enlarged {self.enlarge} times (bicubic) before {options.model}")

    def build(self, metadata: Mapping[str, Any] | None = None) -> nn.Module:
        """Build the model and check the crop size. Unless `metadata` is given, load the initial weights."""
        options, weights = self.options, None
        if metadata is None and options.checkpoint:
            weights = find_weights(options.checkpoint)
            self.notes.append(f"weights from {options.checkpoint}")
        elif metadata is None and options.pretrained:
            name, weights = published_weights(options.model)
            self.notes.append(f"published weights {name}")
        if weights and (in_chans := read_weights(weights)[1].in_chans):
            check_channels(options.checkpoint or options.model, in_chans, self.data.in_chans)
        model = create_image_model(options.model, checkpoint=weights, **self.arguments)
        check_local_pooling(model, options.model, options.local_pooling)
        scale = self.data.scale
        h, w = (math.lcm(side * scale // self.enlarge, scale) for side in model.multiple)
        if options.crop % h or options.crop % w:
            side = math.lcm(h, w)
            of_scale = f" at a scale of {scale}" if scale > 1 else ""
            raise ValueError(
                f"crop is {options.crop}, but {options.model} trains on multiples of {h} x {w} pixels{of_scale}: "
                f"give a --crop that fits, such as {max(options.crop // side, 1) * side}"
            )
        return model

    def describe(self, model: nn.Module) -> dict[str, Any]:
        options, data = self.options, self.data
        arguments = {name: value for name, value in self.arguments.items() if name != "in_chans"}
        spec = RestorationSpec(data.channels, self.enlarge, options.degradation)
        crop = options.crop * self.enlarge // data.scale  # side of the crops that the model takes, in pixels
        return {
            "task": "restoration",
            "model": options.model,
            "model_args": arguments,
            "in_chans": data.in_chans,
            **vars(spec),
            "scale": data.scale,
            "data": data.name,
            "test_share": options.test_share,
            "crop": options.crop,
            "measured": self.measured,
            **data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(model, (data.in_chans, crop, crop)),
        }
