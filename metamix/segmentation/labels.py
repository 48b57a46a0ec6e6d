"""Read masks: map the values or colours of mask files to labels, and map labels back to colours.

A mask file holds a whole number for each pixel. It is an image, such as a PNG but not a JPEG, with one grey channel,
with three equal channels, or with a palette. A mask in colour is read with the palette of the data set. `Labels` maps
the values to the labels 0, 1, ..., and ignored pixels to 255. For any other value, an error names the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from metamix.data.files import as_corrupt_image, read_mask_file
from metamix.utils.files import read_text
from metamix.utils.text import list_names, plural, to_number

IGNORED = 255  # label of pixels that are neither trained on nor scored
MIN_CLASSES, MAX_CLASSES = 2, 255
ADVICE = "write the names of the classes into it, one per line, label 0 first"
REFUSED = -1  # entry of `Labels.table` for values that no mask may have

Colour = tuple[int, int, int]
Palette = tuple[Colour, ...]


class BadMask(ValueError):
    """A file is not a mask, or holds a value that is not a label. The message names the file."""


@dataclass(frozen=True)
class Labels:
    """The classes of a data set, and the label of each value in its mask files."""

    classes: tuple[str, ...]  # names of the labels 0, 1, ...
    values: Mapping[int, int]  # label of each value that mask files may have, or IGNORED
    # Colours of the classes, for masks in colour and for pictures. The colour of ignored pixels may follow.
    palette: Palette | None = None
    # Advice for the user, at the end of the message for a refused value.
    advice: str = (
        "correct the mask, add the class to classes.txt, give --ignore-index, or, if the masks number the classes from "
        "1, give --reduce-zero-label"
    )

    @cached_property
    def table(self) -> np.ndarray:
        """Return the label of each value, IGNORED or REFUSED: (257,) int16.

        The last entry is for all values outside 0 to 255.
        """
        table = np.full(257, REFUSED, dtype=np.int16)
        table[[*self.values]] = [*self.values.values()]
        return table

    def accepted(self) -> str:
        """Name the values that masks may have."""
        values = np.flatnonzero(self.table != REFUSED)
        ranges = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
        return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in ranges)


def make_labels(
    classes: Sequence[str],
    *,
    ignore_index: int | None = 255,
    reduce_zero_label: bool = False,
    palette: Palette | None = None,
) -> Labels:
    """Number the classes in the given order; raise ValueError if the palette has too few or too many colours.

    Args:
        ignore_index: value of ignored pixels in the mask files; None if all pixels count.
        reduce_zero_label: ignore the value 0, and subtract 1 from the values of the classes.
    """
    if palette is not None and len(palette) not in (len(classes), len(classes) + 1):
        raise ValueError(
            f"palette.txt has {len(palette)} colours, and there are {len(classes)} classes: give one colour for each "
            f"class, and one more if ignored pixels have a colour"
        )
    first = 1 if reduce_zero_label else 0
    values = {first + i: i for i in range(len(classes)) if first + i < 256}
    values |= {0: IGNORED} if reduce_zero_label else {}
    values |= {} if ignore_index is None else {ignore_index: IGNORED}
    return Labels(tuple(classes), values, palette)


def ignored_hint(counts: Tensor, labels: Labels) -> str:
    """Suggest that the ignored value stands for a class, if at most one class has pixels.

    `counts` (256,) has the number of pixels of each label. Return the end of a message, such as "; 255 is ignored:
    ...", or "" if several classes have pixels or no pixel is ignored.
    """
    missing = [k for k in range(len(labels.classes)) if not counts[k]]
    if len(missing) < len(labels.classes) - 1 or not counts[IGNORED]:
        return ""
    ignored, values = (np.flatnonzero(labels.table == label) for label in (IGNORED, missing[-1]))
    name = labels.classes[missing[-1]]
    if not len(values):
        return f"; the value of {name} is ignored: give another --ignore-index"
    return (
        f"; {ignored[-1]} is ignored: if it shows {name}, save {values[-1]} instead of {ignored[-1]}, or run "
        f"`metamix convert masks`"
    )


def read_mask(path: Path, labels: Labels) -> Tensor:
    """Read a mask as labels: (H, W) uint8.

    Raises:
        CorruptImage: the file cannot be decoded.
        BadMask: a value or a colour is not a label, the file is a JPEG, its mode is not accepted, the mask is in colour
            but the data set has no palette or a palette with equal colours, or the mask's own palette contradicts the
            data set's palette.
    """
    image = open_mask(path)
    if image.mode == "RGB":
        colours = np.array(image)
        if labels.palette is not None or (colours != colours[..., :1]).any():
            return torch.from_numpy(_from_colours(colours, labels, path))
        image = Image.fromarray(colours[..., 0])  # indices, saved as three equal channels
    values = np.array(image, dtype=np.int32)
    if image.mode == "P" and labels.palette is not None:
        _check_own_palette(image, labels, labels.palette, path)
    mapped = labels.table[values.clip(-1, 256)]  # -1 and 256 both index the last entry
    if (refused := mapped == REFUSED).any():
        wrong = np.unique(values[refused]).tolist()
        pixels = plural(int(refused.sum()), "pixel")
        raise BadMask(
            f"{path} has the value{'s' * (len(wrong) > 1)} {list_names(wrong)} at {pixels}, but there are "
            f"{len(labels.classes)} classes, and masks may have the values {labels.accepted()}: {labels.advice}"
        )
    return torch.from_numpy(mapped.astype(np.uint8))


def open_mask(path: Path) -> Image.Image:
    """Decode a mask to one channel, a palette or RGB, without alpha; raise CorruptImage or BadMask if that fails."""
    with as_corrupt_image(path):
        file = read_mask_file(path)
        image = ImageOps.exif_transpose(file)  # the images are turned upright too
        image.load()
    if file.format in ("JPEG", "MPO"):
        raise BadMask(f"{path} is a JPEG, and JPEG changes labels: save masks as PNGs, made from the original labels")
    if opaque_mode := {"LA": "L", "RGBA": "RGB"}.get(image.mode):
        image = image.convert(opaque_mode)
    if image.mode not in ("1", "L", "P", "RGB") and not image.mode.startswith("I"):
        raise BadMask(f"{path} has the mode {image.mode}, but masks must be PNGs of indices in mode L, P, 1 or I")
    return image


def _check_own_palette(image: Image.Image, labels: Labels, palette: Palette, path: Path) -> None:
    """Raise BadMask if a PNG with a palette shows a class in the colour of another class."""
    colours = [tuple(colour) for colour in np.array(image.getpalette("RGB")).reshape(-1, 3).tolist()]
    of_classes = palette[: len(labels.classes)]
    for index in np.flatnonzero(image.histogram()).tolist():
        label = int(labels.table[index])
        if label in (IGNORED, REFUSED) or index >= len(colours) or colours[index] == palette[label]:
            continue
        if colours[index] in of_classes:
            other = labels.classes[of_classes.index(colours[index])]
            raise BadMask(
                f"{path} shows the value {index}, {labels.classes[label]}, in {colours[index]}, which is the colour of "
                f"{other} in palette.txt: correct palette.txt, or save the mask in RGB, so that its colours are read"
            )


def _from_colours(colours: np.ndarray, labels: Labels, path: Path) -> np.ndarray:
    """Return the labels (H, W) uint8 of the colours (H, W, 3) of a mask."""
    if labels.palette is None:
        raise BadMask(
            f"{path} is in colour: give the colours of the classes in palette.txt next to classes.txt, a line "
            f"'red green blue' for each class, or save masks as PNGs of indices"
        )
    if twice := [colour for i, colour in enumerate(labels.palette) if colour in labels.palette[:i]]:
        raise BadMask(
            f"{path} is in colour, and palette.txt has {twice[0]} twice: give each class its own colour, or save masks "
            f"as PNGs of indices"
        )
    result = np.full(colours.shape[:2], REFUSED, dtype=np.int16)
    for i, colour in enumerate(labels.palette):
        label = i if i in labels.table else IGNORED  # --ignore-index may turn a class into ignored pixels
        result[(colours == colour).all(-1)] = label
    if (unknown := result == REFUSED).any():
        raise BadMask(
            f"{path} has the colour {tuple(colours[unknown][0].tolist())}, which is not in palette.txt: correct the "
            f"mask, or add a last line with the colour of ignored pixels"
        )
    return result.astype(np.uint8)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of the classes, one per line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name appears twice, there is an empty line before a name, or there are too few or too many names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {ADVICE}")
    names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if "" in names:
        raise ValueError(f"{path}, line {names.index('') + 1} is empty: give the label {names.index('')} a name")
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise ValueError(f"{path} has the class {twice!r} twice: give each class its own name")
    if not MIN_CLASSES <= len(names) <= MAX_CLASSES:
        raise ValueError(f"{path} names {plural(len(names), 'class')}, not {MIN_CLASSES} to {MAX_CLASSES}: {ADVICE}")
    return tuple(names)


def read_palette(path: Path) -> Palette | None:
    """Read the colours of the classes, "red green blue" on each line; return None if there is no file.

    Raise ValueError if a line is not a colour.
    """
    if not path.exists():
        return None
    colours = []
    for i, line in enumerate(read_text(path).rstrip().splitlines(), 1):
        words = line.replace(",", " ").split()
        if not (len(words) == 3 and all(0 <= to_number(word) < 256 and word.isdecimal() for word in words)):
            raise ValueError(f"{path}, line {i}: {line!r} is not a colour: give three numbers, 0 to 255")
        colours.append((int(words[0]), int(words[1]), int(words[2])))
    return tuple(colours)


def colours_of(count: int, palette: Palette | None = None) -> np.ndarray:
    """Return the colours of `count` classes, (256, 3) uint8. Ignored pixels are black unless the palette sets a colour.

    Without a palette, up to 20 classes get colours of matplotlib. If there are more classes, PASCAL VOC's map is used.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    if palette is not None:
        colours[: min(count, len(palette))] = palette[:count]
        colours[IGNORED] = palette[count] if len(palette) > count else 0
    elif count > 20:
        colours[:count] = [voc_colour(i + 1) for i in range(count)]
    else:
        named = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
        colours[:count] = np.round(255 * named(np.arange(count))[:, :3])
    return colours


def voc_colour(index: int) -> Colour:
    """Return a colour of PASCAL VOC's map: the bits of the index, spread over the high bits of red, green and blue."""
    channels = [0, 0, 0]
    for place in range(7, -1, -1):
        for i in range(3):
            channels[i] |= (index >> i & 1) << place
        index >>= 3
    return channels[0], channels[1], channels[2]


def index_image(labels: Tensor, colours: np.ndarray) -> Image.Image:
    """Make an image whose pixels are labels (H, W) and whose palette is `colours`, (256, 3)."""
    image = Image.fromarray(labels.cpu().numpy().astype(np.uint8), mode="P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image
