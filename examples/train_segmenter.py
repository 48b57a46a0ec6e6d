"""Draw scenes with masks, train a segmenter on them, and predict the labels of new scenes.

    python examples/train_segmenter.py [OUTPUT_FOLDER]

The output folder gets the data set (train, test, classes.txt), the run, and predicted/ with masks and overlays.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import metamix
from metamix.segmentation.predict import LabelPixels

CLASSES = ("sky", "ground", "house", "tree")
COLOURS = ((120, 180, 240), (150, 140, 90), (200, 80, 70), (50, 120, 60))


def draw_scene(seed: int, size: tuple[int, int] = (128, 96)) -> tuple[Image.Image, Image.Image]:
    """Draw a scene and its mask, a grey image of labels. The bottom row of the mask is marked as ignored (255)."""
    rng = np.random.default_rng(seed)
    width, height = size
    image, mask = Image.new("RGB", size), Image.new("L", size)
    pens = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    colours = [tuple(np.add(colour, rng.integers(-20, 21, 3)).tolist()) for colour in COLOURS]

    def fill(shape, label, box):
        for pen, colour in zip(pens, (colours[label], label)):
            getattr(pen, shape)(list(map(float, box)), fill=colour)

    horizon = height * rng.uniform(0.4, 0.7)
    fill("rectangle", 0, (0, 0, width, height))
    fill("rectangle", 1, (0, horizon, width, height))
    for label in rng.integers(2, 4, rng.integers(2, 5)):
        x, y, r = width * rng.uniform(), height * rng.uniform(0.5, 0.9), height * rng.uniform(0.1, 0.25)
        if label == 2:
            fill("rectangle", 2, (x - r, y - r, x + r, y + r))
        else:
            fill("rectangle", 3, (x - r / 8, y, x + r / 8, y + r))
            fill("ellipse", 3, (x - 0.7 * r, y - 1.2 * r, x + 0.7 * r, y + 0.4 * r))
    pens[1].line((0, height - 1, width, height - 1), fill=255)
    noisy = np.array(image) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), mask


def draw_set(root: Path, size: tuple[int, int] = (128, 96), **counts: int) -> None:
    """Draw a data set: ROOT/SPLIT/images and ROOT/SPLIT/masks for each split, and ROOT/classes.txt."""
    seed = 0
    for split, count in counts.items():
        for folder in "images", "masks":
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, mask = draw_scene(seed, size)
            image.save(root / split / "images" / f"{i}.png")
            mask.save(root / split / "masks" / f"{i}.png")
            seed += 1
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def main(folder: str, epochs: int = 10, images: int = 160) -> None:
    """Draw a data set, train Semantic FPN on it from scratch, and predict the labels of its test images."""
    root = Path(folder)
    run = str(root / "run")
    draw_set(root, train=images, test=images // 8)
    metamix.train(
        task="segmentation",
        model="metaformer_pooling_nano",
        data_dir=folder,
        crop=(96, 128),
        batch_size=4,
        optimizer="muon",
        lr=5e-3,
        ema=True,
        epochs=epochs,
        output=run,
    )
    LabelPixels((root / "test" / "images",), output=root / "predicted").run(metamix.load(run))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", default="runs/scenes", help="default: %(default)s")
    main(parser.parse_args().folder)
