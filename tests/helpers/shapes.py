"""Draw a small data set of orange squares and blue discs."""

import json

import numpy as np
from PIL import Image

SQUARE, DISC = 7, 3  # category ids that neither start at 1 nor follow the order of the names


def draw(objects, size=(96, 64)):
    """Draw orange squares and blue discs, each (category, x, y, side), on a dark image of (width, height)."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 40, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    for category, left, top, side in objects:
        if category == SQUARE:
            inside = (x >= left) & (x < left + side) & (y >= top) & (y < top + side)
            pixels[inside] = (250, 140, 20)
        else:
            middle = (side - 1) / 2
            inside = (x - left - middle) ** 2 + (y - top - middle) ** 2 <= (side / 2) ** 2
            pixels[inside] = (30, 60, 250)
    return Image.fromarray(pixels)


def scatter(count, seed):
    """Return one to three objects for each image of 96 x 64 pixels, but none for every fourth image."""
    random = np.random.default_rng(seed)
    images = []
    for i in range(count):
        objects = []
        for slot in range(0 if i % 4 == 3 else random.integers(1, 4)):
            side = int(random.integers(16, 26))
            category = SQUARE if random.random() < 0.5 else DISC
            x, y = 32 * slot + int(random.integers(0, 32 - side)), int(random.integers(0, 64 - side))
            objects.append((category, x, y, side))
        images.append(objects)
    return images


def write(folder, *, change=None, **counts):
    """Write a data set in COCO's format, of two classes on images of 96 x 64 pixels, and return the folder.

    `counts` are the numbers of images in each split; `change(split, data)` alters what is written.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for seed, (split, count) in enumerate(counts.items()):
        categories = [{"id": SQUARE, "name": "square"}, {"id": DISC, "name": "disc"}]
        data = {"images": [], "annotations": [], "categories": categories}
        for i, objects in enumerate(scatter(count, seed)):
            name = f"{split}_{i}.png"
            draw(objects).save(folder / "images" / name)
            data["images"].append({"id": 10 + i, "file_name": name, "width": 96, "height": 64})
            for category, x, y, side in objects:
                data["annotations"].append(
                    {
                        "id": len(data["annotations"]),
                        "image_id": 10 + i,
                        "category_id": category,
                        "iscrowd": 0,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                    }
                )
        if change:
            change(split, data)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return folder
