"""Predict the class of each pixel of images of any size, in overlapping tiles if a side is longer than --tile."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from metamix.data.files import read_pixels
from metamix.tasks.predict import PredictToFolder, predict_images
from metamix.utils.files import atomic_write, make_output_folder, write_text
from metamix.utils.options import option
from metamix.utils.text import plural, printable

from .labels import colours_of, index_image, read_classes
from .load import TrainedSegmenter
from .pictures import overlay

MASKS, OVERLAYS, CLASSES = "masks", "overlays", "classes.txt"  # names in the output folder


@dataclass
class LabelPixels(PredictToFolder):
    """Predict the class of each pixel of images, and write masks, overlays, classes.txt and predictions.json."""

    folders = MASKS, OVERLAYS

    output: Path = option(Path("predicted"), "folder to write to", metavar="FOLDER")
    flip: bool = option(False, "average the predictions for the image and for its mirror image")
    tile: int = option(1024, "side of the tiles in pixels; 0 predicts whole images at once")
    overlap: int = option(128, "smallest overlap of tiles in pixels", needs="tile")

    def __post_init__(self) -> None:
        masks, records = self.output / MASKS, self.output / self.records_name
        if masks.exists() and not records.exists():
            raise ValueError(f"{masks} was not written by metamix predict: there is no {records}. Give a new --output")
        for place in self.images:
            sets = [path.parent for path in (place / MASKS, *place.glob(f"*/{MASKS}")) if path.is_dir()]
            images = [each / "images" for each in sets if each.resolve() != self.output.resolve()]
            if inputs := shlex.join(sorted(str(folder) for folder in images if folder.is_dir())):
                raise ValueError(f"{place} holds a data set, whose masks would be read as images: give {inputs}")
        super().__post_init__()

    def run(self, trained: TrainedSegmenter) -> int:
        predictor, spec, output = trained.predictor(self.tile, self.overlap, self.flip), trained.spec, self.output
        make_output_folder(output)
        if (output / CLASSES).exists() and read_classes(output / CLASSES) != spec.classes:
            raise ValueError(f"{output / CLASSES} names classes that differ from the model's: give another --output")
        write_text(output / CLASSES, "\n".join(spec.classes) + "\n")
        colours = colours_of(len(spec.classes), spec.palette)

        def label(path: Path, name: Path) -> dict[str, Any]:
            image = read_pixels(path)
            labels = trained.label(image, predictor)
            save(output / MASKS / name, index_image(labels, colours))
            save(output / OVERLAYS / name, Image.fromarray(overlay(image, labels, colours)))
            shares = labels.flatten().bincount(minlength=len(spec.classes)) / labels.numel()
            rows = zip(spec.classes, shares.tolist(), colours.tolist())
            classes = [
                {"class": each, "share": round(share, 4), "colour": f"#{bytes(colour).hex()}"}
                for each, share, colour in rows
                if share
            ]
            return {"mask": (Path(MASKS) / name).as_posix(), "classes": classes}

        labelled = predict_images(self.names, label, self.records)
        print(printable(f"written: masks and overlays of {plural(labelled, 'image')} to {output}"))
        return len(self.names) - labelled


def save(path: Path, image: Image.Image) -> None:
    """Write an image as PNG."""
    make_output_folder(path.parent)
    with atomic_write(path) as file:
        image.save(file, "PNG")
