"""Read annotations of Pascal VOC, CVAT, LabelImg and Roboflow.

    Annotations/**/*.xml and JPEGImages/; or annotations/ and images/; or all files in one folder
    train/, valid/ and test/, each with one of these layouts
    ImageSets/Main/train.txt, val.txt and test.txt, optional lists of the images of each split

VOC counts pixels from 1, and both corners belong to the box: x = xmin - 1, width = xmax - xmin + 1. Difficult objects,
which VOC's scores ignore, become crowds, which COCO's scores ignore. Classes are numbered in alphabetical order over
all annotations of the folder, so that all splits agree.
"""

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from metamix.data.find import by_stem, list_images
from metamix.data.tables import SPLITS
from metamix.utils.files import read_bytes, read_text
from metamix.utils.text import to_number

from .labels import Box, Boxes, split_folders

LISTS = "ImageSets/Main"  # folder of the lists of images, one for each split
FLAG = re.compile(r"\s(1|-1|0)$")
PLACE = "place"  # attribute in which `parse` stores file and line of each element, for messages


def read_voc(folder: Path) -> Boxes:
    """Read the annotations of a folder, which has one of the layouts above; raise ValueError if no image has a box."""
    labels = Boxes([])
    read_folder(folder, "", labels)
    return labels.checked(subfolder(folder, "Annotations", "annotations"))


def read_folder(folder: Path, split: str, labels: Boxes) -> None:
    """Add the annotations of a folder to the labels; `split` is the split of all its images, or ""."""
    place = subfolder(folder, "Annotations", "annotations")
    paths = sorted(place.glob("*.xml" if place == folder else "**/*.xml"))  # CVAT repeats the images' subfolders
    if paths:
        read_files(folder, place, paths, split, labels)
    elif folders := split_folders(folder):
        for name, each in folders:
            read_folder(each, split or name, labels)
    else:
        raise FileNotFoundError(
            f"{place} holds no .xml file: give the folder of a VOC year, such as VOCdevkit/VOC2012, or a folder with "
            f"annotations/ and images/"
        )


def subfolder(folder: Path, *names: str) -> Path:
    """Return the first of the named subfolders that exists, or the folder itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def read_files(folder: Path, place: Path, paths: Sequence[Path], split: str, labels: Boxes) -> None:
    """Add the annotation files in `place` to the labels; their images and the lists of splits are in `folder`."""
    trees = {path.relative_to(place).with_suffix("").as_posix(): parse(path) for path in paths}
    images = subfolder(folder, "JPEGImages", "images")
    files = by_stem(list_images(images))
    objects = [element for tree in trees.values() for element in tree.iter("object")]
    labels.classes = sorted({*labels.classes, *(text(element, "name") for element in objects)})
    annotated = set()
    for stem, listed in list_samples(folder, place, trees):
        tree, size = trees[stem], read_size(trees[stem])
        file = files.get(stem, images / Path(tree.findtext("filename", "").strip()).name)
        annotated.add(file)
        if file.is_file():
            name, boxes = file.relative_to(images).as_posix(), map(read_box, tree.iter("object"))
            labels.add(name, file, boxes, split or listed, size)
        else:
            labels.notes["annotations without an image were left out"].append(str(place / f"{stem}.xml"))
    rest = set(files.values()) - annotated
    labels.notes["images without an annotation were left out"] += map(str, sorted(rest))


def list_samples(folder: Path, place: Path, stems: Collection[str]) -> list[tuple[str, str]]:
    """Return each annotation with its split in `LISTS`, then the annotations that no list names, with the split "".

    Without lists, the folder of an annotation names its split, as in annotations/train/.
    """
    samples: dict[tuple[str, str], None] = {}
    for path in sorted((folder / LISTS).glob("*.txt")):
        if not (split := SPLITS.get(path.stem.lower())):  # CVAT writes Validation.txt
            continue
        for stem in read_list(path, stems):
            if stem not in stems:
                raise FileNotFoundError(f"{path} lists {stem}, but there is no {place / stem}.xml")
            samples[stem, split] = None
    if not samples:
        return [(stem, SPLITS.get(Path(stem).parts[0].lower() if "/" in stem else "", "")) for stem in stems]
    listed = {stem for stem, _ in samples}
    return [*samples, *((stem, "") for stem in stems if stem not in listed)]


def read_size(tree: Element) -> tuple[int, int]:
    """Return the height and width of the image of an annotation; (0, 0) if it has a file name but no size."""
    if tree.find("size") is None and tree.find("filename") is not None:
        return 0, 0
    width, height = (round(number(tree, f"size/{side}")) for side in ("width", "height"))
    return height, width


def read_box(element: Element) -> Box:
    """Read the box of an <object>."""
    x1, y1, x2, y2 = (number(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.findtext("difficult", "0").strip() == "1"
    return Box(text(element, "name"), (x1 - 1, y1 - 1, x2, y2), element.attrib[PLACE], difficult)


def read_list(path: Path, annotated: Collection[str]) -> list[str]:
    """Return the names of images, without extension, in a list of ImageSets/Main.

    A list that was made from VOC's list of a single class has a flag after each name: 1, -1, or 0 for difficult. Names
    may have spaces, so a whole line is taken as a name if it is in `annotated`, the names of images with an annotation.
    """
    lines = filter(None, map(str.strip, read_text(path).splitlines()))
    return [line if line in annotated else FLAG.sub("", line).rstrip() for line in lines]


def parse(path: Path) -> Element:
    """Parse an XML file, and store in each element its file and line; raise ValueError if the file is not XML."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = lambda tag, _: builder.start(tag, {PLACE: f"{path}:{parser.CurrentLineNumber}"})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two mean an unknown encoding
        raise ValueError(f"{path} is not XML: {error}") from None


def text(element: Element, name: str) -> str:
    """Return the text of a child; raise ValueError if there is none."""
    content = element.findtext(name, "").strip()
    if not content:
        raise ValueError(f"{element.attrib[PLACE]} has no <{name.replace('/', '><')}>: it is not a VOC annotation")
    return content


def number(element: Element, name: str) -> float:
    """Return the number in a child; raise ValueError if there is none."""
    digits = text(element, name)
    value = to_number(digits)
    if not math.isfinite(value):
        where = f"{element.attrib[PLACE]} has {digits!r} in <{name.replace('/', '><')}>"
        raise ValueError(f"{where}, where a number of pixels is needed")
    return value
