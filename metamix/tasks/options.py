"""Define the options that the tasks share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from metamix.utils.checks import check_one_source
from metamix.utils.options import changed, option, options_of
from metamix.weights.metadata import TIMM_ARGS

T = TypeVar("T")
_model = partial(option, group="model")

# Arguments of the model that users of detection and segmentation may not set in model_args, and what sets them instead
SET_BY_TASK = {
    "num_classes": "the data set",
    "in_chans": "the images, which are read in colour",
    "pretrained": "--pretrained",
    "checkpoint": "--checkpoint",
}


def as_trained(help: str) -> Any:
    """Declare an option of `metamix eval` whose default, None, means the value that training used."""
    return option(None, f"{help}; default: as in training", group="data")


@dataclass
class WeightOptions:
    """Options of `metamix eval` that choose the weights, for tasks that also evaluate published weights."""

    model: str | None = _model(None, "name of the model; default: the model that the checkpoint names")
    model_args: dict[str, Any] = _model({}, "more arguments of the model, as YAML: '{mixer: raft}'")
    pretrained: bool = _model(False, "evaluate the model's published weights")
    checkpoint: str | None = _model(None, "run folder, weight file, or name of shipped weights to evaluate")

    def weights(self) -> dict[str, Any]:
        """Return the arguments of the task's `load` function."""
        return {field.name: getattr(self, field.name) for field in fields(WeightOptions)}


def options_as_trained(cls: type[T], trained: Mapping[str, Any], options: Any) -> T:
    """Make training options from the options of `metamix eval`; options that are not given are as in `trained`.

    Entries of `trained` that are not training options, and eval options that choose the weights, are ignored.
    """
    weights = options_of(WeightOptions)
    values = {**trained, **{name: value for name, value in changed(options).items() if name not in weights}}
    return cls(**{name: value for name, value in values.items() if name in options_of(cls)})


@dataclass
class BackboneOptions:
    """Options of the model, and of the weights that training starts from.

    A task derives its options from this class, may change the default of `model`, and calls `check_backbone` in its
    `__post_init__`.
    """

    model: str = _model(
        "metaformer_pooling_nano",
        "model of metamix or timm; several names, a,b,c, are trained one after the other and compared",
    )
    model_args: dict[str, Any] = _model({}, "more arguments of the model, as YAML: '{mixer: raft}'")
    pretrained: bool = _model(False, "start from the model's published weights")
    checkpoint: str | None = _model(
        None, "start from the weights in this file or run; a head for other classes is not loaded"
    )

    def check_backbone(self, set_elsewhere: Mapping[str, str]) -> None:
        """Refuse `pretrained` with `checkpoint`, and arguments in `model_args` that do not belong there.

        Args:
            set_elsewhere: arguments that something else sets, and what sets them, such as {"img_size": "--img-size"}.
                Arguments of `timm.create_model` are refused too, since weight files may not contain them.
        """
        check_one_source(self.pretrained, self.checkpoint)
        for name in self.model_args:
            if name in set_elsewhere:
                raise ValueError(f"model_args has {name}, which comes from {set_elsewhere[name]}; leave it out")
            if name in TIMM_ARGS:
                raise ValueError(f"model_args has {name}, which is not an argument of the model itself; leave it out")
