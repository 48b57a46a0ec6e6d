"""Test the checks of model outputs and of words from a list."""

import pytest
import torch

from metamix.utils.checks import check_choice, check_finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    outputs = torch.rand(1, 3, 4, 4)
    assert check_finite(outputs) is outputs and check_finite(outputs[:0]).numel() == 0
    outputs[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="^a.png: the model returns NaN or infinity: use other weights"):
        check_finite(outputs, "a.png")


def test_the_error_suggests_the_nearest_accepted_word():
    check_choice("norm", "batch", ("batch", "group"))
    with pytest.raises(ValueError, match=r"^norm is 'bach'; did you mean 'batch'\? Accepted: batch, group\.$"):
        check_choice("norm", "bach", ("batch", "group"))
    with pytest.raises(ValueError, match=r"did you mean '198'\? Accepted: 0, .*, 49 and 150 more\.$"):
        check_choice("label", "1980", [*map(str, range(200))])
