"""Find the images in files and folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from metamix.utils.text import did_you_mean

from .formats.base import list_image_paths


def paths_inside(places: Sequence[Path], without: Sequence[Path] = ()) -> dict[Path, Path]:
    """Map each image in the given folders to its path inside its folder, and each given file to its name.

    Args:
        places: files, with any name, and folders, which are searched at any depth.
        without: folders that a command writes to. They are skipped, unless a place is such a folder or is inside one.
    """
    inside: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise FileNotFoundError(f"there is no file or folder {place}")
            inside[place] = Path(place.name)
            continue
        paths = list_images(place).values()
        skipped = [folder for folder in map(Path.resolve, without) if not place.resolve().is_relative_to(folder)]
        kept = [path for path in paths if not any(path.resolve().is_relative_to(folder) for folder in skipped)]
        if not kept:
            raise FileNotFoundError(f"{place} has images only in the output folder: give a folder of input images")
        inside |= {path: path.relative_to(place) for path in kept}
    return inside


def list_images(folder: Path) -> dict[str, Path]:
    """List the images below a folder by relative path, in natural order; raise FileNotFoundError if there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = list_image_paths(folder)
    if not names:
        raise FileNotFoundError(f"there is no image in {folder}; expected files such as .png and .jpg")
    return {name: folder / name for name in names}


def by_stem(images: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files of `list_images` by their paths without extensions; raise ValueError if two paths are equal."""
    stems: dict[str, Path] = {}
    for name, path in images.items():
        stem = name.rpartition(".")[0]
        if stem in stems:
            raise ValueError(f"{path} and {stems[stem]} have the same name without extensions: rename one of them")
        stems[stem] = path
    return stems


# An image and its partner, by the relative path of the image without extension.
Pairs = dict[str, tuple[Path, Path]]


class Unmatched(ValueError):
    """Some files have no partner: `problems` describes each file, and `pairs` holds the images with a partner."""

    def __init__(self, problems: list[str], pairs: Pairs, option: str, template: str):
        self.problems, self.pairs = problems, pairs
        more = len(problems) - 1
        others = f" {more} more {'has' if more == 1 else 'have'} no partner." if more else ""
        super().__init__(f"{problems[0]}{others} Partners are named by {option} {template!r}")


def match_partners(folder: Path, partner_folder: Path, option: str, template: str = "{name}") -> Pairs:
    """Match the images of two folders by their relative paths without extensions.

    Args:
        option: name of the option that sets `template`, for messages.
        template: name of a partner without extension; {name} is replaced by the name of its image.

    Raises:
        Unmatched: an image of either folder has no partner.
    """
    images, partners = (by_stem(list_images(place)) for place in (folder, partner_folder))
    wanted = {}
    for stem in images:
        inside, slash, name = stem.rpartition("/")
        wanted[stem] = inside + slash + template.replace("{name}", name)
    problems = [
        f"{images[stem]} has no partner {partner} in {partner_folder}{did_you_mean(partner, partners)}"
        for stem, partner in wanted.items()
        if partner not in partners
    ]
    matched = set(wanted.values())
    problems += [f"{path} has no partner in {folder}." for stem, path in partners.items() if stem not in matched]
    pairs = {stem: (path, partners[wanted[stem]]) for stem, path in images.items() if wanted[stem] in partners}
    if problems:
        raise Unmatched(problems, pairs, option, template)
    return pairs
