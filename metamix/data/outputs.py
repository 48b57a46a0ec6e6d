"""Name and write the files that predictions of images are saved to."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metamix.utils.checks import DoesNotFit
from metamix.utils.files import make_output_folder, write_text
from metamix.utils.text import printable

from .files import CorruptImage


def change_extensions(names: Mapping[Path, Path], extension: Callable[[Path], str]) -> dict[Path, Path]:
    """Give the relative paths of images, from `find.paths_inside`, the extension that `extension(path)` returns.

    If two would become one, append it instead: a.jpg.png and a.png.png.
    """
    changed = {path: name.with_suffix(extension(path)) for path, name in names.items()}
    times = Counter(changed.values())
    return {path: new if times[new] == 1 else Path(f"{names[path]}{extension(path)}") for path, new in changed.items()}


def check_outputs(outputs: Mapping[Path, Path], marker: Path) -> None:
    """Check that writing the outputs of images destroys no file.

    Args:
        outputs: for each image, the file that it is written to.
        marker: file that each run writes first. If it is missing, existing files belong to the user.

    Raises:
        ValueError: two images have one output, or an output would overwrite one of the images or a file of the user.
    """
    images: dict[Path, Path] = {}
    for path, file in outputs.items():
        if file in images:
            raise ValueError(f"{path} and {images[file]} would both be written to {file}: give each its own --output")
        images[file] = path
    read = {path.resolve() for path in outputs}
    for file in images:
        if file.resolve() in read:
            raise ValueError(f"{file} is an image and would be overwritten: give another --output")
        if file.exists() and not marker.exists():
            raise ValueError(f"{file} exists, and no earlier run wrote it: there is no {marker}. Give another --output")
        if link := next((path for path in (marker, file) if path.is_symlink()), None):
            raise ValueError(f"{link} is a link to a file that would be replaced: give another --output")


def predict_images(
    images: Mapping[Path, Path], predict: Callable[[Path, Path], Mapping[str, Any]], records: Path
) -> int:
    """Predict images one after the other; return their number.

    Images that cannot be read or do not fit the model are named and left out.

    Args:
        images: for each image, the file that its prediction is written to.
        predict: reads an image, writes its file, and returns the entries of its record.
        records: JSON file with a record for each image. It is made at the start, since it marks the outputs beside it
            as ours, see `check_outputs`. The records are written at the end, also after an error or Ctrl-C.
    """
    make_output_folder(records.parent)
    if not records.exists():
        write_text(records, "[]\n")
    done: list[dict[str, Any]] = []
    try:
        for path, file in tqdm(images.items(), unit="img", leave=False, disable=None):
            try:
                done.append({"image": str(path)} | dict(predict(path, file)))
            except (CorruptImage, DoesNotFit) as error:
                name = "" if str(path) in str(error) else f"{path}: "
                print(printable(f"left out: {name}{error}"), file=sys.stderr)
    finally:
        write_text(records, json.dumps(done, indent=2) + "\n")
    return len(done)
