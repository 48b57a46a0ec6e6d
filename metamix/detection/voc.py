"""Convert Pascal VOC annotations into one file in COCO's format.

    python -m metamix.detection.voc VOC_DIR OUT.json [--split train]

VOC_DIR is the folder of one VOC year, with Annotations/*.xml and JPEGImages/. `--split` takes the images that
ImageSets/Main/<split>.txt lists; without it, all images are taken. To train on the result, write it to
DATA/annotations/instances_<split>.json and copy VOC's images to DATA/images/.

VOC counts pixels from 1, and both corners belong to the box: x = xmin - 1, width = xmax - xmin + 1. Difficult objects,
which VOC's scores ignore, become crowds, which COCO's scores ignore. Classes are numbered in alphabetical order over
all annotations of the folder, so that all splits agree.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

from metamix.utils.text import message

from .annotations import Entries, Entry

FLAG = re.compile(r"\s+(1|-1|0)$")


def convert(folder: Path, split: str | None = None) -> Entries:
    """Convert the annotations of a VOC folder.

    Args:
        split: name of a list in ImageSets/Main; None takes all images.

    Returns:
        The content of an annotation file in COCO's format.

    Raises:
        FileNotFoundError: there are no annotations, there is no such split, or an image of the split has no annotation.
        ValueError: an annotation is not VOC's.
    """
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise FileNotFoundError(
            f"{folder / 'Annotations'} holds no .xml file: give the folder of a VOC year, such as VOCdevkit/VOC2012"
        )
    trees = {path.stem: parse(path) for path in files}
    names = sorted({text(o, "name", path) for path in files for o in trees[path.stem].iter("object")})
    classes = {name: number for number, name in enumerate(names, start=1)}
    stems = list(trees) if split is None else read_split(folder, split, trees)
    images: list[Entry] = []
    annotations: list[Entry] = []
    for stem in stems:
        path = folder / "Annotations" / f"{stem}.xml"
        if stem not in trees:
            raise FileNotFoundError(f"{split}.txt lists {stem}, but there is no {path}")
        size = {side: round(number(trees[stem], f"size/{side}", path)) for side in ("width", "height")}
        images.append({"id": len(images) + 1, "file_name": text(trees[stem], "filename", path)} | size)
        for element in trees[stem].iter("object"):
            x0, y0, x1, y1 = (number(element, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
            box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": classes[text(element, "name", path)],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(element.findtext("difficult", "0").strip() == "1"),
                }
            )
    categories = [{"id": number, "name": name} for name, number in classes.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def read_split(folder: Path, split: str, annotated: Collection[str]) -> list[str]:
    """Return the images, without suffix, that a list in ImageSets/Main names.

    In VOC's list of a single class, each name is followed by a flag: 1, -1, or 0 for difficult. Names may have spaces,
    so a whole line is taken as a name if it is in `annotated`, the names of the images with an annotation.
    """
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        splits = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        raise FileNotFoundError(f"there is no {path}; splits of {folder}: {', '.join(splits) or 'none'}")
    lines = filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines()))
    return [line if line in annotated else FLAG.sub("", line) for line in lines]


def parse(path: Path) -> ElementTree.Element:
    """Parse an XML file; raise ValueError, which names the file, if that fails."""
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        raise ValueError(f"{path} is not XML: {error}") from None


def text(element: ElementTree.Element, name: str, path: Path) -> str:
    """Return the text of a child; raise ValueError if there is none."""
    content = element.findtext(name)
    if content is None:
        raise ValueError(f"{path} has no <{name.replace('/', '><')}>: it is not a VOC annotation")
    return content.strip()


def number(element: ElementTree.Element, name: str, path: Path) -> float:
    """Return the number in a child; raise ValueError if there is none."""
    digits = text(element, name, path)
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} has {digits!r} in <{name.replace('/', '><')}>, where a number of pixels is needed")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metamix.detection.voc", description=__doc__.splitlines()[0])
    parser.add_argument("voc_dir", type=Path, help="folder with Annotations/ and JPEGImages/")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--split", help="a list in ImageSets/Main, such as train (default: all images)")
    options = parser.parse_args(argv)
    if options.out.is_dir():
        parser.error(f"{options.out} is a folder; give a file to write, {options.out / 'instances_train.json'}")
    try:
        data = convert(options.voc_dir, options.split)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(data))
    except (ValueError, OSError) as error:
        parser.error(message(error))
    counts = ", ".join(f"{len(data[key])} {key}" for key in ("images", "annotations", "categories"))
    print(message(f"{options.out}: {counts}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
