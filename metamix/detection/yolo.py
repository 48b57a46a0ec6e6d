"""Read YOLO's labels: a text file for each image, with a line for each object.

    data.yaml, images/train/, images/val/, labels/train/, labels/val/
    data.yaml, train/images/, train/labels/, valid/images/, valid/labels/
    data.yaml, train.txt, images/train/, labels/train/, as CVAT writes them: train.txt lists images
    obj.data, obj.names, train.txt, obj_train_data/, as Darknet and CVAT (YOLO 1.1) write them

data.yaml or obj.data names the classes and the folders or lists of images. A label file has the path of its image, with
`labels` in place of `images`, or is next to the image. Its lines are `class x y width height` for a box, given by its
centre, or `class x y x y x y ...` for a polygon. Coordinates are shares of the width and height of the image. Images
without a label file are background.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metamix.data.find import by_stem, list_images
from metamix.utils.files import read_text
from metamix.utils.options import read_yaml
from metamix.utils.text import list_names, to_number

from .labels import Box, Boxes, split_folders

SLACK = 0.01  # how far a share may lie below 0 or above 1, because of rounding


def read_yolo(source: Path) -> Boxes:
    """Read the labels that a data.yaml, another YAML file or an obj.data describes."""
    others = (path for pattern in ("*.y*ml", "*.data") for path in sorted(source.glob(pattern)))
    files = [source] if source.is_file() else [source / "data.yaml", *others]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{source} holds no data.yaml: write one with the names of the classes, such as names: [cat, dog]"
        )
    file = file.absolute()  # paths are compared, and images in a list have absolute paths
    config = read_darknet(file) if file.suffix == ".data" else read_yaml(file)
    classes = class_names(file, config)
    labels, label_files, folders = Boxes(list(classes.values())), set[Path](), set[Path]()
    has_keypoints = "kpt_shape" in config
    labels.notes["keypoints were left out"] += [str(file)] * has_keypoints
    for (place, split), images in image_sets(file, config).items():
        for stem, image in by_stem(images).items():
            path = label_file(image)
            boxes = read_boxes(path, classes, file, has_keypoints) if path.exists() else []
            labels.add(stem + image.suffix, image, boxes, split, shares=True)
            label_files.add(path)
            folders.add(label_file(place / image.name).parent if place.is_dir() else path.parent)
    stray = {path for folder in folders for path in folder.rglob("*.txt")} - label_files
    labels.notes["label files without an image were left out"] += map(str, sorted(stray))
    expected = {"/labels/".join(f"{folder.as_posix()}/".rsplit("/images/", 1)).rstrip("/") for folder in folders}
    return labels.checked(", ".join(sorted(expected)))


def read_darknet(file: Path) -> dict[str, Any]:
    """Read an obj.data, whose lines are `key = value`; return the entries that a data.yaml would have.

    Its paths, such as data/train.txt, belong to another machine, so the files are looked up next to obj.data.
    """
    lines = (line.partition("=") for line in read_text(file).replace("\\", "/").splitlines())
    here = {key.strip(): Path(value.strip()).name for key, _, value in lines if value.strip()}
    if "names" not in here:
        raise ValueError(f"{file} has no line 'names = obj.names', which gives the file with the names of the classes")
    names = map(str.strip, read_text(file.parent / here["names"]).splitlines())
    numbered = {number: name for number, name in enumerate(names) if name}
    return {"names": numbered, "train": here.get("train"), "val": here.get("valid")}


def class_names(file: Path, config: dict[str, Any]) -> dict[int, str]:
    """Return the names of the classes by their numbers. Names without numbers are numbered from 0."""
    names = config.get("names")
    numbered = names if isinstance(names, dict) else dict(enumerate(names if isinstance(names, list) else ()))
    if not numbered or any(type(name) not in (str, int) or not str(key).isdecimal() for key, name in numbered.items()):
        raise ValueError(f"{file} has the names {names!r}: give the names of the classes, such as [cat, dog]")
    if config.get("nc", len(numbered)) not in (len(numbered), max(map(int, numbered)) + 1):
        raise ValueError(f"{file} has {len(numbered)} names, but nc is {config['nc']}")
    classes = {int(key): str(name) for key, name in numbered.items()}
    name, count = Counter(classes.values()).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{file} has the class {name!r} twice: give each class its own name")
    return dict(sorted(classes.items()))


def image_sets(file: Path, config: dict[str, Any]) -> dict[tuple[Path, str], dict[str, Path]]:
    """Map each folder or list of images, with its split, to its images by relative path.

    If `config` names no splits, use the folders in images/ that are named after splits, or images/ itself with the
    split "".
    """
    roots = [file.parent / str(config.get("path") or "."), file.parent]
    sets = {}
    for split in ("train", "val", "test"):
        entries = config.get(split) or []
        for entry in map(str, entries if isinstance(entries, list) else [entries]):
            names = entry, entry.removeprefix("../")  # Roboflow writes ../train/images for train/images
            places = [root / name for root in roots for name in names]
            place = next(filter(Path.exists, places), None)
            if place is None:
                tried = " or ".join(dict.fromkeys(map(str, (places[0], places[-1]))))
                advice = "add the images, or delete this entry"
                raise FileNotFoundError(f"{file} has {split}: {entry}, but there is no {tried}: {advice}")
            if place.resolve() in file.resolve().parent.parents:
                raise ValueError(
                    f"{file} has {split}: {entry}, but {place} contains {file.name}: name the folder of images"
                )
            sets[place, split] = list_images(place) if place.is_dir() else read_list(place, roots)
    if not sets:
        folder = next(filter(Path.is_dir, (root / "images" for root in roots)), file.parent / "images")
        splits = split_folders(folder) or [("", folder)]
        sets = {(place, split): list_images(place) for split, place in splits}
    return sets


def read_list(path: Path, roots: Sequence[Path]) -> dict[str, Path]:
    """Return the images that a file lists, by their paths inside the deepest folder that holds all images.

    Raises:
        ValueError: the file lists no image.
        FileNotFoundError: an image does not exist.
    """
    images = []
    for line in filter(None, map(str.strip, read_text(path).replace("\\", "/").splitlines())):
        names = line, line.partition("/")[2]  # some versions of CVAT write data/ before the path
        image = next(filter(Path.is_file, (root / name for name in names for root in roots)), None)
        if image is None:
            raise FileNotFoundError(f"{path} lists {line}, but there is no {roots[-1] / line}: add the images")
        images.append(Path(os.path.normpath(image.absolute())))
    if not images:
        raise ValueError(f"{path} lists no image: write the path of an image on each line")
    folder = os.path.commonpath([image.parent for image in images])
    return {image.relative_to(folder).as_posix(): image for image in images}


def label_file(image: Path) -> Path:
    """Return the label file of an image: its path with labels/ in place of images/, or else a file next to it."""
    before, found, after = f"/{image.as_posix()}".rpartition("/images/")
    other = Path(f"{before}/labels/{after}"[1:]) if found else image
    return (other if other.parent.is_dir() else image).with_suffix(".txt")


def read_boxes(path: Path, classes: Mapping[int, str], description: Path, has_keypoints: bool) -> list[Box]:
    """Read the objects in a label file, in shares of the image's width and height; skip keypoints after a box."""
    boxes = []
    for line, words in enumerate(map(str.split, read_text(path).splitlines()), start=1):
        if not words:
            continue
        place = f"{path}:{line}"
        number, *values = map(to_number, words[:5] if has_keypoints else words)
        if len(values) < 4 or len(values) % 2:
            raise ValueError(
                f"{place} has {len(words)} values, but a line has a class, and then x, y, width and height of a box, "
                f"or x and y of each point of a polygon"
            )
        if number not in classes:
            numbers = list_names(map(str, classes))
            raise ValueError(f"{place} has the class {words[0]}, but {description} names the classes {numbers}")
        if wrong := [word for word, value in zip(words[1:], values) if not -SLACK <= value <= 1 + SLACK]:  # or NaN
            raise ValueError(f"{place} has the values {list_names(wrong)}, but they must be shares, from 0 to 1")
        if len(values) == 4:
            x, y, width, height = values
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            boxes.append(Box(classes[int(number)], corners, place))
        else:
            xs, ys = values[::2], values[1::2]
            corners = (min(xs), min(ys), max(xs), max(ys))
            boxes.append(Box(classes[int(number)], corners, place, outline=values))
    return boxes
