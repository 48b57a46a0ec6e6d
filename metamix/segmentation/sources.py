"""Find the images and masks of a data set, in the layouts that docs/segmentation.md shows.

torchvision lists the files of Cityscapes, VOC and Oxford-IIIT Pet. Splits are called train, val and test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision.datasets as torchvision_sets

from metamix.data.files import read_header
from metamix.data.find import Pairs, match_partners
from metamix.utils.checks import check_choice
from metamix.utils.files import read_text

from .labels import IGNORED, Labels, make_labels, read_classes, read_palette, voc_colour
from .options import SegmentationOptions

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PET_CLASSES = ("pet", "background", "border")
AS_PUBLISHED = "correct the mask, or take the file as published"


@dataclass(frozen=True)
class MaskedImage:
    """An image and its mask; `name` is the image's path inside its split, without extension."""

    name: str
    image: Path
    mask: Path


Split = list[MaskedImage]


@dataclass(frozen=True)
class MaskedSet:
    """The splits and labels of a data set."""

    labels: Labels
    splits: Sequence[str]
    samples: Callable[[str], Split]  # finds the samples of a split

    def find(self, split: str) -> Split:
        """Find the samples of a split; raise `Unmatched` or FileNotFoundError if an image or a mask is missing."""
        check_choice("split", split, self.splits)
        try:
            return self.samples(split)
        except RuntimeError as error:  # torchvision raises it if files are missing
            raise FileNotFoundError(str(error).replace("download=True", "--download with metamix train")) from None


def open_set(options: SegmentationOptions) -> MaskedSet:
    """Open the data set that the options name; raise ValueError or FileNotFoundError if it is missing."""
    if not options.data_dir:
        raise ValueError("no data set is given: give --data-dir FOLDER")
    if not Path(options.data_dir).is_dir() and not (options.download and options.data in ("voc", "oxford_pets")):
        raise FileNotFoundError(f"there is no folder {options.data_dir}")
    return OPENERS[options.data](options)


def open_folder(options: SegmentationOptions) -> MaskedSet:
    """Open DIR/SPLIT/images and DIR/SPLIT/masks."""
    root = Path(options.data_dir)
    names = [name for name in ("train", "val", "test") if (root / name / "images").is_dir()]
    if not names:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise FileNotFoundError(
            f"{root} has no folder train/images, val/images or test/images; it has the folders "
            f"{', '.join(folders) or '(none)'}. Give a folder with SPLIT/images and SPLIT/masks, or name a published "
            f"layout (--data cityscapes, or metamix verify cityscapes), or use `metamix convert masks`"
        )

    def find(split: str) -> Split:
        folder = root / split
        return samples_of(match_partners(folder / "images", folder / "masks", "--mask-name", options.mask_name))

    labels = make_labels(
        read_classes(root / "classes.txt"),
        ignore_index=options.ignore_index,
        reduce_zero_label=options.reduce_zero_label,
        palette=read_palette(root / "palette.txt"),
    )
    return MaskedSet(labels, names, find)


def open_ade20k(options: SegmentationOptions) -> MaskedSet:
    """Open ADEChallengeData2016."""
    root = Path(options.data_dir)
    table = root / "objectInfo150.txt"
    if not table.is_file():
        raise FileNotFoundError(f"there is no {table}: it comes with ADEChallengeData2016 and names the classes")
    rows = [line.split("\t") for line in read_text(table).splitlines()[1:] if line.strip()]
    classes = tuple(row[-1].split(",")[0].strip() for row in rows)
    folders = {"train": "training", "val": "validation"}

    def find(split: str) -> Split:
        images, masks = (root / kind / folders[split] for kind in ("images", "annotations"))
        return samples_of(match_partners(images, masks, "--mask-name"))

    values = {0: IGNORED} | {i + 1: i for i in range(len(classes))}
    return MaskedSet(Labels(classes, values, advice=AS_PUBLISHED), [*folders], find)


def open_cityscapes(options: SegmentationOptions) -> MaskedSet:
    """Open Cityscapes, with the mask values and colours of torchvision's table."""
    table = [row for row in torchvision_sets.Cityscapes.classes if not row.ignore_in_eval]  # in order of train_id
    values = {row.id: IGNORED for row in torchvision_sets.Cityscapes.classes if row.id >= 0}  # no mask has -1
    values |= {row.id: row.train_id for row in table}

    def find(split: str) -> Split:
        for folder in ("leftImg8bit", "gtFine"):
            if not (path := Path(options.data_dir) / folder / split).is_dir():
                raise FileNotFoundError(f"there is no {path}: --data-dir must hold leftImg8bit and gtFine")
        data: Any = torchvision_sets.Cityscapes(options.data_dir, split, target_type="semantic")
        pairs = [(Path(image), Path(mask)) for image, mask in sorted(zip(data.images, (t[0] for t in data.targets)))]
        names = (image.relative_to(data.images_dir).with_suffix("").as_posix() for image, _ in pairs)
        return [MaskedImage(name, image, mask) for name, (image, mask) in zip(names, pairs)]

    classes, colours = tuple(row.name for row in table), tuple(row.color for row in table)
    return MaskedSet(Labels(classes, values, colours, AS_PUBLISHED), ("train", "val"), find)


def open_voc(options: SegmentationOptions) -> MaskedSet:
    """Open PASCAL VOC 2012."""

    def find(split: str) -> Split:
        data = torchvision_sets.VOCSegmentation(options.data_dir, "2012", split, download=options.download)
        pairs = zip(map(Path, data.images), map(Path, data.masks))
        return [MaskedImage(image.stem, image, mask) for image, mask in pairs]

    colours = (*map(voc_colour, range(len(VOC_CLASSES))), voc_colour(255))
    values = {i: i for i in range(len(VOC_CLASSES))} | {255: IGNORED}
    return MaskedSet(Labels(VOC_CLASSES, values, colours, AS_PUBLISHED), ("train", "val"), find)


def open_oxford_pets(options: SegmentationOptions) -> MaskedSet:
    """Open the trimaps of Oxford-IIIT Pet."""

    def find(split: str) -> Split:
        data = torchvision_sets.OxfordIIITPet(
            options.data_dir, "trainval" if split == "train" else split, "segmentation", download=options.download
        )
        return [MaskedImage(image.stem, image, mask) for image, mask in zip(data._images, data._segs)]

    return MaskedSet(Labels(PET_CLASSES, {1: 0, 2: 1, 3: 2}, advice=AS_PUBLISHED), ("train", "test"), find)


OPENERS: dict[str, Callable[[SegmentationOptions], MaskedSet]] = {
    "folder": open_folder,
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "voc": open_voc,
    "oxford_pets": open_oxford_pets,
}


def samples_of(pairs: Pairs) -> Split:
    """Return the samples of matched images and masks."""
    return [MaskedImage(stem, image, mask) for stem, (image, mask) in pairs.items()]


def check_sizes(samples: Split) -> list[tuple[int, int]]:
    """Return the sizes (height, width) of the images; raise ValueError if a mask's size differs or a file is broken."""
    sizes = []
    for sample in samples:
        size, mask_size = read_header(sample.image).size, read_header(sample.mask).size
        if size != mask_size:
            raise ValueError(f"{sizes_differ(sample, size, mask_size)}: they must have the same size")
        sizes.append(size)
    return sizes


def sizes_differ(sample: MaskedImage, size: Sequence[int], mask_size: Sequence[int]) -> str:
    """Say which sizes (height, width) an image and its mask have."""
    (h, w), (mask_h, mask_w) = size, mask_size
    return f"{sample.image} has {h} x {w} pixels, but its mask {sample.mask} has {mask_h} x {mask_w}"
