"""Read images and their masks, in which each value or colour is a class, to make a data set for training."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metamix.data.files import read_header
from metamix.data.find import list_images
from metamix.data.tables import SPLITS
from metamix.tasks.convert import Labels, Sample
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

GREY = 0x010101  # colours are numbers, red << 16 | green << 8 | blue; a grey value times this is its colour
WHITE = 255 * GREY
MASKS = r"(masks?|labels?|annotations?|(ground[-_. ]?)?truth|gt|seg\w*)"
MASK_FOLDER = re.compile(rf"(^|[-_. ]){MASKS}([-_. ]|$)", re.IGNORECASE)
MASK_ENDING = re.compile(rf"[-_. ]{MASKS}$", re.IGNORECASE)
IMAGE_ENDING = re.compile(r"[-_. ](images?|img|photo|rgb|sat)$", re.IGNORECASE)
EXPECTED = "masks lie in a folder named masks, labels, annotations or the like, or their names end in _mask"

SAME_SHAPE = 0.01  # relative difference of the aspect ratios up to which a mask is resized to its image
MOST_VALUES = 64  # more values without names are hardly classes

Files = dict[tuple[str, str], Path]  # by split and name, without extension and ending


class Masks(Labels):
    """Images with masks. The label of a sample is the size of the image, (height, width), and what `draw` takes.

    `draw` returns labels (H, W), uint8.
    """

    def __init__(self, classes: Sequence[str], draw: Callable[[Any], np.ndarray], palette: Palette | None = None):
        super().__init__(("--config", "finetune/tiny_segmentation"))
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"there are {len(classes)} classes, but a mask can show {MAX_CLASSES} at most")
        self.classes, self.draw, self.palette = classes, draw, palette

    def add(self, stem: str, file: Path, split: str, mask_size: tuple[int, int], mask: Any) -> None:
        """Add an image, or note that its mask, of (height, width), has another shape."""
        size = height, width = read_header(file).size
        mask_height, mask_width = mask_size
        sizes = f"{file} ({height} x {width}, mask {mask_height} x {mask_width})"
        if abs(height / mask_height - width / mask_width) > SAME_SHAPE * height / mask_height:
            self.notes["images whose mask has a different shape were left out"].append(sizes)
            return
        if size != mask_size:
            self.notes["masks were resized to their images"].append(sizes)
        self.samples.append(Sample(file, f"images/{stem}{file.suffix}", split, label=(size, mask)))

    def write(self, folder: Path, splits: Mapping[str, Sequence[Sample]]) -> str:
        """Write masks and the names of the classes, and return the number of classes and their names."""
        write_text(folder / "classes.txt", "\n".join(self.classes) + "\n")
        if self.palette:
            write_text(folder / "palette.txt", "".join(f"{r} {g} {b}\n" for r, g, b in self.palette))
        colours = colours_of(len(self.classes), self.palette)
        for split, samples in splits.items():
            (folder / split / "masks").mkdir()
            for sample in samples:
                (height, width), mask = sample.label
                image = index_image(torch.from_numpy(self.draw(mask)), colours)
                file = folder / split / "masks" / f"{Path(sample.name).stem}.png"
                image.resize((width, height), Image.Resampling.NEAREST).save(file)
        return f"{len(self.classes)} classes: {', '.join(self.classes)}"


def read_masks(source: Path) -> Masks:
    """Read images and their masks, in which each value or colour is a class.

    The names of folders and files tell masks from images, and name the splits. classes.txt with palette.txt, CVAT's
    labelmap.txt or Roboflow's _classes.csv name the classes.

    Raises:
        ValueError: no image has a mask, an image has two masks, or a value is not a class.
    """
    images, masks = find_files(source)
    pairs = {key: (file, masks.get(key) or masks.get(("", key[1]))) for key, file in images.items()}
    used = {mask for _, mask in pairs.values() if mask}
    if not used:
        found = f"{plural(len(images), 'image')} and {plural(len(masks), 'mask')}, none of the same name"
        raise ValueError(f"{source} has {found}: {EXPECTED}")
    values = np.unique(np.concatenate([np.unique(read_values(mask)) for mask in sorted(used)]))
    classes, palette, table = name_values(source, values.tolist())
    lookup = np.array([table[value] for value in values.tolist()], dtype=np.uint8)
    labels = Masks(classes, lambda mask: lookup[np.searchsorted(values, read_values(mask))], palette)
    for (split, stem), (file, mask) in pairs.items():
        if mask:
            labels.add(stem, file, split, read_header(mask).size, mask)
    labels.notes["images without a mask were left out"] += [str(file) for file, mask in pairs.values() if not mask]
    labels.notes["masks without an image were left out"] += [str(mask) for mask in masks.values() if mask not in used]
    return labels


def find_files(source: Path) -> tuple[Files, Files]:
    """Return the images and the masks below a folder; raise ValueError if two have the same name and split."""
    images: Files = {}
    masks: Files = {}
    for name, path in list_images(source).items():
        *folders, stem = name.rpartition(".")[0].split("/")
        is_mask = any(map(MASK_FOLDER.search, folders)) or bool(MASK_ENDING.search(stem))
        key = split_of(folders), IMAGE_ENDING.sub("", MASK_ENDING.sub("", stem))
        other = (masks if is_mask else images).setdefault(key, path)
        if other != path:
            kind = "masks" if is_mask else "images"
            raise ValueError(
                f"{other} and {path} are both {kind} of the name {key[1]}: move one of them out of {source}"
            )
    return images, masks


def split_of(folders: Sequence[str]) -> str:
    """Return the split that the name of a folder, such as train_masks, tells; "" if there is none."""
    words = (word for folder in folders for word in re.split("[-_. ]", folder.lower()))
    return next((SPLITS[word] for word in words if SPLITS.get(word)), "")


def read_values(path: Path) -> np.ndarray:
    """Return the colour of each pixel of a mask as a number, (H, W) int32; the indices of a palette are grey values."""
    image = open_mask(path)
    if image.mode in ("RGB", "RGBA"):
        red, green, blue = np.moveaxis(np.array(image.convert("RGB"), dtype=np.int32), -1, 0)
        return red << 16 | green << 8 | blue
    values = np.array(image, dtype=np.int32)
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"{path} has values from {values.min():,} to {values.max():,}, but masks have 0 to 255")
    return values * GREY


def name_values(source: Path, values: Sequence[int]) -> tuple[list[str], Palette | None, dict[int, int]]:
    """Return the names of the classes, their colours if masks are in colour, and the label of each value.

    Without a file that names them, all values are classes; but 255 is ignored if the others are 0, 1, ... or 1, 2, ...
    """
    in_colour = any(value % GREY for value in values)
    classes, palette = read_names(source)
    if not classes:
        others = [value for value in values if value != WHITE]
        counted = len(others) > 1 and others[0] <= GREY and others[-1] - others[0] == (len(others) - 1) * GREY
        values_of_classes = others if counted and not in_colour else list(values)
        if not 2 <= len(values_of_classes) <= MOST_VALUES:
            raise ValueError(
                f"the masks in {source} have {plural(len(values_of_classes), 'value')}, but each value is a class, and "
                f"there must be 2 to {MOST_VALUES}: save masks as PNGs without soft edges, or name the classes in "
                f"{source / 'classes.txt'}"
            )
        names = [describe(value) if value else "background" for value in values_of_classes]
        classes = ["background", "object"] if len(names) == 2 and not values_of_classes[0] else names
        palette = tuple(map(colour_of, values_of_classes)) if in_colour else None
    elif in_colour:
        values_of_classes = [red << 16 | green << 8 | blue for red, green, blue in palette or ()]
    else:
        values_of_classes = [i * GREY for i in range(len(classes))]
    table = {} if in_colour else {WHITE: IGNORED}
    table |= {value: i if i < len(classes) else IGNORED for i, value in enumerate(values_of_classes)}
    if unknown := [value for value in values if value not in table]:
        raise ValueError(f"the masks in {source} have {describe(unknown[0])}, which is not in its list of classes")
    return classes, palette if in_colour else None, table


def describe(value: int) -> str:
    """Name a value or a colour, as "value 7" or "colour 255 0 0"."""
    return f"colour {' '.join(map(str, colour_of(value)))}" if value % GREY else f"value {value // GREY}"


def colour_of(value: int) -> Colour:
    """Return red, green and blue."""
    return value >> 16, value >> 8 & 255, value & 255


def read_names(source: Path) -> tuple[list[str], Palette | None]:
    """Return the names and colours of the classes that a file lists; no names if there is no such file."""
    if (source / "classes.txt").is_file():
        return list(read_classes(source / "classes.txt")), read_palette(source / "palette.txt")
    names, colours = [], []
    for file in (*source.glob("labelmap.txt"), *sorted(source.rglob("_classes.csv"))[:1]):
        for line in read_text(file).splitlines():
            if match := re.match(r"([^#:]+):(\d+),(\d+),(\d+):", line):  # CVAT: name:red,green,blue:parts:actions
                names.append(match[1])
                colours.append((int(match[2]), int(match[3]), int(match[4])))
            elif match := re.match(r"\d+\s*,\s*(\S.*)", line):  # Roboflow: value, name
                names.append(match[1].strip())
    return names, tuple(colours) or None
