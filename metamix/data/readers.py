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
from collections import Counter
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torchvision.datasets as tv
from PIL import Image
from timm.data import create_dataset, create_reader
from timm.utils.misc import natural_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from .counter_rng import stratified

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
        except (RuntimeError, OSError) as error:  # the latter of a network that is not there
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
    place, *tests = (find_split(split, root) for split in ("train", *TEST_SPLITS))
    tests = [test.name for test in tests if test]
    if not place or not tests:
        found = ", ".join(sorted(os.listdir(root))[:10]) or "nothing"
        raise FileNotFoundError(f"{root.absolute()} holds {found}; {layout}")
    train, test = open_split(place), open_split(root / choose_test(tests, root))
    if len(train.classes) < 2:
        raise ValueError(
            f"{place.absolute()} must hold one folder of images per class, two at least; found {train.classes[0]}"
        )
    return with_same_classes(train, test)


def find_split(split, root):
    """The folder of a split or, if there is none, its archive: one may lie beside the folder that came out of it."""
    return next((place for place in (root / split, root / f"{split}.tar") if place.exists()), None)


def open_split(place):
    return open_tar(place) if place.suffix == ".tar" else Files(place)


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


def is_image(path):
    """Whether a file is an image, by its name. Hidden files and what lies in hidden folders is not."""
    return os.path.splitext(path)[1].lower() in IMG_EXTENSIONS and "/." not in f"/{path}"


def natural_order(path):
    """2.png before 10.png; names that differ in case alone have their order too, on any machine."""
    return natural_key(path), path


def label_by_folder(paths, place):
    """(labels, classes) of images by the first folder of their path in the split, as torchvision's ImageFolder does."""
    if not paths:
        raise ValueError(f"no {' '.join(IMG_EXTENSIONS)} image lies in {place.absolute()}")
    stray = next((path for path in paths if "/" not in path), None)
    if stray:
        raise ValueError(f"{place.absolute()} must hold one folder of images per class; {stray} lies outside of them")
    names = [path.partition("/")[0] for path in paths]
    classes = tuple(sorted(set(names), key=natural_order))
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name] for name in names]), classes


class Files:
    """Image files in folders named by class."""

    mode = "RGB"

    def __init__(self, root):
        files = [
            (Path(folder).relative_to(root) / name).as_posix()
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
        ]
        found = sorted(filter(is_image, files), key=natural_order)
        others = Counter(os.path.splitext(path)[1].lower() for path in files if "/." not in f"/{path}")
        pictures = others.keys() & Image.registered_extensions().keys() - set(IMG_EXTENSIONS)
        if left_out := ", ".join(f"{others[kind]} {kind}" for kind in sorted(pictures)):
            log.warning("%s: left out are files of other types, %s; save them as .png or .jpg", root, left_out)
        self.paths = [os.path.join(root, path) for path in found]
        self.labels, self.classes = label_by_folder(found, root)
        folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
        if empty := sorted(folders - set(self.classes)):
            raise ValueError(
                f"no {' '.join(IMG_EXTENSIONS)} image lies in {', '.join(empty[:5])}, in {root.absolute()}"
            )

    def open(self, i):
        return Image.open(BytesIO(Path(self.paths[i]).read_bytes()))

    def path(self, i):
        return self.paths[i]


class Tar:
    """Images in tar files, `members` (tar file, offset, bytes, name).

    Each image is read by its offset from a file opened for it, so processes and threads share no position.
    """

    mode = "RGB"

    def __init__(self, members, labels, classes=None):
        self.members, self.labels, self.classes = members, labels, classes

    def open(self, i):
        file, offset, size, _ = self.members[i]
        with open(file, "rb") as tar:
            tar.seek(offset)
            return Image.open(BytesIO(tar.read(size)))

    def path(self, i):
        return f"{self.members[i][0]}: {self.members[i][3]}"


@contextmanager
def read_tar(path):
    """A tar file whose members can be read by their offset, so not a compressed one."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise ValueError(f"{path.absolute()} is not a readable tar file, or is compressed: {error}") from error


def open_tar(path):
    """The images of a .tar file of class folders, which may lie in further folders (train/cat/0.png)."""
    with read_tar(path) as tar:
        found = sorted(tar_images(tar), key=lambda image: natural_order(image[0]))
    labels, classes = label_by_folder(in_split([name for name, _, _ in found], path.stem), path)
    return Tar([(str(path), offset, size, name) for name, offset, size in found], labels, classes)


def tar_images(tar, folder="", start=0):
    """(name, offset, bytes) of images; a tar file in the tar file, ImageNet's way, counts as a folder of its name."""
    for info in filter(tarfile.TarInfo.isfile, tar):
        name, offset = str(PurePosixPath(folder, info.name.lstrip("/"))), start + info.offset_data
        if name.endswith(".tar"):
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
                yield from tar_images(inner, name.removesuffix(".tar"), offset)
        elif is_image(name):
            yield name, offset, info.size


def in_split(paths, split):
    """Paths without what lies above the folders of classes: up to the folder called as the split, where there is one,
    else as many folders as all classes share."""
    paths = [PurePosixPath(path).parts for path in paths]
    above = os.path.commonprefix([folders for *folders, _ in paths])
    if split in above:
        count = above.index(split) + 1
    else:
        count = len(os.path.commonprefix([parts[:-2] for parts in paths]))
    return ["/".join(parts[count:]) for parts in paths]


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
    file = next((root / name for name in ("_info.json", "info.json") if (root / name).exists()), None)
    info = json.loads(file.read_text()) if file else {}
    if "splits" in info:
        shards = {split: listed_shards(root, split) for split in info["splits"]}
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
    """Where in the shards each image lies, and the label that the .cls member of its name holds.

    As for WebDataset, a sample's key is the base name up to its first dot: img.1.png is what img has as "1.png".
    """
    kinds = ", ".join(kind[1:] for kind in IMG_EXTENSIONS)
    members, labels, others = {}, {}, []
    for shard in shards:
        with read_tar(shard) as tar:
            for info in filter(tarfile.TarInfo.isfile, tar):
                folder, _, name = info.name.rpartition("/")
                key, _, kind = name.partition(".")
                if f".{kind.lower()}" in IMG_EXTENSIONS:
                    members[shard, folder, key] = str(shard), info.offset_data, info.size, info.name
                elif kind == "cls":
                    labels[shard, folder, key] = class_number(tar.extractfile(info).read(), f"{shard}: {info.name}")
                elif len(others) < 3:
                    others.append(info.name)
    if not members and not labels:
        raise ValueError(
            f"{', '.join(map(str, shards[:3]))}: no sample found; looked for a label KEY.cls and an image "
            f"KEY.EXT, EXT one of {kinds}, and KEY without a dot; found {', '.join(others) or 'no files'}"
        )
    if members.keys() != labels.keys():
        key = min(members.keys() ^ labels.keys())
        raise ValueError(f"{key[0]}: sample {key[2]} must have an image ({kinds}) and a label (cls)")
    keys = sorted(members)
    return Tar([members[key] for key in keys], torch.tensor([labels[key] for key in keys]))


def class_number(content, name):
    """The label that a .cls member holds."""
    if not content.strip().isdigit():
        raise ValueError(f"{name} holds {content[:20]!r}; expected the number of a class, counted from 0")
    return int(content)
