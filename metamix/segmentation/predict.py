"""Label the pixels of images.

    metamix predict IMAGE_OR_FOLDER... --checkpoint RUN --output predicted

A folder means all images in it, at any depth. Images have any size; those with a side above --tile are predicted in
overlapping tiles. For each image, two files get its path inside the folder that was given (a.jpg.png if there is an
a.png too):

    OUTPUT/masks/a.png       labels 0, 1, ... in the order of the classes, as a PNG with the colours of the classes
    OUTPUT/overlays/a.png    these colours over the image

OUTPUT/classes.txt names the labels. Images that cannot be read, or that an exported model does not take, are named and
left out; the exit code is then 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from metamix.data.files import read_pixels
from metamix.data.find import paths_inside
from metamix.data.outputs import change_extensions, check_outputs, predict_images
from metamix.layers.tiles import check_tiles
from metamix.tasks.predict import PredictOptions
from metamix.utils.files import atomic_write, make_output_folder, write_text
from metamix.utils.options import option
from metamix.utils.text import plural, printable

from .labels import colours_of, index_image, read_classes
from .load import TrainedSegmenter
from .pictures import overlay

MASKS, OVERLAYS, CLASSES, RECORDS = "masks", "overlays", "classes.txt", "predictions.json"  # in the output folder


@dataclass
class LabelPixels(PredictOptions):
    """Label the pixels of images, and write masks, overlays, classes.txt and predictions.json.

    Raises:
        ValueError: the tiles do not fit, or the folder has masks, or a data set, of other classes.
        OSError: an image is missing, or the folder cannot be written to.
    """

    output: Path = option(Path("predicted"), "folder to write to", metavar="FOLDER")
    flip: bool = option(False, "mean over the image and its mirror image")
    tile: int = option(1024, "side of the tiles in pixels; 0: whole images at once")
    overlap: int = option(128, "least overlap of tiles in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tiles(self.tile, self.overlap)
        self.names = name_outputs(self.images, self.output)

    def run(self, trained: TrainedSegmenter) -> int:
        predictor, spec, output = trained.predictor(self.tile, self.overlap, self.flip), trained.spec, self.output
        make_output_folder(output)
        if (output / CLASSES).exists() and read_classes(output / CLASSES) != spec.classes:
            raise ValueError(f"{output / CLASSES} names other classes than the model's: give another --output")
        write_text(output / CLASSES, "\n".join(spec.classes) + "\n")
        colours = colours_of(len(spec.classes), spec.palette)

        def label(path: Path, name: Path) -> dict[str, str]:
            image = read_pixels(path)
            labels = trained.label(image, predictor)
            save(output / MASKS / name, index_image(labels, colours))
            save(output / OVERLAYS / name, Image.fromarray(overlay(image, labels, colours)))
            return {"mask": (Path(MASKS) / name).as_posix()}

        labelled = predict_images(self.names, label, output / RECORDS)
        print(printable(f"written: masks and overlays of {plural(labelled, 'image')} to {output}"))
        return len(self.names) - labelled


def name_outputs(places: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the path, inside the folders of masks and of overlays, that each image is written to.

    Masks and overlays of an earlier run, where `output` lies in one of the folders, are left out.

    Raises:
        FileNotFoundError: an image is missing, or a folder holds none.
        ValueError: two images would be written to one file, or a file that is not a prediction would be overwritten.
    """
    if (output / MASKS).exists() and not (output / RECORDS).exists():
        raise ValueError(
            f"{output / MASKS} was not written by metamix predict, because there is no {output / RECORDS}: give "
            f"another --output"
        )
    images = paths_inside(places, without=[output / MASKS, output / OVERLAYS])
    names = change_extensions(images, lambda path: ".png")
    for folder in (MASKS, OVERLAYS):
        check_outputs({path: output / folder / name for path, name in names.items()}, marker=output / RECORDS)
    return names


def save(path: Path, image: Image.Image) -> None:
    """Write an image as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        image.save(file, "PNG")
