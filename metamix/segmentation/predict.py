"""Label the pixels of images.

    metamix predict IMAGE_OR_FOLDER... --checkpoint RUN --output predicted

RUN is the folder of a segmentation run, or a weight file in it. A folder stands for all images in it, at any depth.
Images have any size; those with a side above --tile are predicted in overlapping tiles. For each image, two files get
its path inside the folder that was given (a.jpg.png if there is an a.png too):

    OUTPUT/masks/a.png       labels 0, 1, ... in the order of the classes, as a PNG with the colours of the classes
    OUTPUT/overlays/a.png    these colours over the image

OUTPUT/classes.txt names the labels. Images that cannot be read, or that an exported model does not take, are named and
left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from metamix.data import normalize
from metamix.data.find import paths_inside
from metamix.data.outputs import change_extensions, check_outputs, predict_images
from metamix.layers.tiles import check_tiles
from metamix.utils.arguments import add_device, add_places
from metamix.utils.files import atomic_write, make_output_folder, write_text
from metamix.utils.system import prepare_device
from metamix.utils.text import exit_with_message, plural, printable

from .data import read_image
from .inference import Predictor, make_views
from .labels import colours_of, index_image, read_classes
from .load import SegmenterSpec, check_tile, load_segmenter
from .pictures import overlay
from .transforms import resized_size

MOST_BYTES = 2**31  # of logits that are held at once
MASKS, OVERLAYS, CLASSES, RECORDS = "masks", "overlays", "classes.txt", "predictions.json"  # in the output folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix predict` for segmentation.

    Returns:
        1 if an image was left out, else 0.
    """
    options = make_parser().parse_args(argv)
    with exit_with_message(ValueError, OSError):
        check_tiles(options.tile, options.overlap)
        names = name_outputs(options.places, options.output)
        found = load_segmenter(options.checkpoint)
        check_tile(found.model, found.spec.model, options.tile)
        device = prepare_device(options.device)
        found.model.to(device)
        predictor = Predictor(options.tile, options.overlap, make_views((1.0,), options.flip))
        return predict_all(found.model, found.spec, names, options.output, predictor)


def predict_all(
    model: nn.Module, spec: SegmenterSpec, names: Mapping[Path, Path], output: Path, predictor: Predictor
) -> int:
    """Label the pixels of images, and write masks, overlays, classes.txt and predictions.json.

    Args:
        model: a segmenter in evaluation mode, on any device.
        spec: how images go into it, and its classes.
        names: for each image, where it is written to inside the folders of masks and of overlays.
        output: the folder of these folders.
        predictor: how the model is applied.

    Returns:
        1 if an image was left out, else 0.

    Raises:
        ValueError: the folder has masks, or a data set, of other classes.
    """
    make_output_folder(output)
    if (output / CLASSES).exists() and read_classes(output / CLASSES) != spec.classes:
        raise ValueError(f"{output / CLASSES} names other classes than the model's: give another --output")
    write_text(output / CLASSES, "\n".join(spec.classes) + "\n")
    colours = colours_of(len(spec.classes), spec.palette)

    def label(path: Path, name: Path) -> dict[str, str]:
        image = read_image(path)
        labels = predict(model, spec, image, predictor)
        save(output / MASKS / name, index_image(labels, colours))
        save(output / OVERLAYS / name, Image.fromarray(overlay(image, labels, colours)))
        return {"mask": (Path(MASKS) / name).as_posix()}

    labelled = predict_images(names, label, output / RECORDS)
    print(printable(f"written: masks and overlays of {plural(labelled, 'image')} to {output}"))
    return 1 if labelled < len(names) else 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="metamix predict", description="Label the pixels of images.", allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="run folder or weight file")
    add_options(parser)
    parser.add_argument(
        "--tile", type=int, default=1024, help="side of the tiles in pixels; 0: whole images at once (default: 1024)"
    )
    parser.add_argument("--overlap", type=int, default=128, help="least overlap of tiles in pixels (default: 128)")
    add_device(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the images, where their labels are written, and the views of an image."""
    add_places(parser, "predicted")
    parser.add_argument("--flip", action="store_true", help="mean over the image and its mirror image")


def predict(model: nn.Module, spec: SegmenterSpec, image: Tensor, predictor: Predictor) -> Tensor:
    """Label the pixels of an image.

    An image in tiles whose logits would take more than 2 GiB is predicted in blocks.

    Args:
        model: a segmenter in evaluation mode, on any device.
        spec: how images go into it.
        image: (3, H, W) uint8, of any size.
        predictor: how the model is applied.

    Returns:
        Labels (H, W) uint8, on the CPU.
    """
    device = next(model.parameters()).device
    size = image.shape[-2], image.shape[-1]
    resized = resized_size(size, spec.min_size, spec.max_size)
    small = image if resized == size else F.resize_image(image, list(resized), antialias=True)
    normalized = normalize(small[None].to(device), spec.mean, spec.std)
    side = max(2 * predictor.tile, math.isqrt(MOST_BYTES // (4 * len(spec.classes))))
    if predictor.tile and resized == size and max(size) > side:
        return predict_blocks(model, normalized, predictor, side)
    return predictor(model, normalized, size).cpu()


def predict_blocks(model: nn.Module, image: Tensor, predictor: Predictor, side: int) -> Tensor:
    """Label an image (1, 3, H, W) in blocks of `side` pixels, each with a tile's width of the image around it."""
    height, width = image.shape[-2:]
    labels, margin = torch.zeros(height, width, dtype=torch.uint8), predictor.tile
    for top, left in product(range(0, height, side), range(0, width, side)):
        above, before = min(top, margin), min(left, margin)
        block = image[..., top - above : top + side + margin, left - before : left + side + margin]
        found = predictor(model, block, (block.shape[-2], block.shape[-1])).cpu()
        labels[top : top + side, left : left + side] = found[above : above + side, before : before + side]
    return labels


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
    found = paths_inside(places, without=[output / MASKS, output / OVERLAYS])
    names = change_extensions(found, lambda path: ".png")
    for folder in (MASKS, OVERLAYS):
        check_outputs({path: output / folder / name for path, name in names.items()}, marker=output / RECORDS)
    return names


def save(path: Path, image: Image.Image) -> None:
    """Write an image as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        image.save(file, "PNG")
