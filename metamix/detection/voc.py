"""Annotations of Pascal VOC as one file in COCO's format.

    python -m metamix.detection.voc VOC_DIR OUT.json [--split train]

VOC_DIR holds Annotations/*.xml and JPEGImages/, as a VOC year does; `--split` takes the images that
ImageSets/Main/<split>.txt lists, all of them otherwise. Written to DATA/annotations/instances_<split>.json, with VOC's
images in DATA/images/, it is a data set of metamix.detection.

VOC counts pixels from 1 and both corners belong to the box: x = xmin - 1, width = xmax - xmin + 1. Difficult objects,
which VOC's own scores leave out, become crowds, which COCO's leave out. Classes are numbered in alphabetical order, so
that all splits agree, from all annotations of the folder.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree


def convert(folder: Path, split: str | None = None) -> dict:
    """The content of the file; ValueError or FileNotFoundError names what is missing."""
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise FileNotFoundError(
            f"{folder / 'Annotations'} holds no .xml file: give the folder of a VOC year, such as VOCdevkit/VOC2012"
        )
    trees = {path.stem: parse(path) for path in files}
    names = sorted({text(o, "name", path) for path in files for o in trees[path.stem].iter("object")})
    classes = {name: number for number, name in enumerate(names, start=1)}
    chosen = list(trees)
    if split is not None:
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            known = sorted(path.stem for path in listing.parent.glob("*.txt") if "_" not in path.stem)
            raise FileNotFoundError(f"there is no {listing}; splits of {folder}: {', '.join(known) or 'none'}")
        chosen = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    images, annotations = [], []
    for stem in chosen:
        path = folder / "Annotations" / f"{stem}.xml"
        if stem not in trees:
            raise FileNotFoundError(f"{split}.txt lists {stem}, but there is no {path}")
        size = {side: round(number(trees[stem], f"size/{side}", path)) for side in ("width", "height")}
        images.append({"id": len(images) + 1, "file_name": text(trees[stem], "filename", path)} | size)
        for obj in trees[stem].iter("object"):
            x0, y0, x1, y1 = (number(obj, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
            box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": classes[text(obj, "name", path)],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(obj.findtext("difficult", "0").strip() == "1"),
                }
            )
    categories = [{"id": number, "name": name} for name, number in classes.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from None


def text(element: ElementTree.Element, name: str, path: Path) -> str:
    found = element.findtext(name)
    if found is None:
        raise ValueError(f"{path} has no <{name.replace('/', '><')}>: it is no annotation of VOC")
    return found.strip()


def number(element: ElementTree.Element, name: str, path: Path) -> float:
    found = text(element, name, path)
    try:
        value = float(found)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} has {found!r} in <{name.replace('/', '><')}>, where a number of pixels is needed")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metamix.detection.voc", description=__doc__.splitlines()[0])
    parser.add_argument("voc_dir", type=Path, help="folder with Annotations/ and JPEGImages/")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--split", help="name of a list in ImageSets/Main, such as train; none: all images")
    options = parser.parse_args(argv)
    if options.out.is_dir():
        parser.error(f"{options.out} is a folder; give a file to write, {options.out / 'instances_train.json'}")
    try:
        data = convert(options.voc_dir, options.split)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(data))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{options.out}: " + ", ".join(f"{len(data[key])} {key}" for key in ("images", "annotations", "categories")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
