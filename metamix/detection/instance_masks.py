"""Convert PNG masks of instance numbers into annotations of one class in COCO's format.

    python -m metamix.detection.instance_masks IMAGES MASKS CLASS_NAME DATA/annotations

The mask of a.jpg is a.png or a_mask.png: 0 is background, and each other value is an object. Images are sorted by name,
with 2 before 10. Of every five images, three go to instances_train.json, one to instances_val.json and one to
instances_test.json. Masks without an image are listed and left out.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metamix.data.files import as_corrupt_image, read_header, read_image_file
from metamix.data.find import list_images
from metamix.utils.text import exit_with_message, list_names, plural, printable

from .annotations import Entry
from .objects import encode, to_text


def convert(images: Path, masks: Path, class_name: str, out: Path) -> None:
    """Write the annotations; raise OSError if a mask is missing or broken, and ValueError if masks cannot be used."""
    from pycocotools.mask import area, toBbox

    files: dict[str, Path] = {}
    for path in sorted(masks.glob("*.png")):
        if (other := files.setdefault(path.stem.removesuffix("_mask"), path)) != path:
            raise ValueError(f"{other} and {path} are masks of one image: keep one of them")
    splits: dict[str, Entry] = {name: {"images": [], "annotations": []} for name in ("train", "val", "test")}
    for i, (name, image) in enumerate(list_images(images).items()):
        if image.stem not in files:
            raise FileNotFoundError(f"{image} needs its own mask {masks / image.stem}.png or {image.stem}_mask.png")
        with as_corrupt_image(path := files.pop(image.stem)):
            numbers = np.array(read_image_file(path))
        if numbers.ndim > 2:
            raise ValueError(f"{path} is in colour; a mask has one number for each pixel, the number of an object")
        if (size := read_header(image).size) != numbers.shape:
            raise ValueError(f"{path} has {numbers.shape} pixels (height, width), but {image} has {size}")
        data = splits[("train", "train", "train", "val", "test")[i % 5]]
        data["images"].append({"id": i, "file_name": name, "height": numbers.shape[0], "width": numbers.shape[1]})
        for number in np.unique(numbers[numbers > 0]):
            runs = encode(numbers == number)
            about = {"id": len(data["annotations"]) + 1, "image_id": i, "category_id": 1, "segmentation": to_text(runs)}
            data["annotations"].append(about | {"bbox": toBbox(runs).tolist(), "area": int(area(runs))})
    out.mkdir(parents=True, exist_ok=True)
    for name, data in splits.items():
        data["categories"] = [{"id": 1, "name": class_name}]
        (out / f"instances_{name}.json").write_text(json.dumps(data))
        print(f"{name}: {plural(len(data['images']), 'image')}, {plural(len(data['annotations']), 'object')}")
    if files:
        print(printable(f"masks without an image were left out: {list_names(files.values())}"))


def main(argv: Sequence[str]) -> None:
    if len(argv) != 4:
        raise SystemExit(__doc__)
    images, masks, class_name, out = argv
    with exit_with_message(OSError, ValueError, ImportError):
        convert(Path(images), Path(masks), class_name, Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
