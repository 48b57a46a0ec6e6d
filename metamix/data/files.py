"""Read image files and list folders, which may hold anything: links, pipes, devices."""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from io import BytesIO
from pathlib import Path

from PIL import Image

from metamix.utils.text import readable

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**28  # 256 MiB; larger files are not images to train on


class CorruptImage(OSError):
    """One image, or too many images, cannot be decoded. The message names the image and the reason."""


def read_image_file(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> Image.Image:
    """Open an image file. Its bytes are read, its pixels are not decoded yet.

    Raises:
        CorruptImage: the path leads to something other than a regular file, such as a pipe or a device, or the file is
            larger than `max_bytes`.
        OSError: the file cannot be read, or its format is unknown.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer. Windows has neither the flag nor such pipes.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CorruptImage("not a regular file")
        check_size(status.st_size, max_bytes)
        return Image.open(BytesIO(file.read()))


def check_size(size: int, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Check the size of an image file.

    Raises:
        CorruptImage: it has more than `max_bytes`.
    """
    if size > max_bytes:
        raise CorruptImage(f"{size:,} bytes; images may have {max_bytes:,} at most")


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
                if not entry.is_dir():
                    files.append(path)
                elif entry.is_symlink():
                    links.append(path)
                else:
                    folders.append(path)
    return files


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
