"""Test that the help of `--deterministic` names the mixers and losses for which torch raises an error on a GPU."""

import re

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import metamix
from metamix.segmentation.loss import LOSSES
from metamix.training.recipe import EngineOptions

# Operations without a deterministic GPU algorithm, from the documentation of torch.use_deterministic_algorithms.
LACKING = {
    "_adaptive_avg_pool2d_backward",
    "upsample_linear1d_backward",
    "upsample_bicubic2d_backward",
    "nll_loss2d_forward",
}
HELP = EngineOptions.__dataclass_fields__["deterministic"].metadata["help"]


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size, exempt", [(32, {"raft", "nin", "minattn"}), (40, set())])
def test_the_help_names_the_mixers_that_have_no_deterministic_algorithm(size, exempt):
    """raft, nin and minattn use a nondeterministic operation only at image sizes that they were not built for."""
    expected = {mixer for mixer in metamix.list_mixers() if re.search(rf"\b{mixer}\b", HELP)} - exempt
    lacking = set()
    for mixer in metamix.list_mixers():
        model = timm.create_model(f"metaformer_{mixer}_nano", num_classes=2)
        with Operations() as operations:
            model(torch.randn(1, 3, size, size)).sum().backward()
        if operations.names & LACKING:
            lacking.add(mixer)
    assert lacking == expected


@pytest.mark.parametrize("loss", ["ce", "ohem"])
def test_the_help_names_the_cross_entropy_of_pixels(loss):
    with Operations() as operations:
        LOSSES[loss](torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), None)
    assert operations.names & LACKING and "cross-entropy of pixels" in HELP
