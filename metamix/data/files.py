"""Read and decode image files and list folders, which may hold anything: links, pipes, devices."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from metamix.utils.text import package_logger

log = package_logger(__name__)

MAX_FILE_BYTES = 2**28  # 256 MiB; larger files are not images to train on
GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")

Broken = list[tuple[str, str]]  # path and reason of samples that could not be read
T = TypeVar("T")


class CorruptImage(OSError):
    """One image, or too many of them, cannot be decoded. The message names the image and the reason."""


@dataclass(frozen=True)
class Header:
    """What the header of an image file says: (height, width) in pixels of the upright image, and colour."""

    size: tuple[int, int]
    grey: bool


def read_image_file(path: str | Path) -> Image.Image:
    """Open an image file. Its bytes are read, its pixels are not decoded yet.

    Raises:
        CorruptImage: the path leads to something other than a regular file, such as a pipe or a device, or the file is
            larger than `MAX_FILE_BYTES`.
        OSError: the file cannot be read, or its format is unknown.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer. Windows has neither the flag nor such pipes.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CorruptImage("not a regular file")
        check_size(status.st_size)
        return Image.open(BytesIO(file.read()))


def check_size(size: int) -> None:
    """Raise CorruptImage if the size of an image file is above `MAX_FILE_BYTES`."""
    if size > MAX_FILE_BYTES:
        raise CorruptImage(f"{size:,} bytes; images may have {MAX_FILE_BYTES:,} at most")


def read_header(path: Path) -> Header:
    """Read size and colour of an image file without decoding it; raise ValueError if it is not an image."""
    try:
        with Image.open(path) as image:
            # For a turned TIFF, Pillow 13 returns the upright size; its tags hold the size before turning.
            width, height = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
            has_exif = image.format != "PNG" or "exif" in image.info  # else Pillow would decode the PNG to look for it
            turned = has_exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation: a quarter turn
            return Header((width, height) if turned else (height, width), image.mode in GREY_MODES)
    except Exception as error:  # decoders raise many types on bad bytes, and all mean the same
        raise ValueError(f"{path} cannot be read as an image ({error}): repair it or take it out") from None


def decode(open_image: Callable[[], Image.Image], path: str | Path, mode: str = "RGB") -> Image.Image:
    """Decode the image that `open_image()` opens, turned upright by its EXIF data and converted to `mode`.

    Raises:
        CorruptImage: "path: reason", for a file that cannot be opened or decoded.
    """
    with as_corrupt_image(path):
        image = to_eight_bits(ImageOps.exif_transpose(open_image()))
        if isinstance(image.info.get("transparency"), bytes):  # a palette's, which Pillow would drop with a warning
            del image.info["transparency"]
        return (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)  # Pillow cannot make LAB grey


def decode_file(image: str | Path | Image.Image, mode: str = "RGB") -> Image.Image:
    """Decode an image file or an image of Pillow; `decode` says how it is converted and which errors it raises."""
    if isinstance(image, Image.Image):
        return decode(lambda: image, "image", mode)
    return decode(lambda: read_image_file(image), image, mode)


def read_pixels(image: str | Path | Image.Image) -> Tensor:
    """Read an image file or an image of Pillow, upright and in colour: (3, H, W) uint8; errors as in `decode`."""
    return pil_to_tensor(decode_file(image))


@contextmanager
def as_corrupt_image(path: str | Path) -> Iterator[None]:
    """Turn any error of opening or decoding an image into CorruptImage, "path: reason"."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise CorruptImage(f"{path}: not an image of a known format") from error
    except CorruptImage as error:
        raise CorruptImage(f"{path}: {error}") from error
    except Exception as error:  # decoders raise many types on bad bytes, and all mean the same
        raise CorruptImage(f"{path}: {type(error).__name__}: {error}") from error


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of a 16-bit grey image. Pillow does so for colour, but clips grey images to white."""
    if image.mode == "F":
        raise CorruptImage("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 65535 or 0 < high < 256:  # 8 bits in a larger file would become black
        raise CorruptImage(
            f"its pixels go from {low} to {high}, not 0 to 65535; save it with 8 bits a channel, or scaled to 16"
        )
    return Image.fromarray((pixels // 256).astype(np.uint8))


def first_readable(count: int, index: int, read: Callable[[int], T], path: Callable[[int], str]) -> tuple[T, Broken]:
    """Read sample `index` of `count`, or the first after it that can be read (0 follows the last).

    Returns:
        What `read` returned, and (path, reason) of each sample for which it raised CorruptImage.

    Raises:
        CorruptImage: no sample can be read.
    """
    broken: Broken = []
    for shift in range(count):
        i = (index + shift) % count
        try:
            return read(i), broken
        except CorruptImage as error:
            broken.append((path(i), str(error)))
    raise CorruptImage(f"none of {count} images can be read; the first is {broken[0][1]}")


def list_files(root: Path) -> list[str]:
    """List the files below a folder, as paths relative to it.

    Links are followed. Every folder on the disk is visited once, so cycles of links end, and paths without links come
    first. Hidden files and folders are left out.
    """
    seen = {_identity(folder): folder for folder in root.resolve().parents}
    files: list[str] = []
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        place = root / folder
        identity = _identity(place)
        if identity in seen:
            log.warning(f"{place}: left out, it is the same folder as {seen[identity]}")
            continue
        seen[identity] = place
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if not _is_dir(entry):
                    files.append(path)
                elif entry.is_symlink():
                    links.append(path)
                else:
                    folders.append(path)
    return files


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
