"""Convert labels from annotation programs to a data set in COCO's format."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from metamix.data import CorruptImage
from metamix.data.run_lengths import is_brush
from metamix.data.tables import SPLITS, read_table, same_in_all

from .coco import find_image, find_splits, read_complete
from .instances import read_instances
from .labels import Box, Boxes, split_folders
from .voc import read_voc
from .yolo import read_yolo


def read_boxes(source: Path) -> Boxes | None:
    """Read a CSV file with at most one box, in pixels, on each line; return None if it has no columns for boxes."""
    table = read_table(source)
    if not table.has_boxes:
        return None
    rows = [row for rows in table.images.values() for row in rows]
    if max((max(row.box) for row in rows if row.box), default=2) <= 1:
        raise ValueError(f"all coordinates in {source} are at most 1: boxes must be in pixels")
    labels = Boxes(sorted({row.label for row in rows if row.box}))
    labels.notes["lines whose image does not exist were left out"] += table.missing
    for file, lines in table.images.items():
        boxes = [Box(row.label, row.box, row.place) for row in lines if row.box]
        labels.add(table.names[file], file, boxes, same_in_all(lines, "split"))
    return labels.checked(source)


def read_coco(source: Path) -> Boxes:
    """Read annotation files in COCO's format, as annotation programs write them, and find their images.

    Images are looked up in the folder of the annotation file and in its parent folder, and in the subfolders NAME/,
    images/NAME/ and images/ of both folders. NAME is the name of the annotation file without instances_ and .json.
    Label Studio may write paths on its own server. An image that is not found at its path is looked up by its file name
    alone, if no other image has this name.
    Classes without objects, such as the parent of all classes that Roboflow adds, are left out.
    """
    files, labels = annotation_files(source), Boxes([])
    used: dict[str, bool] = {}  # whether each class has an object
    read = {path: read_complete(path, path.parent, inside=False) for path in files}
    names = (to_path(image["file_name"]) for data in read.values() for image in data["images"])
    times = Counter(map(os.path.basename, names))
    for path, split in files.items():
        data = read[path]
        classes = {category["id"]: category["name"] for category in data["categories"]}
        used |= {classes[number]: used.get(classes[number], False) for number in sorted(classes)}
        boxes: dict[int, list[Box]] = {image["id"]: [] for image in data["images"]}
        for each in data["annotations"]:
            place = f"{path}, annotation {each['id']}"
            if each["image_id"] not in boxes or each["category_id"] not in classes:
                labels.notes["annotations of an unknown image or class were left out"].append(place)
                continue
            label, (x, y, width, height) = classes[each["category_id"]], each["bbox"]
            used[label] = True
            if isinstance(polygons := each.get("segmentation"), list):
                each["segmentation"] = [part for part in polygons if not isinstance(part, list) or len(part) >= 6]
                if len(each["segmentation"]) < len(polygons):
                    labels.notes["polygons of fewer than three points were left out"].append(place)
            more = {key: each[key] for key in ("area", "segmentation") if each.get(key)}
            brush = is_brush(each, more.get("segmentation"))
            if each["iscrowd"]:
                crowds = "crowds are ignored in training; set their iscrowd to 0 if they are single objects"
                labels.notes["masks of CVAT's brush are read as objects" if brush else crowds].append(place)
            box = Box(label, (x, y, x + width, y + height), place, bool(each["iscrowd"]) and not brush, more)
            boxes[each["image_id"]].append(box)
        roots, part = path.absolute().parents[:2], path.stem.removeprefix("instances_")
        folders = [root / name for root in roots for name in (part, f"images/{part}", "images", "")]
        folders = list(filter(Path.is_dir, folders))
        for image in data["images"]:
            name = to_path(image["file_name"])
            short = os.path.basename(name)
            candidates = [name] if not (os.path.isabs(name) or name.startswith("..")) else []
            located = find_in(folders, candidates + [short] * (times[short] == 1))
            if located is None:
                labels.notes["images that do not exist were left out"].append(f"{name} of {path}")
                continue
            if located[0] != name:
                labels.notes["images were found by their file names, without their folders"].append(f"{name} of {path}")
            size = image.get("height") or 0, image.get("width") or 0
            labels.add(*located, boxes[image["id"]], split, size)
    labels.classes = [name for name, has_object in used.items() if has_object]
    labels.notes["classes without an object were left out"] += [name for name in used if not used[name]]
    return labels.checked(", ".join(map(str, files)))


def to_path(name: str) -> str:
    """Replace backslashes in the name of a file by slashes, and remove `.` and `..` where possible."""
    return posixpath.normpath(name.replace("\\", "/"))


def find_in(folders: Sequence[Path], names: Iterable[str]) -> tuple[str, Path] | None:
    """Look up each name in all folders; return the first name that is found and the path of the image, or None."""
    for name, folder in product(names, folders):
        with suppress(CorruptImage):
            return name, find_image(folder, name)
    return None


def annotation_files(source: Path) -> dict[Path, str]:
    """Return the annotation files of a source, each with its split; the split is "" if it is unknown."""
    if source.is_file():
        return {source: ""}
    files = {path: split for split, folder in split_folders(source) for path in folder.glob("*.coco.json")}
    if not files and any(source.glob("annotations/instances_*.json")):
        files = {path: SPLITS.get(split.lower(), "") for split, (path, _) in find_splits(source).items()}
    files = files or dict.fromkeys(source.glob("*.json"), "")
    if not files or (len(files) > 1 and not any(files.values())):
        raise FileNotFoundError(
            f"{source} holds {'several .json files' if files else 'no .json file'}: give the annotation file, or a "
            f"folder with annotations/instances_train.json or train/_annotations.coco.json"
        )
    return files


FORMATS = {"voc": read_voc, "yolo": read_yolo, "csv": read_boxes, "coco": read_coco, "instances": read_instances}
