import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def dark_and_light(tmp_path):
    """Return a function that makes a folder of dark and light noise, two classes that a tiny model can tell apart."""

    def make(train, val):
        random = np.random.default_rng(0)
        for split, count in ("train", train), ("val", val):
            for label, level in ("dark", 60), ("light", 190):
                place = tmp_path / "data" / split / label
                place.mkdir(parents=True)
                for i in range(count):
                    pixels = (level + random.integers(-50, 50, (32, 32, 3))).astype("uint8")
                    Image.fromarray(pixels).save(place / f"{i}.png")
        return tmp_path / "data"

    return make
