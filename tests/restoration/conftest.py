import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_fixtures import break_image, image

__all__ = ["break_image", "image"]


@pytest.fixture
def clean(tmp_path, image):
    """Return a function that makes a folder of random smooth images."""

    def make(name="photos", count=6, size=(40, 48), mode="RGB", kind="png"):
        place = tmp_path / name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image(size, mode).save(place / f"{i}.{kind}")
        return place

    return make


@pytest.fixture
def pairs(tmp_path, image):
    """Return a function that makes DIR/SPLIT/input and DIR/SPLIT/target; inputs are dark and `scale` times smaller."""

    def make(size=(40, 48), scale=1, mode="RGB"):
        for split, count in (("train", 4), ("test", 2)):
            for folder in "input", "target":
                (tmp_path / "pairs" / split / folder).mkdir(parents=True)
            for i in range(count):
                target = image(size, mode)
                small = target.resize((size[0] // scale, size[1] // scale))
                dark = Image.fromarray((np.array(small) * 0.5).astype(np.uint8))
                target.save(tmp_path / "pairs" / split / "target" / f"{i}.png")
                dark.save(tmp_path / "pairs" / split / "input" / f"{i}.png")
        return tmp_path / "pairs"

    return make
