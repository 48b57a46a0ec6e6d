"""Find the images in files and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import list_files
from .formats.base import is_image, natural_order, warn_of_other_formats


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
        files = list_files(place)
        warn_of_other_formats(files, place)
        paths = [place / path for path in sorted(filter(is_image, files), key=natural_order)]
        inside = [path for path in paths if without is None or not path.resolve().is_relative_to(without)]
        if not inside:
            raise FileNotFoundError(f"there is no image in {place}; expected files such as .png and .jpg")
        found |= dict.fromkeys(inside)
    return list(found)


def list_images(folder: Path) -> dict[str, Path]:
    """List the images below a folder by their relative paths, in natural order.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = sorted(filter(is_image, list_files(folder)), key=natural_order)
    if not names:
        raise FileNotFoundError(f"there is no image in {folder}; expected files such as .png and .jpg")
    return {name: folder / name for name in names}


def by_stem(images: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files of `list_images` by their relative paths without endings.

    Raises:
        ValueError: two images have one name.
    """
    stems: dict[str, Path] = {}
    for name, path in images.items():
        stem = name.rpartition(".")[0]
        if stem in stems:
            raise ValueError(f"{path} and {stems[stem]} have one name without their endings: rename one of them")
        stems[stem] = path
    return stems
