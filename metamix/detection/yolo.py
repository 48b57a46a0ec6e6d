"""Read YOLO's labels: a text file for each image, with a line "class x y width height" for each box.

    data.yaml, images/train/, images/val/, labels/train/, labels/val/
    data.yaml, train/images/, train/labels/, valid/images/, valid/labels/

data.yaml names the classes and the folders of images. A label file has the path of its image, with `labels` in
place of `images`. A box is given by its centre and size, as shares of the image. Images without a label file are
background.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamix.data.find import by_stem, list_images
from metamix.utils.files import read_text
from metamix.utils.options import read_yaml
from metamix.utils.text import to_number

from .labels import Box, Boxes

SLACK = 0.01  # how far rounding may take a share below 0 or above 1


def read_yolo(source: Path) -> Boxes:
    """Read the labels that a data.yaml, or the only YAML file in a folder, describes."""
    files = [source] if source.is_file() else [source / "data.yaml", *source.glob("*.yaml"), *source.glob("*.yml")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{source} holds no data.yaml: write one with the names of the classes, such as names: [cat, dog]"
        )
    config = read_yaml(file)
    labels, folders = Boxes(class_names(file, config)), []
    for images, split in image_folders(file, config).items():
        # The labels are in the folder labels/ beside images/, at the same path, or else beside the images.
        before, _, after = f"/{images.as_posix()}/".rpartition("/images/")
        beside = Path(f"{before}/labels/{after}"[1:])
        folder = beside if beside.is_dir() else images
        images_by_stem = by_stem(list_images(images))
        folders.append(str(folder))
        for stem, image in images_by_stem.items():
            path = folder / f"{stem}.txt"
            boxes = read_boxes(path, labels.classes, file) if path.exists() else []
            labels.add(image.relative_to(images).as_posix(), image, boxes, split, shares=True)
        texts = sorted(folder.rglob("*.txt"))
        stray = (str(path) for path in texts if str(path.relative_to(folder))[:-4] not in images_by_stem)
        labels.notes["label files without an image were left out"] += stray
    return labels.checked(", ".join(folders))


def class_names(file: Path, config: dict[str, Any]) -> list[str]:
    """Return the names of the classes in the order of their numbers, which begin at 0."""
    names = config.get("names")
    if isinstance(names, dict) and set(map(str, names)) == set(map(str, range(len(names)))):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names or any(type(name) not in (str, int) for name in names):
        raise ValueError(f"{file} has the names {names!r}: give the names of the classes, such as [cat, dog]")
    if config.get("nc", len(names)) != len(names):
        raise ValueError(f"{file} has {len(names)} names, but nc is {config['nc']}")
    name, count = Counter(map(str, names)).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{file} has the class {name!r} twice: give each class its own name")
    return list(map(str, names))


def image_folders(file: Path, config: dict[str, Any]) -> dict[Path, str]:
    """Return the split of each folder of images. Without splits, the only folder is images/, and its split is ""."""
    roots = [file.parent / str(config.get("path") or "."), file.parent]
    folders = {}
    for split in ("train", "val", "test"):
        entries = config.get(split) or []
        for entry in map(str, entries if isinstance(entries, list) else [entries]):
            names = entry, entry.removeprefix("../")  # Roboflow writes ../train/images for train/images
            places = [root / name for root in roots for name in names]
            folder = next((place for place in places if place.is_dir()), None)
            if folder is None:
                tried = " or ".join(dict.fromkeys(map(str, (places[0], places[-1]))))
                raise FileNotFoundError(
                    f"{file} has {split}: {entry}, but there is no folder {tried}; a file that lists images is not read"
                )
            if folder.resolve() in file.resolve().parent.parents:
                raise ValueError(
                    f"{file} has {split}: {entry}, but {folder} contains {file.name}: name the folder of images"
                )
            folders[folder] = split
    return folders or {next((root / "images" for root in roots if root.is_dir()), file.parent): ""}


def read_boxes(path: Path, classes: Sequence[str], description: Path) -> list[Box]:
    """Read a label file; the corners are shares of the image's width and height."""
    boxes = []
    for line, words in enumerate(map(str.split, read_text(path).splitlines()), start=1):
        if not words:
            continue
        place = f"{path}:{line}"
        if len(words) != 5:
            raise ValueError(
                f"{place} has {len(words)} values, but a box has five: class, x, y, width, height. Polygons and "
                f"keypoints are not read"
            )
        number, x, y, width, height = map(to_number, words)
        if number not in range(len(classes)):
            raise ValueError(
                f"{place} has the class {words[0]}, but {description} names the classes 0 to {len(classes) - 1}"
            )
        if not all(-SLACK <= value <= 1 + SLACK for value in (x, y, width, height)):  # also true for NaN
            raise ValueError(f"{place} has the values {' '.join(words[1:])}, but they must be shares, from 0 to 1")
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        boxes.append(Box(classes[int(number)], corners, place))
    return boxes
