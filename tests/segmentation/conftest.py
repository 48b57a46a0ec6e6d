import pytest

from examples.train_segmenter import draw_set
from tests.helpers.image_fixtures import break_image

__all__ = ["break_image"]


@pytest.fixture
def scenes(tmp_path):
    """Return a function that draws a data set of scenes, DIR/SPLIT/images and DIR/SPLIT/masks."""

    def make(name="scenes", size=(48, 40), **counts):
        draw_set(tmp_path / name, size, **(counts or {"train": 4, "val": 2, "test": 2}))
        return tmp_path / name

    return make
