"""Test the picture of restored photographs."""

import torch
from skimage import data

from benchmarks.report.restoration_views import MODELS, ROWS, restore


def test_every_model_raises_the_psnr_of_a_photograph():
    assert [row[0] for row in ROWS] == [data.camera, data.astronaut]
    for photograph, (top, left), degradation, _, tag, measure in ROWS:
        pixels = photograph()[top : top + 64, left : left + 64]
        target = torch.from_numpy(pixels).view(64, 64, -1).permute(2, 0, 1).float() / 255
        images = restore(target, degradation, tag)
        scores = {name: measure.score(image, target)[0] for name, image in images.items()}
        assert list(images) == ["input", *MODELS[tag]]
        assert all(scores[model] > scores["input"] + 0.5 for model in MODELS[tag])
