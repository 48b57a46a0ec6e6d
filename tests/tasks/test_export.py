"""Test how often `metamix export` runs a model to measure its speed, and which image sizes it takes."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metamix.tasks.export import measure
from metamix.tasks.exportable import ExportOptions


def test_a_slow_model_is_measured_once():
    def run(images):
        calls.append(len(images))
        time.sleep(0.02)

    calls = []
    exportable = SimpleNamespace(model=nn.Identity(), examples=lambda count: torch.zeros(count, 3, 8, 8))
    speed = measure(exportable, run, torch.get_num_threads(), seconds=0.01)
    assert calls == [1, 8] * 2 and speed["exported"]["batch_1_ms"] >= 20  # the first run is a warm-up


@pytest.mark.parametrize("size", [(), (32, 32, 3)])
def test_an_image_size_has_one_or_two_sides(size):
    with pytest.raises(ValueError, match="img_size is .*: give one side for a square, or height and width"):
        ExportOptions("model", Path("out"), img_size=size)
