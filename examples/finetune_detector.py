"""Fine-tune a detector from the weights of a classifier, on a few drawn shapes, in about a minute.

    python examples/finetune_detector.py [OUTPUT_FOLDER]

For your own data, replace `draw_shapes` with a folder in COCO's format.
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

import metamix


def draw_shapes(folder: Path, counts: dict[str, int]) -> None:
    """Write images of squares and discs for each split, with their boxes as COCO annotations."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for split, count in counts.items():
        images, boxes = [], []
        for i in range(count):
            image = Image.new("RGB", (96, 96), tuple(draw.randrange(60) for _ in range(3)))
            for kind in (1, 2):
                side, x, y = draw.randrange(16, 40), draw.randrange(56), draw.randrange(56)
                box = (x, y, x + side, y + side)
                colour = tuple(draw.randrange(120, 256) for _ in range(3))
                pen = ImageDraw.Draw(image)
                pen.rectangle(box, fill=colour) if kind == 1 else pen.ellipse(box, fill=colour)
                entry = {"id": len(boxes) + 1, "image_id": i + 1, "category_id": kind, "iscrowd": 0}
                boxes.append(entry | {"bbox": [x, y, side, side], "area": side * side})
            name = f"{split}_{i}.png"
            image.save(folder / "images" / name)
            images.append({"id": i + 1, "file_name": name, "width": 96, "height": 96})
        categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
        data = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def main(folder: str, epochs: int = 4, images: int = 80) -> None:
    """Draw a data set and fine-tune RetinaNet from the CIFAR-10 weights of a small backbone."""
    data = Path(folder) / "shapes"
    draw_shapes(data, {"train": images, "val": images // 4})
    metamix.train(
        "bccd/retinanet",
        model="metaformer_pooling_nano",
        pretrained=True,
        data_dir=data,
        train_on="train",
        test_on="val",
        min_size=96,
        max_size=96,
        epochs=epochs,
        output=Path(folder) / "run",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", default="runs/finetune-detector", help="default: %(default)s")
    main(parser.parse_args().folder)
