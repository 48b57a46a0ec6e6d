"""Convert labels from another program to a data set that a task trains on: `metamix convert`."""

import hashlib
import os
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metamix.data.options import ImageOptions
from metamix.data.pairs import Files, Pairs
from metamix.utils.checks import check_choice
from metamix.utils.files import check_output_folder, filled_at_once
from metamix.utils.options import option, parse_command, positional
from metamix.utils.rules import ShareBetween
from metamix.utils.text import exit_with_message, list_names, plural, printable

from .registry import TASKS, find_task

TRAIN_SHARE = 0.8  # share of the images to train on if the source has no splits
EPILOG = """formats:
  voc        Pascal VOC or LabelImg: Annotations/*.xml and JPEGImages/, annotations/ and images/, or all in one folder;
             or train/, valid/ and test/, each with one of these layouts
  yolo       boxes or polygons: data.yaml, images/train/ and labels/train/, or train/images/ and train/labels/;
             obj.data of Darknet and of CVAT's YOLO 1.1
  coco       an annotation file and its images; train/_annotations.coco.json of Roboflow;
             annotations/instances_*.json of COCO and CVAT
  csv        boxes, with the columns file, class, xmin, ymin, xmax, ymax; or classes of images: file, class
  instances  images and masks that number the objects, in images/ and masks/ or masks/CLASS/, or a.jpg and a_mask.png
  folders    a folder for each label; an image that is in several folders under one name gets all these labels
  masks      images and masks of any values or colours, in images/ and masks/, or a.jpg and a_mask.png
  labelme    polygons: a.json next to a.jpg, or in another folder
  polygons   a data set in COCO's format, as `coco` and `yolo` write it; its polygons are drawn as masks

The images are linked or copied, and the source is not changed. The command prints what it leaves out."""


@dataclass(frozen=True)
class Sample:
    """An image to convert."""

    file: Path
    name: str  # path of the image in the folder of its split
    split: str = ""  # train, val or test; "" if the source names no split
    group: str = ""  # name of a group, such as a class; each group is split by the same share
    label: Any = None  # the label in the form that `LabelledImages.write` takes
    label_file: str = ""  # path of a label file in the folder of its split; "" if there is none


@dataclass
class LabelledImages:
    """Images with checked labels. A task derives a class from it unless the labels are names of folders."""

    flags: tuple[str, ...]  # arguments of `metamix train` for the data set, before `--data-dir`
    samples: list[Sample] = field(default_factory=list)
    # Files, folders or lines that are odd or were left out; the key is a clause that says what is wrong.
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def write(self, folder: Path, splits: Mapping[str, Sequence[Sample]]) -> str:
        """Write the labels of each split, and return a text that counts them, such as "3 classes"."""
        return plural(len({sample.group for sample in self.samples}), "class")

    def note_rest(self, kind: str, images: Files, partners: Files, pairs: Pairs) -> None:
        """Note images without a partner and partners without an image; `kind` names the partners, such as "mask"."""
        used = {image for _, _, image in pairs.values()}
        self.notes[f"images without a {kind} were left out"] += [str(f) for f in images.values() if f not in used]
        self.notes[f"{kind}s without an image were left out"] += [str(f) for f in partners.values() if f not in pairs]


# A reader takes a file or folder. It returns None for labels of another task. If it fails, it raises ValueError or
# OSError.
Reader = Callable[[Path], LabelledImages | None]


@dataclass
class ConvertOptions(ImageOptions):
    """Convert labels from another program to a data set to train on."""

    format: str = positional(
        "format of the labels: voc, yolo, coco, csv, instances, folders, masks, labelme or polygons", metavar="FORMAT"
    )
    source: Path = positional("folder of images and labels, or the CSV, YAML or JSON file in it", metavar="SOURCE")
    out: Path = positional("folder to write, new or empty", metavar="OUT")
    split: ShareBetween | None = option(
        None,
        f"share of the images to train on; the others become val; default: the source's own splits, or {TRAIN_SHARE}",
    )


def main(argv: Sequence[str]) -> None:
    """Convert labels, and print what was left out and the next commands; exit with a message if that fails."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, _ = parse_command(argv, ConvertOptions, "metamix convert", epilog=EPILOG)
        out = options.out
        check_output_folder(out, ())
        labels = read_labels(options.format, options.source)
        if not labels.samples:
            why = "; ".join(f"{clause}: {list_names(places)}" for clause, places in labels.notes.items() if places)
            raise ValueError(f"{options.source} has no image that can be used{why and ': '}{why}")
        splits = choose_splits(labels, options.split)
        check_names(out, splits)
        with filled_at_once(out) as folder:
            link_images(folder, splits)
            written = labels.write(folder, splits)
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in splits.items())
    lines = [f"{out}: {counts} images, {written}"]
    lines += [f"note: {clause}: {list_names(places)}" for clause, places in labels.notes.items() if places]
    commands = ["metamix", "verify", str(out)], ["metamix", "train", *labels.flags, "--data-dir", str(out)]
    print("\n".join(map(printable, [*lines, "next:", *(f"  {shlex.join(command)}" for command in commands)])))


def read_labels(format: str, source: Path) -> LabelledImages:
    """Read labels with the first reader of the format that takes them; raise ValueError if no reader does."""
    specs = [spec for spec in map(find_task, TASKS) if spec.convert]
    readers: list[tuple[str, Reader]] = [item for spec in specs for item in spec.part("convert").items()]
    names = sorted({name for name, _ in readers})
    check_choice("format", format, names)
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}")
    labels = next(filter(None, (reader(source) for name, reader in readers if name == format)), None)
    if labels is None:
        raise ValueError(f"no task reads the labels of {source}")
    return labels


def choose_splits(labels: LabelledImages, share: float | None) -> dict[str, list[Sample]]:
    """Choose the images of each split.

    Without a share, the source's splits are kept if one is for training and another can be scored. Otherwise the images
    of each group are divided by a hash of their names, so that every machine chooses the same images.
    """
    by_split: dict[str, list[Sample]] = {"train": [], "val": [], "test": [], "": []}
    for sample in labels.samples:
        by_split[sample.split].append(sample)
    if share is None and by_split["train"] and (by_split["val"] or by_split["test"]):
        without_split = by_split.pop("")
        labels.notes["images in none of the source's splits were left out"] += [str(s.file) for s in without_split]
        places = Counter(sample.file.absolute() for samples in by_split.values() for sample in samples)
        labels.notes["images belong to several splits"] += [str(file) for file, count in places.items() if count > 1]
        return {split: samples for split, samples in by_split.items() if samples}
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in once(labels.samples):
        groups[sample.group].append(sample)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for samples in groups.values():
        ranked = sorted(samples, key=lambda s: hashlib.sha256(os.fsencode(s.name)).digest())
        count = round((1 - (share or TRAIN_SHARE)) * len(samples))
        held_out = {sample.name for sample in ranked[: min(max(count, 1), len(samples) - 1)]}  # keep one to train on
        for sample in samples:
            splits["val" if sample.name in held_out else "train"].append(sample)
    return {split: samples for split, samples in splits.items() if samples}


def once(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Return each image of a group once, as first listed; raise ValueError if it is listed with different labels."""
    first: dict[tuple[str, Path], Sample] = {}
    for sample in samples:
        other = first.setdefault((sample.group, sample.file.absolute()), sample)
        if other.label != sample.label:
            raise ValueError(f"{sample.file} is listed twice with different labels: correct them")
    return first.values()


def check_names(out: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Raise ValueError if two images or labels would get the same path, or a path outside of their split's folder."""
    files: dict[Path, Path] = {}
    for split, samples in splits.items():
        for sample in samples:
            for name in filter(None, (sample.name, sample.label_file)):
                folder = out / split
                place = folder / name
                if not Path(os.path.normpath(place)).is_relative_to(os.path.normpath(folder)):
                    raise ValueError(f"{sample.file} would become {place}, which is not in {folder}: correct its path")
                if place in files:
                    raise ValueError(f"{files[place]} and {sample.file} would both become {place}: rename one of them")
                files[place] = sample.file


def link_images(out: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Hard-link the images into the folders of their splits; copy images that cannot be linked."""
    for split, samples in splits.items():
        for sample in samples:
            place = out / split / sample.name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(sample.file.resolve(), place)
            except FileExistsError:  # A.jpg and a.jpg on a disk that ignores case; a copy would overwrite the source
                raise
            except OSError:
                shutil.copy2(sample.file, place)
