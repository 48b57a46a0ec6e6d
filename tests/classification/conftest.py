import pytest
import torch
from PIL import Image

from metamix.weights.files import save_weights
from tests.helpers.classifiers import small_task
from tests.helpers.image_fixtures import break_image, folder, image, shard

__all__ = ["break_image", "folder", "image", "shard"]


@pytest.fixture
def three_classes(tmp_path):
    """Make a folder of three classes with 12 images of 16 x 16 pixels."""
    for i, (split, label) in enumerate([(s, c) for s in ("train", "val") for c in ("ant", "bee", "cat")]):
        path = tmp_path / "set" / split / label
        path.mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (16, 16), (40 * i, 100 * j, 9)).save(path / f"{j}.png")
    return tmp_path / "set"


@pytest.fixture
def weights(tmp_path):
    """Return a function that writes weights of a model for digits and returns the path and the model."""

    def save(**metadata):
        digits = small_task()
        model = digits.model.build()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.01)
        save_weights(tmp_path / "w.safetensors", model.state_dict(), digits.model.describe(model) | metadata)
        return str(tmp_path / "w.safetensors"), model

    return save
