"""What opens the images of a set: one small class for each way in which sets are stored.

Each holds one split: `labels` (N,) int64, `classes`, `mode` ("RGB" or "L"), `open(i)`, a PIL image that may not be
decoded yet, and `path(i)`, for messages. The functions `open_folder`, `open_hfds` and `open_wds` find the two splits,
(train, test).
"""

import json
import logging
import os
import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets as tv
from PIL import Image
from timm.data import create_dataset, create_reader, get_img_extensions

from .random import stratified

log = logging.getLogger(__name__)

TEST_SPLITS = "val", "valid", "validation", "test"  # in the order in which they are looked for

# name: (torchvision's class, arguments of what makes up train, of test), or None for the sets that timm's factory knows
TORCHVISION = {
    "cifar10": None,
    "cifar100": None,
    "mnist": None,
    "fashion_mnist": None,
    "kmnist": None,
    "emnist": (tv.EMNIST, [dict(split="balanced", train=True)], [dict(split="balanced", train=False)]),
    "svhn": (tv.SVHN, [dict(split="train")], [dict(split="test")]),
    "flowers": (tv.Flowers102, [dict(split="train"), dict(split="val")], [dict(split="test")]),
    "pets": (tv.OxfordIIITPet, [dict(split="trainval")], [dict(split="test")]),
    "food": (tv.Food101, [dict(split="train")], [dict(split="test")]),
}


class Digits:
    """One split of scikit-learn's digits, whose pixels count from 0 to 16."""

    mode = "L"
    classes = tuple("0123456789")

    def __init__(self, train):
        from sklearn.datasets import load_digits  # half a second, and only for this set

        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        chosen = stratified(labels, 360, seed=0) != train  # those are to test on, all others to train on
        self.labels, self.numbers = labels[chosen], chosen.nonzero()[:, 0].tolist()
        self.pixels = (digits.images[chosen.numpy()] * (255 / 16)).round().astype(np.uint8)

    def open(self, i):
        return Image.fromarray(self.pixels[i]).resize((32, 32), Image.Resampling.BICUBIC)

    def path(self, i):
        return f"digits {self.numbers[i]}"


class Torchvision:
    """A split of one of torchvision's sets, which may be several of its own joined (flowers: train and val)."""

    def __init__(self, name, root, train, download):
        try:
            if TORCHVISION[name] is None:
                parts = [create_dataset(f"torch/{name}", root, "train" if train else "validation", download=download)]
            else:
                make, *splits = TORCHVISION[name]
                parts = [make(root, download=download, **kwargs) for kwargs in splits[0 if train else 1]]
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{name} was looked for in {os.path.abspath(root)}: {error}. Give its place with --data-dir, or let it "
                "be fetched with --download"
            ) from error
        self.parts = torch.utils.data.ConcatDataset(parts)
        self.labels = torch.cat(
            [torch.as_tensor(_first(part, "targets", "labels", "_labels")).long() for part in parts]
        )
        self.files = [file for part in parts for file in _first(part, "_image_files", "_images")]
        self.name = f"{name} {'train' if train else 'test'}"
        self.classes = tuple(getattr(parts[0], "classes", [str(i) for i in range(int(self.labels.max()) + 1)]))
        self.mode = "L" if self.open(0).mode == "L" else "RGB"

    def open(self, i):
        return self.parts[i][0]

    def path(self, i):
        return str(self.files[i]) if self.files else f"{self.name} {i}"


def _first(dataset, *names):
    """What a set of torchvision has by one of these names, if anything: they are not called alike everywhere."""
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), [])


def open_folder(root):
    layout = (
        "expected train/ and val/ (or valid/, validation/, test/), each with one folder of images per class, "
        "or a .tar file of such folders in place of either"
    )
    if root is None:
        raise ValueError(f"a folder of images needs --data-dir; in it, {layout}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root.absolute()}; {layout}")
    places = [root / f"{name}{end}" for name in ("train", *TEST_SPLITS) for end in ("", ".tar")]
    train, *tests = [place for place in places if place.exists()] or [None]
    if not tests or train.stem != "train":
        found = ", ".join(sorted(os.listdir(root))[:10]) or "nothing"
        raise FileNotFoundError(f"{root.absolute()} holds {found}; {layout}")
    test = choose_test([place.name for place in tests], root)
    return with_same_classes(
        *(Tar(place) if place.suffix == ".tar" else Files(place) for place in (train, root / test))
    )


def choose_test(splits, where):
    """The first of several splits that could be the test; the log says which are not used."""
    if len(splits) > 1:
        log.warning("%s: scores are on %s; not used: %s", where, splits[0], ", ".join(splits[1:]))
    return splits[0]


def with_same_classes(train, test):
    """Number the classes of `test` as in `train`, by name."""
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise ValueError(f"the test split has classes that train has not: {', '.join(unknown[:5])}")
    numbers = torch.tensor([train.classes.index(name) for name in test.classes])
    test.labels, test.classes = numbers[test.labels], train.classes
    return train, test


class Files:
    """Image files in folders named by class."""

    mode = "RGB"

    def __init__(self, root):
        empty = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not _has_images(path)]
        if empty or not _has_images(root):
            where = f"{', '.join(empty[:5])}, in {root.absolute()}" if empty else root.absolute()
            raise ValueError(f"no {' '.join(get_img_extensions())} image lies in {where}")
        reader = create_reader("", root=str(root))
        self.paths, labels = zip(*reader.samples)
        self.labels, self.classes = torch.tensor(labels), tuple(reader.class_to_idx)
        check_classes(self.classes, root)

    def open(self, i):
        return Image.open(BytesIO(Path(self.paths[i]).read_bytes()))

    def path(self, i):
        return self.paths[i]


def _has_images(folder):
    return any(
        os.path.splitext(name)[1].lower() in get_img_extensions() for _, _, names in os.walk(folder) for name in names
    )


def check_classes(classes, place):
    if "" in classes or len(classes) < 2:
        found = ", ".join(filter(None, classes)) or "images outside of folders"
        raise ValueError(f"{place.absolute()} must hold one folder of images per class, two at least; found {found}")


class Tar:
    """Images in tar files: those of one .tar file of class folders, or `members` (tar file, offset, bytes, name) given.

    Each image is read by its offset from a file opened for it, so processes and threads share no position.
    """

    mode = "RGB"

    def __init__(self, root=None, *, members=None, labels=None, classes=None):
        if root is not None:
            try:
                reader = create_reader("", root=str(root), cache_tarfiles=False, cache_tarinfo=False)
            except (tarfile.TarError, ValueError) as error:
                raise ValueError(f"{root.absolute()} is not a readable tar file with images: {error}") from error
            members = [_member(root, info, parent) for info, _, parent in reader.samples]
            labels, classes = torch.from_numpy(reader.targets), tuple(reader.class_name_to_idx)
            check_classes(classes, root)
        self.members, self.labels, self.classes = members, labels, classes

    def open(self, i):
        file, offset, size, _ = self.members[i]
        with open(file, "rb") as tar:
            tar.seek(offset)
            return Image.open(BytesIO(tar.read(size)))

    def path(self, i):
        return f"{self.members[i][0]}: {self.members[i][3]}"


def _member(root, info, parent):
    """A tar member, perhaps of a tar file in the tar file."""
    return str(root), info.offset_data + (parent.offset_data if parent else 0), info.size, info.name


def open_hfds(name, root):
    try:
        import datasets
    except ImportError as error:
        raise ImportError("hfds/ needs Hugging Face's datasets: pip install 'metamix[datasets]'") from error
    try:
        splits = datasets.get_dataset_split_names(name)
    except Exception as error:  # from a missing network to a misspelt name
        raise FileNotFoundError(f"no Hugging Face data set {name!r} could be opened: {error}") from error
    tests = [split for split in TEST_SPLITS if split in splits]
    if "train" not in splits or not tests:
        raise ValueError(
            f"{name} has the splits {', '.join(splits)}; expected train and one of {', '.join(TEST_SPLITS)}"
        )
    return HuggingFace(name, root, "train"), HuggingFace(name, root, choose_test(tests, name))


class HuggingFace:
    """A split of a Hugging Face data set with one column of images and one of class labels."""

    mode = "RGB"

    def __init__(self, name, root, split):
        import datasets

        features = datasets.load_dataset(name, split=split, cache_dir=root).features
        columns = [
            [key for key, f in features.items() if isinstance(f, kind)]
            for kind in (datasets.Image, datasets.ClassLabel)
        ]
        if [len(keys) for keys in columns] != [1, 1]:
            raise ValueError(f"{name} has the columns {features}; expected one of images and one of class labels")
        (image,), (label,) = columns
        self.reader = create_reader(f"hfds/{name}", root=root, split=split, input_key=image, target_key=label)
        self.name, self.labels = f"{name} {split}", torch.tensor(self.reader.dataset[label][:])
        self.classes = tuple(self.reader.class_to_idx)
        if self.labels.min() < 0:
            raise ValueError(f"the split {split} of {name} has images without a label")

    def open(self, i):
        with self.reader[i][0] as file:
            return Image.open(BytesIO(file.read()))

    def path(self, i):
        return f"{self.name} {i}"


def open_wds(root):
    """Shards in a folder, named after their split (x-train-0001.tar) or listed by an info.json, for timm's reader.

    Headers and labels of all shards are read through once, so that samples can be drawn in any order afterwards: the
    stream of samples that timm's reader gives depends on the number of workers and cannot be entered in the middle.
    """
    info = next((root / name for name in ("_info.json", "info.json") if (root / name).exists()), None)
    if info:
        shards = {split: listed_shards(root, split) for split in json.loads(info.read_text())["splits"]}
    else:
        names = sorted(path.name for path in root.glob("*.tar"))
        shards = {
            split: [name for name in names if split in re.split("[-_.]", name)] for split in ("train", *TEST_SPLITS)
        }
    tests = [split for split in TEST_SPLITS if shards.get(split)]
    if not shards.get("train") or not tests:
        raise FileNotFoundError(
            f"{root.absolute()} holds no shards of train and of {', '.join(TEST_SPLITS)}: expected files called like "
            "train-0000.tar and val-0000.tar, or an info.json that lists them"
        )
    train, test = (
        index_shards([root / name for name in shards[split]]) for split in ("train", choose_test(tests, root))
    )
    train.classes = test.classes = tuple(str(i) for i in range(int(max(train.labels.max(), test.labels.max())) + 1))
    return train, test


def listed_shards(root, split):
    try:
        import webdataset  # noqa: F401  timm's reader needs it, and says so less plainly
    except ImportError as error:
        raise ImportError("shards listed by an info.json need webdataset: pip install 'metamix[webdataset]'") from error
    return create_reader("wds/", root=str(root), split=split).split_info.filenames


def index_shards(shards):
    """Where in the shards each image lies, and the label that the .cls member of its name holds."""
    members, labels = {}, {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for info in filter(tarfile.TarInfo.isfile, tar):
                folder, _, name = info.name.rpartition("/")
                key, _, kind = name.partition(".")
                if kind.lower() in ("jpg", "jpeg", "png", "webp"):
                    members[shard, folder, key] = _member(shard, info, None)
                elif kind == "cls":
                    labels[shard, folder, key] = int(tar.extractfile(info).read())
    if members.keys() != labels.keys():
        key = min(members.keys() ^ labels.keys())
        raise ValueError(f"{key[0]}: sample {key[2]} must have an image (jpg, jpeg, png, webp) and a label (cls)")
    keys = sorted(members)
    return Tar(members=[members[key] for key in keys], labels=torch.tensor([labels[key] for key in keys]))
