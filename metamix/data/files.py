"""Read image files and list folders, which may hold anything: links, pipes, devices."""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from metamix.utils.text import readable

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**28  # 256 MiB; larger files are not images to train on
GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")


class CorruptImage(OSError):
    """Report that an image, or too many of them, cannot be decoded. The message names the image and the reason."""


@dataclass(frozen=True)
class Header:
    """Hold what the header of an image file says: (height, width) in pixels of the upright image, and colour."""

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
    """Check the size of an image file.

    Raises:
        CorruptImage: it has more than `MAX_FILE_BYTES`.
    """
    if size > MAX_FILE_BYTES:
        raise CorruptImage(f"{size:,} bytes; images may have {MAX_FILE_BYTES:,} at most")


def read_header(path: Path) -> Header:
    """Read size and colour of an image file without decoding it.

    Raises:
        ValueError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            # Of a turned TIFF, Pillow 13 gives the upright size; its tags are those of the pixels in the file.
            width, height = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
            has_exif = image.format != "PNG" or "exif" in image.info  # else Pillow would decode the PNG to look for it
            turned = has_exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation: a quarter turn
            return Header((width, height) if turned else (height, width), image.mode in GREY_MODES)
    except Exception as error:  # decoders raise many types on bad bytes, and all mean the same
        raise ValueError(f"{path} cannot be read as an image ({error}): repair it or take it out") from None


def list_files(root: Path) -> list[str]:
    """List the files below a folder, as paths relative to it.

    Links are followed. Every folder on the disk is visited once, so cycles of links end, and paths without links come
    first. Hidden files and folders are left out.

    Raises:
        OSError: a folder cannot be read.
    """
    seen = {_identity(folder): folder for folder in root.resolve().parents}
    files: list[str] = []
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        place = root / folder
        identity = _identity(place)
        if identity in seen:
            log.warning(
                "%s: left out, it is the same folder as %s", readable(str(place)), readable(str(seen[identity]))
            )
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
