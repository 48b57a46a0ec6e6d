"""Test the options of the model: their defaults, types and contradictions."""

from dataclasses import dataclass

import pytest

from metamix.tasks.options import BackboneOptions
from metamix.utils.options import option, options_of


@dataclass
class Options(BackboneOptions):
    """Options of a task that changes a default and adds an option."""

    model: str = option("resnet18", "backbone", group="model")
    img_size: int = option(224, "side of the images", group="data")

    def __post_init__(self):
        self.check_backbone({"img_size": "--img-size", "pretrained": "--pretrained"})


def test_a_task_may_change_a_default_and_options_keep_their_order():
    assert list(options_of(Options)) == ["model", "model_args", "pretrained", "checkpoint", "img_size"]
    assert Options().model == "resnet18"
    assert Options().model_args == {} and Options().model_args is not Options().model_args


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pretrained": True, "checkpoint": "a.pt"}, r"pretrained and checkpoint \(a.pt\) both say where .*: give one"),
        ({"model_args": {"features_only": True}}, "features_only, which is not an argument of the model itself"),
        ({"model_args": {"img_size": 32}}, "model_args has img_size, which comes from --img-size; leave it out"),
        ({"model_args": {"mixer": "raft", "pretrained": True}}, "model_args has pretrained, which comes from --pre"),
    ],
)
def test_contradictory_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Options(**options)
