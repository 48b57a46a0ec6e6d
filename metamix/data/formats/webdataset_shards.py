"""Open WebDataset shards: tar files with an image KEY.EXT and a label KEY.cls for every sample.

The headers and labels of all shards are read once, so samples can be drawn in any order. timm's reader is not used,
since its stream of samples depends on the number of workers and cannot start in the middle.
"""

import re
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from metamix.utils.files import read_json
from metamix.utils.rules import check_entries, rule
from metamix.utils.text import list_names
from metamix.weights.metadata import MAX_CLASSES

from .base import TEST_SPLITS, choose_test_split
from .tar import Member, TarImages, read_tar

MAX_LABEL_BYTES = 32
REMEDY = "Repair it or remove it"


def open_webdataset(root: Path, test_on: str) -> tuple[TarImages, TarImages]:
    """Open the training and the test split of shards in a folder.

    Shards are named after their split (x-train-0001.tar) or listed by an info.json or _info.json for timm's reader.
    """
    shards = find_shards(root)
    tests = [split for split in shards if split != "train" and shards[split]]
    if not shards.get("train") or not tests:
        raise FileNotFoundError(
            f"{root.absolute()} needs shards for train and for {' or '.join(TEST_SPLITS)}: expected files such as "
            "train-0000.tar and val-0000.tar, or an info.json that lists them"
        )
    chosen = choose_test_split(tests, test_on, root)
    (train, train_labels), (test, test_labels) = (
        index_shards([root / name for name in shards[split]]) for split in ("train", chosen)
    )
    classes = tuple(str(i) for i in range(int(max(train_labels.max(), test_labels.max())) + 1))
    return TarImages("train", train, train_labels, classes), TarImages(chosen, test, test_labels, classes)


def find_shards(root: Path) -> dict[str, list[str]]:
    """Return the file names of the shards by split; raise ValueError if an info.json is damaged."""
    file = next((root / name for name in ("_info.json", "info.json") if (root / name).exists()), None)
    info = read_json(file, REMEDY) if file else {}
    if file and "splits" in info:
        check_entries(info, {"splits": rule(dict[str, dict[str, Any]])}, file, None, REMEDY)
        for split, entry in info["splits"].items():
            check_entries(entry, {"filenames": rule(tuple[str, ...])}, file, f"the split {split!r}", REMEDY)
        return {split: entry["filenames"] for split, entry in info["splits"].items()}
    names = sorted(path.name for path in root.glob("*.tar"))
    return {split: [name for name in names if split in re.split("[-_.]", name)] for split in ("train", *TEST_SPLITS)}


def index_shards(shards: list[Path]) -> tuple[list[Member], torch.Tensor]:
    """Return the images of shards and their labels (N,) int64.

    As in WebDataset, a sample's key is the file name up to its first dot: img.1.png is the file
    "1.png" of the sample img.
    """
    kinds = ", ".join(kind[1:] for kind in IMG_EXTENSIONS)
    samples: dict[tuple[Path, str, str], dict[str, Any]] = defaultdict(dict)  # image and label of each sample
    others: list[str] = []
    for shard in shards:
        with read_tar(shard) as tar:
            for info in filter(tarfile.TarInfo.isfile, tar):
                folder, _, name = info.name.rpartition("/")
                key, _, kind = name.partition(".")
                is_image = f".{kind.lower()}" in IMG_EXTENSIONS
                if not is_image and kind != "cls":
                    others.append(info.name)
                    continue
                what, sample = "image" if is_image else "label", samples[shard, folder, key]
                if what in sample:
                    raise ValueError(f"{shard}: sample {key} has two {what}s; the second is {info.name}: keep one")
                if is_image:
                    sample[what] = Member(shard, info.offset_data, info.size, info.name, f"{shard.name}/{info.name}")
                else:
                    content = tar.extractfile(info)
                    assert content is not None  # it is a regular file
                    sample[what] = parse_label(content.read(MAX_LABEL_BYTES + 1), f"{shard}: {info.name}")
    if not samples:
        raise ValueError(
            f"{list_names(shards, 3)}: no sample found; expected a label KEY.cls and an image KEY.EXT, "
            f"with EXT one of {kinds} and KEY without a dot; found {', '.join(others[:3]) or 'no files'}"
        )
    ordered = sorted(samples.items())
    for (shard, _, key), sample in ordered:
        if len(sample) < 2:
            raise ValueError(f"{shard}: sample {key} must have an image ({kinds}) and a label (cls)")
    return [sample["image"] for _, sample in ordered], torch.tensor([sample["label"] for _, sample in ordered])


def parse_label(content: bytes, name: str) -> int:
    """Parse the class number in a .cls file."""
    if not content.strip().isdigit() or len(content) > MAX_LABEL_BYTES:
        raise ValueError(f"{name} holds {content[:20]!r}; expected the number of a class, counted from 0")
    if int(content) >= MAX_CLASSES:
        raise ValueError(f"{name} holds the label {int(content)}; it must be below {MAX_CLASSES:,}, counted from 0")
    return int(content)
