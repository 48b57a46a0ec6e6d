"""Find objects in images.

    metamix predict IMAGE_OR_FOLDER... --checkpoint RUN

RUN is the folder of a detection run, or a weight file in it. A folder means all images in it, at any depth. Each image
is drawn with its boxes to OUTPUT/<name>.png, where the name is the path inside the given folder.
OUTPUT/predictions.json lists the path, width and height of each image and its objects, the highest score first: class,
score and box (x1, y1, x2, y2 in pixels of the upright image). Images that cannot be read, or that an exported model
does not take, are named and left out; the exit code is then 1.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from metamix.data import decode_file
from metamix.data.find import paths_inside
from metamix.data.outputs import change_extensions, check_outputs, predict_images
from metamix.utils.arguments import add_device, add_places, share
from metamix.utils.system import prepare_device
from metamix.utils.text import exit_with_message, plural, printable

from .load import load_detector
from .pictures import Objects, draw_image

RECORDS = "predictions.json"  # in the output folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix predict` for detection.

    Returns:
        1 if an image was left out, else 0.
    """
    options = make_parser().parse_args(argv)
    with exit_with_message(ValueError, OSError):
        pictures = name_pictures(options.places, options.output)
        found = load_detector(options.checkpoint)
        found.model.to(prepare_device(options.device))
        return draw_all(found.model, found.spec.classes, pictures, options.output, options.threshold)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog="metamix predict", description="Find objects in images.", allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="run folder or weight file")
    add_options(parser)
    add_device(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the images, where they are drawn to, and which objects."""
    add_places(parser, "predictions")
    parser.add_argument("--threshold", type=share, default=0.5, help="least score of an object (default: 0.5)")


@torch.no_grad()
def predict(model: nn.Module, path: Path, threshold: float) -> tuple[Tensor, Objects]:
    """Find the objects in an image.

    Args:
        model: a detector, on any device.
        threshold: least score of an object.

    Returns:
        The image, (3, H, W) uint8, and "boxes" (n, 4), "labels" (n,) and "scores" (n,) of its objects.

    Raises:
        CorruptImage: the image cannot be read.
    """
    image = F.pil_to_tensor(decode_file(path))
    (found,) = model.eval()([image.to(next(model.parameters()).device) / 255])
    sure = (found["scores"] >= threshold) & (found["labels"] > 0)
    return image, {key: value[sure].cpu() for key, value in found.items()}


def draw_all(
    model: nn.Module, classes: Sequence[str], pictures: Mapping[Path, Path], output: Path, threshold: float
) -> int:
    """Find the objects in images, draw them, and write predictions.json.

    Args:
        model: called like a detector of torchvision, on any device. A higher threshold of its own is lowered.
        classes: names of the labels 1, 2, ...
        pictures: the picture that each image is drawn to.
        output: folder to write predictions.json to.
        threshold: least score of an object.

    Returns:
        1 if an image was left out, else 0.
    """
    head: Any = getattr(model, "roi_heads", model)  # which the R-CNNs have
    head.score_thresh = min(head.score_thresh, threshold)

    def draw(path: Path, picture: Path) -> dict[str, Any]:
        image, found = predict(model, path, threshold)
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_image(picture, image, found, classes)
        objects = describe_objects(found, classes)
        tqdm.write(printable(f"{path}: {plural(len(objects), 'object')}"))
        return {"width": image.shape[2], "height": image.shape[1], "objects": objects}

    drawn = predict_images(pictures, draw, output / RECORDS)
    print(printable(f"written: {output / RECORDS} and {plural(drawn, 'picture')}"))
    return 1 if drawn < len(pictures) else 0


def name_pictures(places: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the picture that each image is drawn to.

    Pictures of an earlier run are not images to predict, so `output` is left out of the folders that hold it.

    Raises:
        FileNotFoundError: an image is missing, or a folder holds none.
        ValueError: two images would share a picture, or a picture would overwrite another file.
    """
    names = change_extensions(paths_inside(places, without=[output]), lambda path: ".png")
    pictures = {path: output / name for path, name in names.items()}
    check_outputs(pictures, marker=output / RECORDS)
    return pictures


def describe_objects(found: Objects, classes: Sequence[str]) -> list[dict]:
    """Return class, score and box of each object, as plain values."""
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    return [
        {"class": classes[label - 1], "score": round(score, 4), "box": [round(value, 1) for value in box]}
        for label, score, box in rows
    ]
