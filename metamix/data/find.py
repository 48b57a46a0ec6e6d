"""Find the images in files and folders that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .files import list_files
from .formats.base import is_image, natural_order


def find_images(places: Sequence[Path], without: Path | None = None) -> list[Path]:
    """List the images in files and folders, each once.

    Args:
        places: files, with any name, and folders, which are searched at any depth.
        without: a resolved folder that is skipped inside of folders.

    Raises:
        FileNotFoundError: a file is missing, or a folder has no image.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise FileNotFoundError(f"there is no image {place}")
            found[place] = None
            continue
        paths = [place / path for path in sorted(filter(is_image, list_files(place)), key=natural_order)]
        inside = [path for path in paths if without is None or not path.resolve().is_relative_to(without)]
        if not inside:
            raise FileNotFoundError(f"there is no image in {place}; expected files such as .png and .jpg")
        found |= dict.fromkeys(inside)
    return list(found)
