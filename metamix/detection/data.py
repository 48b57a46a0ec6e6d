"""Load splits and batches for detectors, with torchvision's transforms in worker processes.

A batch is {"image": a list of (3, H, W) uint8 tensors of different sizes, "target": a list of their objects, "index":
(n,) int64}. An evaluation batch also holds "split", a list with the name of the split for each image, and its images
keep their height and width. If an image cannot be read, the next readable image takes its place. In an evaluation
batch, the replacement has the index -1, and it is not scored. Every random number is a function of (seed, epoch,
index).
"""

import shlex
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from metamix.data.files import content_digest
from metamix.data.loader import SampleReader, StreamLoader
from metamix.data.options import choose_splits
from metamix.data.order import EvalOrder, TrainOrder
from metamix.layers.spatial import resize_nearest
from metamix.training.task import Batch, State
from metamix.utils.options import changed_flags
from metamix.utils.text import plural

from .annotations import box_sizes, class_problem
from .coco import CocoSplit, find_splits, open_split
from .objects import Objects, draw_masks, pixel_maps
from .options import DetectionOptions

EVAL_BATCH = 8  # largest number of images in an evaluation batch of a process; the model gets them one by one


class DetectionData:
    """Open splits of a data set in COCO's format and make their loaders; to score a trained model, give its classes."""

    def __init__(self, options: DetectionOptions, classes: Sequence[str] = ()):
        self.options, train = options, not classes
        self.verify = shlex.join(["metamix", "verify", options.data_dir, *changed_flags(options, "max_pixels")])
        splits = find_splits(options.data_dir)
        masks = options.detector == "mask_rcnn"
        test, held_out = choose_splits(splits, options.test_on, options.train_on, train=train)
        self.test_split = test  # the data set's own name for the split that is scored as "test"
        self.train = [open_split(splits, name, masks, use="train on") for name in options.train_on] if train else []
        self.scored = {"test": open_split(splits, test, masks)}
        if held_out:  # val is neither trained on nor scored as "test"
            self.scored["holdout"] = open_split(splits, "val", masks)
        self.splits = [*self.train, *self.scored.values()]
        for split in self.splits:
            split.number_as(classes)
        self.name = Path(options.data_dir).resolve().name
        self.classes = self.check_splits()
        parts = {"train": self.train} | {name: [split] for name, split in self.scored.items()}
        self.identity: dict[str, Any] = {
            "samples": {name: sum(map(len, splits)) for name, splits in parts.items()},
            "classes": list(self.classes),
            "digest": {name: "-".join(split.digest() for split in splits) for name, splits in parts.items() if splits},
        }
        if train:
            self.identity["content"] = {
                name: content_digest([split.path(i) for split in splits for i in range(len(split))])
                for name, splits in parts.items()
            }
        self.notes = [
            f"left out: {plural(split.unusable, 'annotation')} of {split.annotations}; {self.verify} lists the problems"
            for split in self.splits
            if split.unusable
        ]

    def check_splits(self) -> tuple[str, ...]:
        """Check the classes, objects and image files of the splits; return the classes, which all splits share."""
        first, *others = self.splits
        for split in others:
            if problem := class_problem(split.annotations, split.classes, first.annotations, first.classes):
                raise ValueError(problem)
        if self.train and not any(split.objects for split in self.train):
            raise ValueError(
                f"there is no object to learn from in the {sum(map(len, self.train))} images of "
                f"{' and '.join(str(split.annotations) for split in self.train)}: give another --train-on"
            )
        for name, split in self.scored.items():
            if not split.objects:
                advice = "give another --test-on"
                if name == "holdout":
                    advice = "give --train-on train,val" if self.train else f"give --test-on {self.test_split}"
                raise ValueError(f"{split.annotations} has no object to score: {advice}")
        for split in self.splits:
            missing = split.missing_images()
            if len(missing) > self.options.corrupt_limit * len(split):
                raise ValueError(
                    f"{len(missing)} of the {len(split)} images of {split.annotations} are missing ({missing[0]}); "
                    f"{self.verify} lists all missing images"
                )
        return first.classes

    def box_sizes(self) -> Tensor:
        """Return the square roots of the areas of the boxes to train on, in pixels of the resized images: (n,)."""
        limits = self.options.min_size, self.options.max_size
        cocos = [split.coco for split in self.train]
        return torch.tensor([size for coco in cocos for size in box_sizes(coco.anns.values(), coco.imgs, *limits)])

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> StreamLoader:
        """Make the loader of augmented images of all splits to train on."""
        samples = JoinedSplits(self.train)
        order = TrainOrder(len(samples), batch_size, rank, world_size, seed)
        transform = TrainTransform(self.options)
        return StreamLoader(samples, self.options, order, transform, seed, collate=collate, verify=self.verify)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> dict[str, StreamLoader]:
        size = max(1, min(batch_size // world_size, EVAL_BATCH))
        return {
            name: self.scoring_loader(split, EvalOrder(len(split), size, rank, world_size), name)
            for name, split in self.scored.items()
        }

    def scoring_loader(self, samples: SampleReader, order: EvalOrder, split: str | None = None) -> StreamLoader:
        """Make a loader of images to score; `split` names the split that they belong to, if there is one."""
        batch = partial(collate, split=split)
        return StreamLoader(samples, self.options, order, v2.Identity(), collate=batch, verify=self.verify)

    def training_images(self) -> "JoinedSplits":
        """Open the images to train on, without the images of the split that is scored as "test"."""
        options, splits = self.options, find_splits(self.options.data_dir)
        names = [name for name in options.train_on if name in splits and name != self.test_split]
        opened, test = [open_split(splits, name, use="train on") for name in names], self.scored["test"]
        for split in opened:
            split.number_as(test.classes)
            if problem := class_problem(split.annotations, split.classes, test.annotations, test.classes):
                raise ValueError(problem)
        return JoinedSplits(opened)

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Scale the images to values from 0 to 1. The training loader has already augmented them."""
        return batch | {"image": [image / 255 for image in batch["image"]]}

    def scored_split(self, states: Sequence[State]) -> CocoSplit:
        """Return the split that the states of a metric belong to."""
        return self.scored[next(state["split"] for state in states if state["split"])]


class TrainTransform:
    """Crop, flip, resize and recolour images with their objects; drop objects whose box has a side below one pixel."""

    def __init__(self, options: DetectionOptions):
        low, high = (max(1, round(options.min_size * scale)) for scale in options.scales)
        limits = {size: round(options.max_size * size / options.min_size) for size in range(low, high + 1)}
        self.transform = v2.Compose(
            [
                v2.ClampBoundingBoxes(),
                v2.RandomApply([IoUCrop()], p=options.iou_crop),
                v2.RandomHorizontalFlip(options.flip),
                v2.RandomVerticalFlip(options.flip_vertical),
                v2.RandomChoice([ShorterSide(size, max_size=limit) for size, limit in limits.items()]),
                v2.ClampBoundingBoxes(),  # resizing can move a box 1e-6 pixels out of the image, which makes it invalid
                v2.RandomPhotometricDistort(p=options.photometric),
            ]
        )
        self.drop_empty = v2.SanitizeBoundingBoxes(labels_getter=itemgetter("labels", "number"))

    def __call__(self, sample: tuple[Tensor, Objects]) -> tuple[Tensor, Objects]:
        image, target = sample
        runs = target.pop("runs", None)
        target["number"] = torch.arange(len(target["labels"]))
        maps = () if runs is None else pixel_maps(*image.shape[-2:])
        image, target, *maps = self.transform((image, target, *maps))
        target = self.drop_empty(target)
        left = target.pop("number").tolist()
        if runs is not None:
            target["masks"] = draw_masks([runs[number] for number in left], *maps)
        return image, target


class IoUCrop(v2.RandomIoUCrop):
    """Crop images as torchvision does, but leave images of 1 to 3 rows as they are, where torchvision can fail."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        try:
            return super().make_params(flat_inputs)
        except ZeroDivisionError:  # the crop would have no rows
            return {}


class ShorterSide(v2.RandomShortestSize):
    """Resize as torchvision does, but keep masks aligned, and give a side one pixel if torchvision rounds it to 0."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"size": tuple(max(1, side) for side in super().make_params(flat_inputs)["size"])}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.Mask(resize_nearest(inpt, params["size"]))
        return super().transform(inpt, params)


class JoinedSplits:
    """Read the images of several splits for `StreamLoader`, numbered consecutively, split by split."""

    def __init__(self, splits: Sequence[CocoSplit]):
        self.places = [(split, i) for split in splits for i in range(len(split))]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> tuple[Tensor, Objects]:
        split, place = self.places[index]
        return split.read(place)

    def path(self, index: int) -> str:
        split, place = self.places[index]
        return split.path(place)


def collate(samples: Sequence[Any], split: str | None = None) -> Batch:
    """Make a batch of (image, objects) samples; `split` is the name of the split to score, None for training images."""
    images, targets = zip(*v2.ToPureTensor()(samples))
    batch = {
        "image": list(images),
        "target": [{key: value for key, value in target.items() if key != "runs"} for target in targets],
    }
    return batch if split is None else batch | {"split": [split] * len(images)}
