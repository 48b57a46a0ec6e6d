"""Label images with a trained classifier.

    metamix predict IMAGE_OR_FOLDER... --checkpoint RUN_OR_FILE

A folder means all images in it, at any depth. The labels of each image are printed with their probabilities, as a
table, CSV or JSON. Images that cannot be read are named and left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from metamix.data import CorruptImage, decode_file
from metamix.data.find import find_images
from metamix.data.formats.base import is_image
from metamix.utils.arguments import add_device, positive
from metamix.utils.checks import check_finite
from metamix.utils.files import make_output_folder, write_text
from metamix.utils.system import prepare_device
from metamix.utils.text import csv_text, exit_with_message, plural, printable

from .load import Classifier, load_classifier


@dataclass(frozen=True)
class Prediction:
    """The most probable labels of an image, the most probable first."""

    image: Path
    labels: list[tuple[str, float]]  # name and probability


def main(argv: Sequence[str] | None = None) -> int:
    """Run `metamix predict` for classification.

    Returns:
        1 if an image cannot be read, else 0.
    """
    options = make_parser().parse_args(argv)
    with exit_with_message(ValueError, OSError):
        images = find_images(options.images)
        device = prepare_device(options.device)
        classifier = load_classifier(options.checkpoint, model=options.model)
        classifier.model.to(device)
        return label(classifier, images, options)


def label(classifier: Classifier, images: Sequence[Path], options: argparse.Namespace) -> int:
    """Label images and print or write the labels as the options of `add_options` say.

    Returns:
        1 if an image cannot be read, else 0.

    Raises:
        ValueError: the output is an image, or its name does not say its format.
        OSError: the output cannot be written.
    """
    form = options.format or "table"
    if options.output:  # before labelling, which may take long
        form = choose_format(options.output, options.format, images)
        make_output_folder(options.output.parent)
    broken: list[str] = []
    predictions = predict(classifier, images, top=options.top, batch_size=options.batch_size, broken=broken)
    found = list(tqdm(predictions, total=len(images), unit="img", leave=False, disable=None))
    text = FORMATS[form](found)
    if options.output:
        write_text(options.output, text)
        print(printable(f"written: {options.output}, {plural(len(found), 'image')}"))
    else:
        sys.stdout.write(printable(text))
    for reason in broken:
        print(printable(f"left out: {reason}"), file=sys.stderr)
    return 1 if broken else 0


def choose_format(output: Path, form: str | None, images: Sequence[Path]) -> str:
    """Return the format of the output: `form`, or what its extension says.

    Raises:
        ValueError: the output is an image, or its extension is unknown.
        IsADirectoryError: it is a folder.
    """
    if output.is_dir():
        raise IsADirectoryError(f"--output {output} is a folder: give a file")
    if output.resolve() in {path.resolve() for path in images}:
        raise ValueError(f"{output} is an image and would be overwritten: give another --output")
    if is_image(output.name):
        raise ValueError(
            f"--output {output} is named like an image, but labels are text: give a .csv, .json or .txt file"
        )
    found = form or EXTENSIONS.get(output.suffix.lower())
    if found is None:
        raise ValueError(f"--output {output} has no known extension: give a .csv, .json or .txt file, or --format too")
    return found


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="metamix predict", description="Label images with a trained classifier.", allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="run folder, weight file, or name of shipped weights")
    parser.add_argument("--model", help="model of a weight file that does not name it")
    add_device(parser)
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the images, and how their labels are written."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--top", type=positive, default=5, help="labels for each image (default: 5)")
    parser.add_argument("--format", choices=list(FORMATS), help="table, csv or json (default: by --output, or table)")
    parser.add_argument("--output", type=_file, help="file to write to (default: print)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per forward pass (default: 64)")


def _file(text: str) -> Path:
    if text.endswith("/"):  # which Path drops
        raise argparse.ArgumentTypeError(f"{text} is a folder: give a file")
    return Path(text)


@torch.inference_mode()
def predict(
    classifier: Classifier,
    images: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 64,
    broken: list[str] | None = None,
) -> Iterator[Prediction]:
    """Yield the labels of images, in order. Images that cannot be read are left out.

    Args:
        top: number of labels for each image.
        batch_size: images per forward pass.
        broken: a list that the reasons why images cannot be read are added to.
    """
    device = next(classifier.model.parameters()).device
    decoded = _read(classifier, images, [] if broken is None else broken)
    while batch := list(islice(decoded, batch_size)):
        paths, tensors = zip(*batch)
        logits = check_finite(classifier.model(torch.stack(tensors).to(device)))
        probabilities = logits.float().softmax(1).cpu()  # (n, classes)
        best = probabilities.topk(min(top, len(classifier.classes)))
        for path, values, indices in zip(paths, best.values.tolist(), best.indices.tolist()):
            yield Prediction(path, [(classifier.classes[i], value) for i, value in zip(indices, values)])


def _read(classifier: Classifier, images: Sequence[Path], broken: list[str]) -> Iterator[tuple[Path, torch.Tensor]]:
    for path in images:
        try:
            image = decode_file(path, classifier.transform.mode)
        except CorruptImage as error:
            broken.append(str(error))
            continue
        yield path, classifier.transform(image)


def as_table(predictions: Sequence[Prediction]) -> str:
    """Format one line for each image: its path, then labels with their probabilities in percent."""
    width = max((len(str(prediction.image)) for prediction in predictions), default=0)
    lines = []
    for prediction in predictions:
        labels = "   ".join(f"{label} {100 * probability:.1f} %" for label, probability in prediction.labels)
        lines.append(f"{prediction.image!s:<{width}}   {labels}\n")
    return "".join(lines)


def as_csv(predictions: Sequence[Prediction]) -> str:
    """Format one row for each image and label: image, rank, label, probability."""
    rows = [
        (prediction.image, rank, label, f"{probability:.6f}")
        for prediction in predictions
        for rank, (label, probability) in enumerate(prediction.labels, 1)
    ]
    return csv_text([("image", "rank", "label", "probability"), *rows])


def as_json(predictions: Sequence[Prediction]) -> str:
    """Format a list of images with their labels and probabilities."""
    records = [
        {
            "image": str(prediction.image),
            "labels": [{"label": label, "probability": round(value, 6)} for label, value in prediction.labels],
        }
        for prediction in predictions
    ]
    return json.dumps(records, indent=2) + "\n"


FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}
EXTENSIONS = {"": "table", ".txt": "table", ".csv": "csv", ".json": "json"}
