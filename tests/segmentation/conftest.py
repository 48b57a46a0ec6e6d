import numpy as np
import pytest
from image_fixtures import break_image
from PIL import Image, ImageDraw

__all__ = ["break_image"]

CLASSES = ("sky", "ground", "ball")
COLOURS = ((120, 180, 240), (110, 140, 60), (220, 60, 50))


def draw_scene(i, size=(48, 40)):
    """Draw a sky, a ground and a ball, and their labels; a line of ignored pixels (255) is at the bottom."""
    rng = np.random.default_rng(i)
    width, height = size
    horizon, x, y, r = rng.integers(
        [height // 3, r0 := height // 4, r0, height // 6], [2 * height // 3, width, height, r0]
    )
    image, mask = Image.new("RGB", size, COLOURS[0]), Image.new("L", size, 0)
    for canvas, ground, ball in ((image, COLOURS[1], COLOURS[2]), (mask, 1, 2)):
        pen = ImageDraw.Draw(canvas)
        pen.rectangle((0, horizon, width, height), fill=ground)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ball)
    ImageDraw.Draw(mask).line((0, height - 1, width, height - 1), fill=255)
    noisy = np.array(image) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), mask


@pytest.fixture
def scenes(tmp_path):
    """A maker of a data set of drawn scenes, DIR/SPLIT/images and DIR/SPLIT/masks."""

    def make(name="scenes", size=(48, 40), **counts):
        root = tmp_path / name
        for split, count in (counts or {"train": 4, "val": 2, "test": 2}).items():
            for folder in "images", "masks":
                (root / split / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image, mask = draw_scene(len(split) * 100 + i, size)
                image.save(root / split / "images" / f"{i}.png")
                mask.save(root / split / "masks" / f"{i}.png")
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        return root

    return make
