"""Open image folders that are named after classes, or tar files of such folders."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from metamix.utils.files import MAX_NESTING
from metamix.utils.text import list_names

from ..files import file_content, read_image_file
from .base import (
    PHOTOGRAPHS,
    TEST_SPLITS,
    ImageSplit,
    choose_test_split,
    class_name,
    is_image,
    label_by_folder,
    list_image_paths,
    match_classes,
    natural_order,
)
from .tar import Member, ShortInfo, TarImages, read_tar

LABELS = "labels.csv"  # see `metamix.data.tables`
LAYOUT = (
    "expected train/ and val/ (or valid/, validation/, test/), each with one folder of images per class, "
    "or a .tar file of such folders, such as train.tar; or, without splits, one folder of images per class; "
    f"or {LABELS} with the columns file and labels (or a column of 0 and 1 per label), if images have several labels"
)


def open_folder(
    root: str | Path | None, test_on: str = "", *, train_required: bool = True
) -> tuple[ImageSplit | None, ImageSplit]:
    """Open the training and the test split.

    If there is no test split and `test_on` is empty, both splits hold the images of train/ or, without train/, of the
    class folders in `root`. If there is only a test split, None takes the place of the training split; with
    `train_required`, this is an error.
    """
    if root is None:
        raise ValueError(f"a folder of images needs --data-dir; {LAYOUT}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root.absolute()}; {LAYOUT}")
    if (root / "wnids.txt").is_file():
        raise ValueError(f"{root.absolute()} is Tiny-ImageNet: open it with --data tiny_imagenet --data-dir {root}")
    splits = ("train", *TEST_SPLITS)  # for each, a folder takes precedence over a tar file
    places = {split: place for split in splits for place in (root / f"{split}.tar", root / split) if place.exists()}
    tests = [split for split in places if split != "train"]
    if not tests and not test_on and (_holds_train_alone(root) or _holds_classes(root)):
        place = places.get("train", root)
        images = open_split(place)
        images.split = "test"
        if train_required:
            _check_classes(images, place)
        return images, images
    if not tests or (train_required and "train" not in places):
        contents = list_names(sorted(os.listdir(root)), 10) or "nothing"
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        like = list_names(name for name in folders if _is_like_a_split(name) and name not in splits)
        advice = f". Rename class folders whose names begin with the name of a split: {like}" if like else ""
        raise FileNotFoundError(f"{root.absolute()} holds {contents}; {LAYOUT}{advice}")
    chosen = places[choose_test_split(tests, test_on, root)]
    test = open_split(chosen)
    if "train" not in places:
        return None, test
    train = open_split(places["train"])
    _check_classes(train, places["train"])
    if unknown := match_classes(test, train.classes):
        raise ValueError(
            f"{chosen.absolute()} has the classes {list_names(unknown)}, which {places['train'].absolute()} does not "
            f"have: remove or rename these folders, or give another --test-on"
        )
    return train, test


def _holds_train_alone(root: Path) -> bool:
    """Return whether `root` has train/ or train.tar and no other folder or tar file, which may be a misnamed split."""
    entries = {path.name for path in root.iterdir() if path.is_dir() or path.suffix == ".tar"}
    names = {name for name in entries if not name.startswith(".")}
    return bool(names) and names <= {"train", "train.tar"}


def _holds_classes(root: Path) -> bool:
    """Return whether the folders in `root` are class folders: they hold images, and none is named like a split.

    Empty folders, and folders of photographs that cannot be read, are accepted here; `open_class_folders` rejects them.
    """
    has_images = False
    for folder in (path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = list(folder.iterdir())
        if _is_like_a_split(folder.name):
            return False
        if any(is_image(file.name) or file.suffix.lower() in PHOTOGRAPHS for file in files):
            has_images = True
        elif any(file.is_dir() for file in files):
            return False  # in a folder of data sets, the images are deeper
    return has_images


def _is_like_a_split(name: str) -> bool:
    """Return whether the name of a folder begins with the name of a split: train2017, testA, Validation."""
    return name.lower().startswith(("train", *TEST_SPLITS))


def _check_classes(train: "FolderImages | TarImages", place: Path) -> None:
    """Raise ValueError if the training split, opened from `place`, has a single class."""
    if len(train.classes) < 2:
        raise ValueError(
            f"{place.absolute()} must hold two or more folders of images, one per class; found only {train.classes[0]}"
            + (f". To make these folders from {LABELS}: metamix convert csv" if (place / LABELS).is_file() else "")
        )


def open_split(place: Path) -> "FolderImages | TarImages":
    """Open a folder of class folders, or a tar file of them."""
    return open_tar(place) if place.suffix == ".tar" else open_class_folders(place)


def open_class_folders(root: Path) -> "FolderImages":
    """Open a folder that holds a folder of images for each class, and no other folder."""
    paths = list_image_paths(root)
    labels, classes = label_by_folder(paths, root)
    folders = {class_name(path.name) for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if empty := sorted(folders - set(classes)):
        raise ValueError(
            f"{root.absolute()} has no image ({' '.join(IMG_EXTENSIONS)}) in {list_names(map(repr, empty))}; "
            f"remove these folders or add images"
        )
    return FolderImages(root, root.name, paths, labels, classes)


class FolderImages(ImageSplit):
    """Read one split of image files; their paths are relative to `root`."""

    def __init__(self, root: Path, split: str, paths: list[str], labels: Tensor, classes: tuple[str, ...]):
        self.root, self.split, self.paths, self.labels, self.classes = root, split, paths, labels, classes

    def open(self, i: int) -> Image.Image:
        return read_image_file(self.root / self.paths[i])

    def path(self, i: int) -> str:
        return str(self.root / self.paths[i])

    def fingerprint(self, i: int) -> str:
        try:
            size = (self.root / self.paths[i]).stat().st_size
        except (OSError, ValueError):  # such as a link that leads nowhere, or a NUL in the name
            size = -1
        return f"{self.paths[i]} {size}"

    def content(self, i: int) -> str:
        return file_content(self.root / self.paths[i])


def open_tar(path: Path) -> TarImages:
    """Open a tar file of class folders, which may be in further folders (train/cat/0.png)."""
    with read_tar(path) as tar:
        images = sorted(list_tar_images(tar), key=lambda image: natural_order(image[0]))
    paths = strip_common_folders([name for name, _, _ in images], path.stem)
    labels, classes = label_by_folder(paths, path)
    members = [Member(path, offset, size, name, inside) for (name, offset, size), inside in zip(images, paths)]
    return TarImages(path.stem, members, labels, classes)


def list_tar_images(
    tar: tarfile.TarFile, folder: str = "", start: int = 0, levels: int = MAX_NESTING
) -> Iterator[tuple[str, int, int]]:
    """Yield the name of every image, and its offset and size in bytes.

    A tar file inside the tar file counts as a folder, as in ImageNet's archive, down to `levels` levels. `folder`
    and `start` are the name of such a file and its offset in bytes.
    """
    for info in tar:
        name, offset = str(PurePosixPath(folder, info.name.lstrip("/"))), start + info.offset_data
        if (info.islnk() or info.issym()) and "/." not in f"/{name}":
            advice = "make the archive with GNU tar --dereference --hard-dereference"
            raise ValueError(f"{tar.name!s} holds {name} as a link to {info.linkname}: {advice}")
        if not info.isfile():
            continue
        if name.endswith(".tar"):
            if not levels:
                raise ValueError(f"{tar.name!s} holds tar files nested deeper than {MAX_NESTING} levels")
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:", tarinfo=ShortInfo) as inner:
                yield from list_tar_images(inner, name.removesuffix(".tar"), offset, levels - 1)
        elif is_image(name):
            yield name, offset, info.size


def strip_common_folders(paths: list[str], split: str) -> list[str]:
    """Remove the folders above the class folders from paths.

    If a folder above all images has the name of the split, this folder and the folders above it are removed. Otherwise,
    the folders that contain all class folders are removed.
    """
    parts = [PurePosixPath(path).parts for path in paths]
    above = shared_start([folders for *folders, _ in parts])
    count = above.index(split) + 1 if split in above else len(shared_start([path[:-2] for path in parts]))
    return ["/".join(path[count:]) for path in parts]


def shared_start(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the folders that all paths begin with."""
    return [names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*paths))]
