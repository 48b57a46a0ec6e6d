"""Match images with masks or other labels by the names of their files and folders."""

import re
from collections import defaultdict
from pathlib import Path

from metamix.data.find import list_images
from metamix.data.tables import SPLITS
from metamix.utils.files import read_text

WORD = r"(^|[-_. ]){}([-_. ]|$)"  # a word in the name of a folder
MASKS = r"(masks?|labels?|annotations?|(ground[-_. ]?)?truth|gt|seg(m|ments?|mented|mentation\w*|maps?|masks?)?)"
MASK_FOLDER = re.compile(WORD.format(MASKS), re.IGNORECASE)
MASK_ENDING = re.compile(rf"[-_. ]{MASKS}$", re.IGNORECASE)
IMAGE_FOLDER = re.compile(WORD.format(r"(\w*images?|imgs?|photos?|rgb)"), re.IGNORECASE)
IMAGE_ENDING = re.compile(r"[-_. ](images?|img|photo|rgb|sat)$", re.IGNORECASE)

Key = tuple[str, str]  # split, and path without its extension and without folders that name a split or a kind of file
Files = dict[Key, Path]
Pairs = dict[Path, tuple[str, str, Path]]  # mask or label file -> split, name and image


def find_files(source: Path, without: str = "SegmentationObject") -> tuple[Files, Files]:
    """Return the images and masks below a folder, except in folders named `without`, such as VOC's masks of objects.

    A file is a mask if its name ends in a word such as "_mask". Otherwise, the innermost folder that is named after
    images or masks decides. Without such a folder, the file is an image.

    Raises:
        ValueError: two images, or two masks, have the same split and the same name.
    """
    lists = {path: SPLITS.get(path.stem.lower()) for path in source.glob("ImageSets/Segmentation/*.txt")}  # CVAT, VOC
    splits = {line.strip(): split for path, split in lists.items() if split for line in read_text(path).splitlines()}
    images: Files = {}
    masks: Files = {}
    for path in list_images(source).values():
        folders = path.relative_to(source).parts[:-1]
        if without in folders:
            continue
        kinds = [folder for folder in folders if MASK_FOLDER.search(folder) or IMAGE_FOLDER.search(folder)]
        is_mask = MASK_ENDING.search(path.stem) or MASK_FOLDER.search(kinds[-1] if kinds else "")
        split, name = key_of(path, source)
        key = split or splits.get(name, ""), name
        files, kind = (masks, "masks") if is_mask else (images, "images")
        add_file(files, key, path, kind)
    return images, masks


def add_file(files: Files, key: Key, path: Path, kind: str) -> None:
    """Add a file to `files`; raise ValueError if another file has the same split and name."""
    if key in files:
        raise ValueError(f"{files[key]} and {path} are both {kind} with the name {key[1]}: move one of them away")
    files[key] = path


def key_of(path: Path, source: Path) -> Key:
    """Return the `Key` of a file, without an ending such as "_mask". The split is "" if no folder names a split."""
    folders = path.relative_to(source).parts[:-1]
    words = (word for folder in folders for word in re.split("[-_. ]", folder.lower()))
    split = next((SPLITS[word] for word in words if SPLITS.get(word)), "")
    others = [f for f in folders if not (MASK_FOLDER.search(f) or IMAGE_FOLDER.search(f) or SPLITS.get(f.lower()))]
    return split, "/".join([*others, IMAGE_ENDING.sub("", MASK_ENDING.sub("", path.stem))])


def match_files(images: Files, partners: Files) -> Pairs:
    """Match images with masks or other labels of the same split and name.

    A partner without a split fits an image that has no partner in its own split. Names of folders that hold only images
    or only partners are ignored.

    Raises:
        ValueError: two partners fit an image, or a partner fits two images.
    """
    seen = ({folder for _, name in files for folder in name.split("/")[:-1]} for files in (images, partners))
    shared = set.intersection(*seen)

    def shorten(name: str) -> str:
        *folders, file = name.split("/")
        return "/".join([*filter(shared.__contains__, folders), file])

    by_key: dict[Key, list[Path]] = defaultdict(list)
    for (split, name), partner in partners.items():
        by_key[split, shorten(name)].append(partner)
    pairs: Pairs = {}
    for (split, name), image in images.items():
        short = shorten(name)
        fitting = by_key.get((split, short)) or by_key.get(("", short), [])
        if len(fitting) > 1:
            raise ambiguous(image, *fitting[:2])
        for partner in fitting:
            *_, other = pairs.setdefault(partner, (split, short, image))
            if other != image:
                raise ambiguous(partner, other, image)
    return pairs


def ambiguous(path: Path, one: Path, another: Path) -> ValueError:
    """Return the error for two files that both fit a third file."""
    return ValueError(f"{one} and {another} both fit {path} by their names: rename one of them, or take it out")
