"""Test how often `metamix export` runs a model to measure its speed, and which image sizes it takes."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metamix.tasks.export import measure, summary
from metamix.tasks.exportable import ExportOptions


def test_a_slow_model_is_measured_once():
    def run(images):
        calls.append(len(images))
        time.sleep(0.02)

    calls = []
    exportable = SimpleNamespace(model=nn.Identity(), examples=lambda count: torch.zeros(count, 3, 8, 8))
    speed = measure(exportable, run, torch.get_num_threads(), seconds=0.01)
    assert calls == [1, 8] * 2 and speed["exported"]["batch_1_ms"] >= 20  # the first run is a warm-up


def test_long_times_are_printed_without_exponents():
    speed = {name: dict(batch_1_ms=0.1234, batch_8_ms=1504.2, img_per_s=5.3) for name in ("eager", "exported")}
    parity = dict(images=1, on="random images", of_the_deviation=0.0)
    report = dict(notes=[], parity=parity, scores={}, speed=speed, files={}, quantization=None, format="", precision="")
    assert "eager: 0.123 ms for 1 image, 1,500 ms for 8 (5 img/s)" in summary(report, Path("out"))


@pytest.mark.parametrize("size", [(), (32, 32, 3)])
def test_an_image_size_has_one_or_two_sides(size):
    with pytest.raises(ValueError, match="img_size is .*, but it must be a side in pixels, or height,width"):
        ExportOptions("model", Path("out"), img_size=size)
