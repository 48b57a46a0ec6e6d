"""Read images and their masks, in which each value or colour is a class, to make a data set for training."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metamix.data.files import read_header, read_image_file
from metamix.data.pairs import find_files, match_files
from metamix.tasks.convert import LabelledImages, Sample
from metamix.utils.files import read_text, write_text
from metamix.utils.text import plural

from .labels import (
    IGNORED,
    MAX_CLASSES,
    Colour,
    Palette,
    colours_of,
    index_image,
    open_mask,
    read_classes,
    read_palette,
)

SAME_SHAPE = 0.01  # a mask is resized to its image if their aspect ratios differ by at most this share
MOST_VALUES = 64  # if no file names the classes, masks with more values are refused: they seem to have soft edges
COLOUR = 1 << 24  # a pixel is a number: its grey value or index, or COLOUR | red << 16 | green << 8 | blue


class Masks(LabelledImages):
    """Images with masks. The label of a sample is a pair: the (height, width) of the image, and an argument for `draw`.

    `draw` returns the labels of the mask, (H, W) uint8.
    """

    def __init__(self, classes: Sequence[str], draw: Callable[[Any], np.ndarray], palette: Palette | None = None):
        super().__init__(("--config", "finetune/tiny_segmentation"))
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"there are {len(classes)} classes, but a mask can show {MAX_CLASSES} at most")
        self.classes, self.draw, self.palette = classes, draw, palette

    def add(self, split: str, name: str, file: Path, mask_size: tuple[int, int], mask: Any) -> None:
        """Add an image; leave it out with a note if `mask_size`, (height, width), has a different aspect ratio."""
        size = height, width = read_header(file).size
        mask_height, mask_width = mask_size
        sizes = f"{file} ({height} x {width}, mask {mask_height} x {mask_width})"
        if abs(height / mask_height - width / mask_width) > SAME_SHAPE * height / mask_height:
            turned = abs(width / mask_height - height / mask_width) <= SAME_SHAPE * width / mask_height
            why = "is not turned like the image (EXIF)" if turned else "has a different shape"
            self.notes[f"images whose mask {why} were left out"].append(sizes)
            return
        if size != mask_size:
            self.notes["masks were resized to their images"].append(sizes)
        label_file = f"masks/{name}.png"
        self.samples.append(Sample(file, f"images/{name}{file.suffix}", split, "", (size, mask), label_file))

    def write(self, folder: Path, splits: Mapping[str, Sequence[Sample]]) -> str:
        """Write masks, class names and, if set, class colours; return a text that counts and lists the classes."""
        write_text(folder / "classes.txt", "\n".join(self.classes) + "\n")
        if self.palette:
            write_text(folder / "palette.txt", "".join(f"{r} {g} {b}\n" for r, g, b in self.palette))
        colours = colours_of(len(self.classes), self.palette)
        for split, samples in splits.items():
            for sample in samples:
                (height, width), mask = sample.label
                file = folder / split / sample.label_file
                file.parent.mkdir(parents=True, exist_ok=True)
                image = index_image(torch.from_numpy(self.draw(mask)), colours)
                image.resize((width, height), Image.Resampling.NEAREST).save(file)
        return f"{len(self.classes)} classes: {', '.join(self.classes)}"


def read_masks(source: Path) -> Masks:
    """Read images and their masks, in which each value or colour is a class.

    The names come from classes.txt (the colours from palette.txt), CVAT's labelmap.txt or Roboflow's _classes.csv.
    Without such a file, `name_values` names the classes.
    """
    images, masks = find_files(source)
    pairs = match_files(images, masks)
    if not pairs:
        counts = f"{plural(len(images), 'image')} and {plural(len(masks), 'mask')}"
        names = " and ".join(path.name for files in (images, masks) for path in list(files.values())[:1])
        raise ValueError(
            f"{source} has {counts}{names and ', such as '}{names}, but no mask has the name of an image: put the "
            f"masks into a folder named masks, labels or annotations, or let their names end in _mask; merge several "
            f"masks of one image into one"
        )
    values = np.unique(np.concatenate([np.unique(read_values(mask)) for mask in pairs]))
    classes, palette, table = number_values(source, values.tolist())
    if palette or not (source / "classes.txt").is_file():
        check_palettes(pairs)
    lookup = np.array([table[value] for value in values.tolist()], dtype=np.uint8)
    labels = Masks(classes, lambda mask: lookup[np.searchsorted(values, read_values(mask))], palette)
    if 255 in values and table[255] == IGNORED and not (source / "classes.txt").is_file():
        advice = "to make it a class, list all classes in classes.txt and their values in palette.txt (255 255 255)"
        labels.notes[f"the value 255 is ignored; {advice}"].append(str(source))
    for mask, (split, name, image) in pairs.items():
        labels.add(split, name, image, read_header(mask).size, mask)
    labels.note_rest("mask", images, masks, pairs)
    return labels


def read_values(path: Path) -> np.ndarray:
    """Return the grey value, index or colour of each pixel of a mask as a number, (H, W) int32; see `COLOUR`."""
    image = open_mask(path)
    if image.mode == "RGB":
        return number_colours(np.array(image))
    values = np.array(image, dtype=np.int32)
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError(f"{path} has values from {values.min():,} to {values.max():,}, but masks may have 0 to 65,535")
    return values


def number_colours(colours: np.ndarray) -> np.ndarray:
    """Convert colours (..., 3) to numbers (...) int32; see `COLOUR`."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return np.where((red == green) & (green == blue), red, COLOUR | red << 16 | green << 8 | blue)


def check_palettes(masks: Iterable[Path]) -> None:
    """Raise ValueError if a value has different colours in the palettes of two masks."""
    colours: dict[int, tuple[list[int], Path]] = {}
    for mask in masks:
        image = read_image_file(mask)
        palette = image.getpalette("RGB") or []  # masks without a palette are not decoded
        for value in np.unique(np.array(image)).tolist() if palette else ():
            colour = palette[3 * value : 3 * value + 3]
            first, other = colours.setdefault(value, (colour, mask))
            if colour != first:
                raise ValueError(f"{other} and {mask} show the value {value} in different colours: save masks in RGB")


def number_values(source: Path, values: Sequence[int]) -> tuple[list[str], Palette | None, dict[int, int]]:
    """Return the names of the classes, their colours if masks are in colour, and the label of each value.

    If no file names the classes, each value is a class, but 255 may be ignored; see `name_values`. Otherwise
    `read_names` gives the values or colours, but masks of two classes may also have the values 0 and 255.
    """
    names, order, palette = read_names(source)
    colours = number_colours(np.array(palette)).tolist() if palette else []
    in_colour = values[-1] >= COLOUR
    if not names:
        names, order = name_values(source, values)
        palette = tuple(map(colour_of, order)) if in_colour else None
    elif in_colour or set(values) <= set(colours):
        order = colours
    else:
        order, palette = values if len(names) == 2 and values == [0, 255] else order, None
    table = {} if palette else {255: IGNORED}
    table |= {value: label if label < len(names) else IGNORED for label, value in enumerate(order)}
    if unknown := [value for value in values if value not in table]:
        raise ValueError(
            f"the masks in {source} have the {describe(unknown[0])}, which is not in the list of classes: add it "
            f"there, or remove the list, so that each value becomes a class"
        )
    return names, palette, table


def name_values(source: Path, values: Sequence[int]) -> tuple[list[str], Sequence[int]]:
    """Return a name for each value that is a class, and these values.

    In masks that are not in colour, 255 is ignored if there are two or more other values, unless the values are about
    evenly spaced, as in 0, 127, 255.
    """
    order = [value for value in values if value != 255]
    if len(order) < 2 or values[-1] >= COLOUR or max(np.diff(values)) <= 2 * min(np.diff(values)):
        order = [*values]
    if not 2 <= len(order) <= MOST_VALUES:
        raise ValueError(
            f"the masks in {source} have {plural(len(order), 'value')}, but each value is a class, and there must "
            f"be 2 to {MOST_VALUES}: save masks as PNGs without soft edges, or name the classes in "
            f"{source / 'classes.txt'}"
        )
    names = [describe(value) if value else "background" for value in order]
    return ["background", "object"] if len(names) == 2 and not order[0] else names, order


def describe(value: int) -> str:
    """Name a value or a colour, as "value 7" or "colour 255 0 0"."""
    return f"colour {' '.join(map(str, colour_of(value)))}" if value >= COLOUR else f"value {value}"


def colour_of(value: int) -> Colour:
    """Return the colour (red, green, blue) of a number; see `COLOUR`."""
    return (value >> 16 & 255, value >> 8 & 255, value & 255) if value >= COLOUR else (value, value, value)


def read_names(source: Path) -> tuple[list[str], Sequence[int], Palette | None]:
    """Read the names, numbers and colours of the classes from a file in `source`.

    Return ([], [], None) if there is no such file; the colours are None if the file has none. Raise ValueError if a
    line of labelmap.txt has no name or no colour.
    """
    names: list[str] = []
    if (file := source / "classes.txt").is_file():
        names = list(read_classes(file))
        return names, range(len(names)), read_palette(source / "palette.txt")
    if (file := source / "labelmap.txt").is_file():  # CVAT: name:red,green,blue:parts:actions
        colours = []
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if match := re.match(r"([^#:]+):(\d+),(\d+),(\d+)(:|$)", line):
                names.append(match[1])
                colours.append((int(match[2]), int(match[3]), int(match[4])))
            elif line.strip() and not line.startswith("#"):
                raise ValueError(f"{file}, line {number}, is {line.strip()!r}: write it as NAME:RED,GREEN,BLUE::")
        return names, range(len(names)), tuple(colours) or None
    numbers = []
    for file in sorted(source.rglob("_classes.csv"))[:1]:  # Roboflow: number, name
        for line in read_text(file).splitlines():
            if match := re.match(r"(\d+)\s*,\s*(\S.*)", line):
                numbers.append(int(match[1]))
                names.append(match[2].strip())
    return names, numbers, None
