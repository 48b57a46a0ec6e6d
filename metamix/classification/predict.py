"""Label images with a trained classifier: print the labels and their probabilities as a table, CSV or JSON."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from metamix.data import CorruptImage
from metamix.data.find import paths_inside
from metamix.data.formats.base import is_image
from metamix.deploy.artifact import REPORT
from metamix.tasks.predict import PredictOptions
from metamix.utils.files import LOCK, atomic_write, make_output_folder
from metamix.utils.options import option
from metamix.utils.rules import Count, Share
from metamix.utils.text import aligned, csv_text, plural, printable
from metamix.weights.files import ARTIFACT, RECIPE, SUMMARY

from .load import BATCH_SIZE, Classifier, describe_threshold

# An image and its labels with their probabilities, the most probable first; no labels if none reaches the threshold
Prediction = tuple[Path, list[tuple[str, float]]]


@dataclass
class LabelImages(PredictOptions):
    """Label images, and print the labels or write them to a file."""

    top: Count | None = option(
        None, "labels per image (default: 5 or, for multi-label models, all that reach the threshold)"
    )
    threshold: Share | None = option(
        None,
        "multi-label models: lowest probability of a label; default: the threshold in the weight file, or 0 with --top",
    )
    format: Literal["table", "csv", "json"] | None = option(
        None, "format of the output; default: the extension of --output decides, or a table if there is no --output"
    )
    output: str | None = option(None, "file to write to; by default the labels are printed")
    batch_size: Count = option(BATCH_SIZE, "images per forward pass")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.paths = list(paths_inside(self.images))
        if self.output:
            self.format = choose_format(self.output, self.format, self.paths)

    def run(self, trained: Classifier) -> int:
        if self.output:
            make_output_folder(Path(self.output).parent)
        if self.threshold is None and self.top is None and (note := describe_threshold(trained.metadata.threshold)):
            print(f"note: {note}", file=sys.stderr)
        broken: list[str] = []
        predictions: list[Prediction] = []
        stopped: BaseException | None = None
        # Open the file first: labelling may take long, and a path that cannot be written should fail at once.
        with atomic_write(Path(self.output)) if self.output else nullcontext() as file:
            labelled = self.predict(trained, broken)
            try:
                predictions.extend(tqdm(labelled, total=len(self.paths), unit="img", leave=False, disable=None))
            except BaseException as error:  # such as Ctrl-C: write the labels made so far, then end
                stopped = error
            if not predictions:  # an earlier file stays as it is
                several = f"none of {len(broken)} images can be read; the first error is: " if len(broken) > 1 else ""
                raise stopped or ValueError(several + broken[0])
            text = FORMATS[self.format or "table"](predictions)
            if file:
                file.write(text.encode())  # the formats escape file names that are not UTF-8
        if self.output:
            print(printable(f"written: {self.output}, {plural(len(predictions), 'image')}"))
        else:
            sys.stdout.write(text)
        for reason in broken:
            print(printable(f"left out: {reason}"), file=sys.stderr)
        if stopped:
            raise stopped
        return len(broken)

    def predict(self, trained: Classifier, broken: list[str]) -> Iterator[Prediction]:
        """Yield the labels of the images, in order. Images that cannot be read are left out and named in `broken`."""
        for start in range(0, len(self.paths), self.batch_size):
            tensors: dict[Path, Tensor] = {}
            for path in self.paths[start : start + self.batch_size]:
                try:
                    tensors[path] = trained.transform(path)
                except CorruptImage as error:
                    broken.append(str(error))
            if tensors:
                yield from zip(tensors, trained.label(torch.stack([*tensors.values()]), self.top, self.threshold))


def choose_format(output: str, form: str | None, images: Sequence[Path]) -> Literal["table", "csv", "json"]:
    """Return `form`, or else the format that fits the extension of `output`; reject files that must not be replaced."""
    path = Path(output)
    if path.is_dir() or output.endswith("/"):
        raise IsADirectoryError(f"--output {output} is a folder: give a file")
    if path.resolve() in {image.resolve() for image in images}:
        raise ValueError(f"{output} is an image and would be overwritten: give another --output")
    inside = any((path.parent / name).is_file() for name in (RECIPE, ARTIFACT))
    if inside and path.is_file() and (path.name in KEPT or path.suffix.lower() not in EXTENSIONS):
        raise ValueError(f"{output} belongs to a run or an export and would be overwritten: give another --output")
    if is_image(path.name):
        raise ValueError(f"{path} is named like an image, but labels are text: give a .csv, .json or .txt file")
    chosen = form or EXTENSIONS.get(path.suffix.lower())
    if chosen is None:
        raise ValueError(f"--output {output} has no known extension: give a .csv, .json or .txt file, or add --format")
    return chosen  # type: ignore[return-value]  # a key of FORMATS


def as_table(predictions: Sequence[Prediction]) -> str:
    """Format one line for each image: its path, then labels with their probabilities in percent, or a dash."""
    rows = [
        (image, "   ".join(f"{label} {100 * value:.1f} %" for label, value in labels) or "-")
        for image, labels in predictions
    ]
    return "".join(f"{line}\n" for line in aligned(rows))


def as_csv(predictions: Sequence[Prediction]) -> str:
    """Format one row for each image and label; an image without labels has one row, with an empty label."""
    rows = [
        (image, rank, label, f"{probability:.6f}")
        for image, labels in predictions
        for rank, (label, probability) in enumerate(labels or [("", 0.0)], 1)
    ]
    return csv_text([("image", "rank", "label", "probability"), *rows])


def as_json(predictions: Sequence[Prediction]) -> str:
    """Format a list of images with their labels and probabilities."""
    records = [
        {"image": str(image), "labels": [{"label": label, "probability": round(p, 6)} for label, p in labels]}
        for image, labels in predictions
    ]
    return json.dumps(records, indent=2) + "\n"


FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}
EXTENSIONS = {"": "table", ".txt": "table", ".csv": "csv", ".json": "json"}
KEPT = {LOCK, SUMMARY, ARTIFACT, REPORT, "log.txt", "metrics.csv", "state.txt"}  # files of runs and exports
KEPT |= {"test_confusion.csv", "test_scores.csv", "test_scores.json"}  # of other tasks
