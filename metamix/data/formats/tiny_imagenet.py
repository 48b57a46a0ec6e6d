"""Open Tiny-ImageNet: 100,000 training and 10,000 validation images of 64x64 pixels, in 200 classes of ImageNet.

    wnids.txt, words.txt                          WordNet IDs of the 200 classes, and the names of all synsets
    train/n01443537/images/n01443537_0.JPEG       500 images for each class
    val/images/val_0.JPEG, val/val_annotations.txt

The test split of the archive has no labels and is not used.
"""

from pathlib import Path

import torch
from torchvision.datasets.utils import download_and_extract_archive

from metamix.utils.files import read_text

from .base import choose_test_split, list_image_paths
from .folder import FolderImages

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
CLASS_LIST = "wnids.txt"


def open_tiny_imagenet(root: Path, download: bool, test_on: str) -> tuple[FolderImages, FolderImages]:
    """Open the training and the validation split.

    Args:
        root: the folder of the data set, or its parent folder. A download goes into a subfolder of `root`.
        download: fetch and unpack the official archive into `root` if there is no data set.
    """
    choose_test_split(["val"], test_on, "tiny_imagenet")
    folder = next((place for place in (root, root / NAME) if (place / CLASS_LIST).is_file()), None)
    if folder is None and download:
        try:
            download_and_extract_archive(URL, str(root), md5=MD5)
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"tiny_imagenet could not be downloaded to {root.absolute()} ({error}): fetch {URL} yourself, unpack "
                f"it, and give its folder with --data-dir"
            ) from error
        folder = root / NAME
    if folder is None:
        raise FileNotFoundError(
            f"tiny_imagenet was not found in {root.absolute()}, which has no {CLASS_LIST}: give its folder with "
            f"--data-dir, or download it with metamix train or eval --download"
        )
    numbers = sorted(read_text(folder / CLASS_LIST).split())
    return open_split(folder, "train", numbers), open_split(folder, "val", numbers)


def read_pairs(path: Path) -> list[list[str]]:
    """Read the first two values, separated by tabs, of each line; raise ValueError if a line has fewer."""
    rows = [line.split("\t")[:2] for line in read_text(path).splitlines()]
    if short := next((number for number, row in enumerate(rows, 1) if len(row) < 2), 0):
        raise ValueError(f"{path}:{short} has fewer than two values separated by tabs: unpack the archive again")
    return rows


def open_split(root: Path, split: str, numbers: list[str]) -> FolderImages:
    """Open one split; `numbers` are the WordNet IDs of the classes, in order.

    The name of a class is the first name of its synset in words.txt, or its ID if words.txt does not list it.
    """
    place, words = root / split, dict(read_pairs(root / "words.txt"))
    classes = tuple(words.get(number, number).partition(",")[0] for number in numbers)
    if split == "train":
        class_of = {path: path.partition("/")[0] for path in list_image_paths(place)}
    else:
        pairs = read_pairs(place / "val_annotations.txt")
        class_of = {f"images/{Path(file).name}": number for file, number in pairs}  # never outside images/
    position = {number: k for k, number in enumerate(numbers)}
    if unknown := next((path for path, number in class_of.items() if number not in position), None):
        raise ValueError(f"{place / unknown} has the class {class_of[unknown]}, which is not in {CLASS_LIST}")
    labels = torch.tensor([position[number] for number in class_of.values()])
    return FolderImages(place, split, list(class_of), labels, classes)
