"""Open torchvision's data sets."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets as tv
from PIL import Image

from ..files import file_content, hash_bytes, read_image_file
from .base import ImageSplit, choose_test_split

Parts = list[dict[str, Any]]  # arguments of the torchvision data sets that together make a split

TRAIN: Parts = [{"train": True}]
TEST: Parts = [{"train": False}]
TORCHVISION_SETS: dict[str, tuple[Callable[..., Any], Parts, Parts]] = {  # class, training split, test split
    "cifar10": (tv.CIFAR10, TRAIN, TEST),
    "cifar100": (tv.CIFAR100, TRAIN, TEST),
    "mnist": (tv.MNIST, TRAIN, TEST),
    "fashion_mnist": (tv.FashionMNIST, TRAIN, TEST),
    "kmnist": (tv.KMNIST, TRAIN, TEST),
    "emnist": (tv.EMNIST, [{"split": "balanced", "train": True}], [{"split": "balanced", "train": False}]),
    "svhn": (tv.SVHN, [{"split": "train"}], [{"split": "test"}]),
    "flowers": (tv.Flowers102, [{"split": "train"}, {"split": "val"}], [{"split": "test"}]),
    "pets": (tv.OxfordIIITPet, [{"split": "trainval"}], [{"split": "test"}]),
    "food": (tv.Food101, [{"split": "train"}], [{"split": "test"}]),
}


def open_torchvision(name: str, root: str, download: bool, test_on: str) -> tuple[ImageSplit, ImageSplit]:
    """Open the training and the test split of a data set in `TORCHVISION_SETS`."""
    choose_test_split(["test"], test_on, name)
    return Torchvision(name, root, True, download), Torchvision(name, root, False, download)


class Torchvision(ImageSplit):
    """Read one split, which may join several of torchvision's splits, such as train and val of flowers."""

    def __init__(self, name: str, root: str, train: bool, download: bool):
        make, train_parts, test_parts = TORCHVISION_SETS[name]
        try:
            parts = [make(root, download=download, **kwargs) for kwargs in (train_parts if train else test_parts)]
        except (RuntimeError, OSError) as error:  # OSError: no network
            place, advice = os.path.abspath(root), "give its folder with --data-dir"
            if (Path(root) / "train").is_dir():
                advice = "for class folders in train/ and val/, give --data folder"
            elif not download:
                advice += ", or download it with metamix train or eval --download"
            what = "could not be downloaded to" if download else "was not found in"
            raise FileNotFoundError(f"{name} {what} {place} ({error}): {advice}") from error
        self.parts: torch.utils.data.ConcatDataset = torch.utils.data.ConcatDataset(parts)
        labels = [torch.as_tensor(_first_attribute(part, "targets", "labels", "_labels")).long() for part in parts]
        self.labels = torch.cat(labels)
        self.files = [Path(file) for part in parts for file in _first_attribute(part, "_image_files", "_images")]
        self.split = "train" if train else "test"
        self.name, self.root = f"{name} {self.split}", Path(root).expanduser()
        self.classes = tuple(getattr(parts[0], "classes", [str(i) for i in range(int(self.labels.max()) + 1)]))
        self.mode = "L" if not self.files and self.open(0).mode == "L" else "RGB"

    def open(self, i: int) -> Image.Image:
        return read_image_file(self.files[i]) if self.files else self.parts[i][0]

    def path(self, i: int) -> str:
        return str(self.files[i]) if self.files else f"{self.name} {i}"

    def fingerprint(self, i: int) -> str:
        if not self.files:
            return super().fingerprint(i)
        return f"{os.path.relpath(self.files[i], self.root)} {self.files[i].stat().st_size}"

    def content(self, i: int) -> str:
        return file_content(self.files[i]) if self.files else hash_bytes(self.open(i).tobytes())


def _first_attribute(dataset: Any, *names: str) -> Any:
    """Return the first attribute in `names` that a data set has, or []. Torchvision's data sets use different names."""
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), [])
