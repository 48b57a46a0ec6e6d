"""Load images and pairs of images for restoration: files, crops and batches.

    DIR/*.png                                      clean images, degraded on the fly; a share of them is scored
    DIR/train/*.png, DIR/test/*.png                the same with a test set, which may also be called val; where both
                                                   exist, val is held out
    DIR/input/a.png, DIR/target/a.png              pairs
    DIR/train/input, DIR/train/target, DIR/test/input, DIR/test/target

Names of pairs are matched without their endings. A training batch is {"image": (n, C, h, w), "target": (n, C, H, W)},
float32 with values from 0 to 1 (noise goes beyond), "index": (n,) int64 and "name": a list. A batch to score holds
lists of images of different sizes. Its degradation depends on the image's number alone, so every run is scored on the
same images.

With the channels y, an image in colour becomes its luminance in studio range, 16 to 235. A grey file to score or to
restore is its own luminance and keeps its range, 0 to 255, as in MATLAB's scripts of the field. A grey file to train on
is scaled to studio range: it stands for the luminance of photographs in colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamix.data.augment import neighbour
from metamix.data.counter_rng import MIX, seeded, stratified_choice
from metamix.data.files import Header, read_header
from metamix.data.find import Pairs, list_images, match_partners
from metamix.data.loader import StreamLoader
from metamix.data.order import EvalOrder, TrainOrder
from metamix.data.pairs import collate_crops, collate_pairs
from metamix.training.task import Batch
from metamix.utils.checksums import digest
from metamix.utils.text import nearest, plural

from .colour import to_y
from .degradations import PAIRS, Chain, parse_degradations
from .files import read_picture
from .inference import enlarge
from .options import ImageOptions, RestorationOptions, verify_command

TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class Sample:
    """Name a clean image and, of a pair, the degraded one; `name` is the clean one's path inside its folder."""

    name: str
    target: Path
    input: Path | None

    @cached_property
    def header(self) -> Header:
        """Read the size and colour of the clean image."""
        return read_header(self.target)

    @property
    def file_sizes(self) -> list[int]:
        """Return the sizes of the files in bytes."""
        return [path.stat().st_size for path in (self.target, self.input) if path]

    @cached_property
    def grey(self) -> bool:
        """Return whether no image of the sample has colours."""
        return self.header.grey and (self.input is None or read_header(self.input).grey)


class RestorationData:
    """Find the images, check them, and make their loaders.

    Args:
        options: of training, or of evaluation with the degradation and channels of training filled in.
        train: whether there is to be a training split.
        tested: digest of the images that were scored in training; empty if it is not known.

    Attributes:
        name: name of the data set.
        scale: size of the clean images over that of the degraded ones.
        enlarge: factor by which degraded crops are enlarged for the model; the task sets it once it knows the model.
        in_chans: channels of the images, 1 or 3.
        scored_in_grey: number of grey images to score.
        identity: values that must be the same when a run is resumed.
        notes: what the user should know.

    Raises:
        ValueError: images without a partner, of sizes that do not fit, smaller than the crop, or of other channels.
        FileNotFoundError: a folder is missing or empty.
    """

    def __init__(self, options: RestorationOptions, *, train: bool = True, tested: str = ""):
        self.options, self.notes, self.enlarge, self.seed = options, list[str](), 1, 0
        self.chain = parse_degradations(options.degradation)
        self.paired = options.degradation == PAIRS
        parts = self._find(train, tested)
        everything = [sample for samples in parts.values() for sample in samples]
        self.name = Path(options.data_dir or options.test_dir).resolve().name
        self.channels = self._choose_channels(everything)
        self.in_chans = 3 if self.channels == "rgb" else 1
        self.scale = scale_of_pairs(everything) if self.paired else self.chain.scale
        if train and options.crop > 1:
            self._check_crops(parts["train"])
        self.parts = {
            split: Samples(samples, self.channels, self.scale, studio_range=split == "train")
            for split, samples in parts.items()
        }
        self.scored_in_grey = sum(sample.grey for sample in parts["test"])
        if self.channels == "y" and self.scored_in_grey:
            self.notes.append(
                f"{plural(self.scored_in_grey, 'scored image')} in grey: compared as stored, from 0 to 255"
            )
        self.identity: dict[str, Any] = {
            "samples": {split: len(samples) for split, samples in parts.items()},
            "digest": {split: digest_of(samples) for split, samples in parts.items()},
        }

    @property
    def scored(self) -> dict[str, Samples]:
        """Return the splits to score: "test", and "holdout" where there are a folder val and another one to test on."""
        return {split: samples for split, samples in self.parts.items() if split != "train"}

    def _find(self, train: bool, tested: str) -> dict[str, list[Sample]]:
        """Find the samples of each split by the layout of the folders."""
        options = self.options
        roots, folders = find_roots(options), test_folders(options)
        if train and not options.data_dir:
            raise ValueError("no images to train on are given: --data-dir FOLDER")
        if "test" in roots:
            wanted = [split for split in roots if train or split != "train"]
            parts = {split: find_samples(roots[split], options, self.paired) for split in wanted}
            if train:
                parts["train"] = leave_out(parts["train"], roots["train"], [roots["test"], *folders])
                if not parts["train"]:
                    raise ValueError(f"all images of {roots['train']} are in {roots['test']}, none is left to train on")
                used = [root.resolve() for root in roots.values()]
                self.notes += [
                    f"{folder} is neither trained on nor scored, since --test-dir is given"
                    for folder in folders
                    if folder.resolve() not in used
                ]
            return parts
        samples = find_samples(roots["train"], options, self.paired)
        if len(samples) < 2:
            raise ValueError(f"{roots['train']} has one image, and one more is needed to score: give --test-dir FOLDER")
        count = min(max(1, round(options.test_share * len(samples))), len(samples) - 1)
        held = stratified_choice(torch.zeros(len(samples), dtype=torch.int64), count, seed=0).tolist()
        parts = {
            "train": [sample for sample, out in zip(samples, held) if not out],
            "test": [sample for sample, out in zip(samples, held) if out],
        }
        note = f"{count} of {len(samples)} images are scored"
        if train or digest_of(parts["test"]) == tested:
            note += " and not trained on"
        elif tested:
            note += ", which may have been trained on"
        self.notes.append(f"{note} (--test-dir FOLDER for others)")
        return parts if train else {"test": parts["test"]}

    def _choose_channels(self, samples: Sequence[Sample]) -> str:
        """Return rgb, grey or y; ValueError where grey was asked for and an image has colours."""
        asked = self.options.channels
        coloured = [sample for sample in samples if not sample.grey]
        if asked == "grey" and coloured:
            path = coloured[0].input if coloured[0].header.grey else coloured[0].target
            raise ValueError(f"channels is grey, but {path} is in colour: give --channels rgb, or y for its luminance")
        return asked if asked != "auto" else "rgb" if coloured else "grey"

    def _check_crops(self, samples: Sequence[Sample]) -> None:
        crop = self.options.crop
        for sample in samples:
            h, w = (side - side % self.scale for side in sample.header.size)
            if min(h, w) < crop:
                raise ValueError(
                    f"{sample.target} has {h} x {w} pixels, less than the crop of {crop}: give a smaller --crop, or "
                    f"take the image out"
                )

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> StreamLoader:
        """Make the loader of random crops; an epoch has `crops` of each image.

        Raises:
            ValueError: mixup leaves a process an odd number of crops.
        """
        if self.options.mixup and batch_size // world_size % 2:
            raise ValueError(
                f"mixup pairs neighbours, and batch_size {batch_size} leaves each of {world_size} processes an odd "
                f"number of crops; give an even one"
            )
        options, samples, self.seed = self.options, self.parts["train"], seed
        order = TrainOrder(len(samples) * options.crops, batch_size, rank, world_size, seed)
        transform = TrainCrop(options.crop, options.flip, options.rotate, self.chain, self.scale, self.enlarge)
        return self._loader(samples, order, transform, seed, collate_crops)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> dict[str, StreamLoader]:
        """Make the loaders of the splits to score, whose images come whole, one by one."""
        loaders = {}
        for split, samples in self.scored.items():
            order = EvalOrder(len(samples), 1, rank, world_size)
            folder = self.options.test_dir if split == "test" else ""
            loaders[split] = self._loader(samples, order, WholeImage(self.chain), 0, collate_pairs, folder)
        return loaders

    def _loader(
        self, samples: Samples, order: Any, transform: Any, seed: int, collate: Any, folder: str = ""
    ) -> StreamLoader:
        """Make a loader; `folder` is that of the images if it is not data_dir."""
        return StreamLoader(
            samples,
            self.options,
            order,
            transform,
            seed,
            mark_replaced=True,
            collate=collate,
            verify=verify_command(self.options, folder or self.options.data_dir),
        )

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Mix neighbouring crops, and their targets in the same ratio. The worker processes have done all else."""
        if not self.options.mixup:
            return batch
        with seeded(self.seed, MIX, epoch, step):
            share = np.random.beta(self.options.mixup, self.options.mixup)
        mixed = {key: share * batch[key] + (1 - share) * neighbour(batch[key]) for key in ("image", "target")}
        return batch | mixed


Pair = tuple[str, Tensor, Tensor | None]  # name, clean image and degraded image


class Samples:
    """Read the images of a split for `StreamLoader`. Numbers beyond the last image begin again with the first.

    Args:
        samples: of the split.
        channels: rgb, grey or y.
        scale: that the sides of clean images are cut to multiples of.
        studio_range: with y, scale grey images to studio range too.
    """

    def __init__(self, samples: Sequence[Sample], channels: str, scale: int, *, studio_range: bool):
        self.samples, self.channels, self.scale, self.studio_range = samples, channels, scale, studio_range

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, index: int) -> str:
        return str(self.samples[index].target)

    def read(self, index: int) -> Pair:
        """Read the clean image, cut to a multiple of the scale, and the degraded one of a pair: (C, H, W) each."""
        sample = self.samples[index]
        studio_range = self.channels == "y" and (self.studio_range or not sample.grey)
        target = read_tensor(sample.target, self.channels, studio_range)
        h, w = (side - side % self.scale for side in target.shape[-2:])
        degraded = None if sample.input is None else read_tensor(sample.input, self.channels, studio_range)
        return sample.name, target[:, :h, :w], degraded


class TrainCrop:
    """Cut, degrade, flip and turn at random; the loader seeds torch's generator for each sample.

    A crop is degraded with the pixels around it that the degradation reaches for, where the image has them.
    """

    def __init__(self, crop: int, flip: bool, rotate: bool, chain: Chain, scale: int, enlarge: int):
        self.crop, self.flip, self.rotate = crop, flip, rotate
        self.chain, self.scale, self.enlarge = chain, scale, enlarge

    def __call__(self, pair: Pair) -> tuple[str, Tensor, Tensor]:
        name, target, degraded = pair
        crop, scale, rng = self.crop, self.scale, torch.default_generator
        top, left = (scale * self.randint((side - crop) // scale + 1) for side in target.shape[-2:])
        reach = self.chain.reach + (3 * scale if self.enlarge > 1 else 0)
        rows, columns = (
            slice(max(0, start - reach), min(side, start + crop + reach))
            for start, side in zip((top, left), target.shape[-2:])
        )
        if degraded is None:
            degraded = self.chain(target[:, rows, columns], rng)
        else:
            degraded = degraded[:, shrink(rows, scale), shrink(columns, scale)]
        degraded = enlarge(degraded, self.enlarge)
        ratio = scale // self.enlarge
        y, x, side = (top - rows.start) // ratio, (left - columns.start) // ratio, crop // ratio
        images = [degraded[:, y : y + side, x : x + side], target[:, top : top + crop, left : left + crop]]
        if self.flip:
            dims = [dim for dim in (-2, -1) if self.randint(2)]
            images = [image.flip(dims) for image in images]
        if self.rotate:
            turns = self.randint(4)
            images = [image.rot90(turns, (-2, -1)) for image in images]
        return name, images[0], images[1]

    @staticmethod
    def randint(high: int) -> int:
        return int(torch.randint(high, (), generator=torch.default_generator))


class WholeImage:
    """Degrade a whole image to score; the loader seeds torch's generator with the image's number."""

    def __init__(self, chain: Chain):
        self.chain = chain

    def __call__(self, pair: Pair) -> tuple[str, Tensor, Tensor]:
        name, target, degraded = pair
        return name, self.chain(target, torch.default_generator) if degraded is None else degraded, target


def shrink(part: slice, scale: int) -> slice:
    return slice(part.start // scale, part.stop // scale)


def read_tensor(path: Path, channels: str, studio_range: bool = False) -> Tensor:
    """Read an image file as (C, H, W) float32 with values from 0 to 1.

    Args:
        channels: "rgb", "grey", or "y" for the luminance, in studio range where the file has colours.
        studio_range: with y, scale a grey file to studio range too.

    Raises:
        CorruptImage: the file cannot be read.
    """
    colours = read_picture(path).colours
    if channels == "grey" or (channels == "y" and len(colours) == 1 and not studio_range):
        return colours[:1]
    colours = colours.expand(3, -1, -1)
    return to_y(colours) if channels == "y" else colours


def test_folders(options: ImageOptions) -> list[Path]:
    """List the folders test and val of the data set, as far as they exist."""
    folders = [Path(options.data_dir, name) for name in TEST_FOLDERS if options.data_dir]
    return [folder for folder in folders if folder.is_dir()]


def find_roots(options: ImageOptions) -> dict[str, Path]:
    """Return the folders of the splits.

    "test" is missing where a share of "train" is scored, and "holdout" where there is no folder val beside the test.
    """
    root, folders = Path(options.data_dir), test_folders(options)
    has_train = options.data_dir and (root / "train").is_dir()
    roots = {"train": root / "train" if has_train else root}
    if options.test_dir or folders:
        roots["test"] = Path(options.test_dir) if options.test_dir else folders[0]
        for folder in folders:
            if folder.name == "val" and folder.resolve() != roots["test"].resolve():
                roots["holdout"] = folder
    return roots


def find_samples(root: Path, options: ImageOptions, paired: bool) -> list[Sample]:
    """Find the clean images of a folder and, if `paired`, match the degraded ones by their names without endings.

    Raises:
        Unmatched: an image has no partner.
        ValueError: two images have one name.
        FileNotFoundError: there are no images.
    """
    inputs, targets = root / options.input_folder, root / options.target_folder
    if not paired:
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        return [Sample(name, path, None) for name, path in list_images(targets if targets.is_dir() else root).items()]
    if missing := next((place for place in (inputs, targets) if not place.is_dir()), None):
        found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        raise FileNotFoundError(
            f"there is no folder {missing}{nearest(missing.name, found)} Pairs need {inputs} and {targets}; for clean "
            f"images that are to be degraded, give --degradation, such as noise:25 (metamix verify: --clean); images "
            f"without targets are restored by metamix predict"
        )
    return samples_of(match_partners(targets, inputs, "--input-name", options.input_name))


def leave_out(samples: Sequence[Sample], root: Path, folders: Iterable[Path]) -> list[Sample]:
    """Return the samples of `root` without those in the folders that are inside it."""
    inside = {folder for folder in map(Path.resolve, folders) if root.resolve() in folder.parents}
    return [sample for sample in samples if not inside or inside.isdisjoint(sample.target.resolve().parents)]


def samples_of(pairs: Pairs) -> list[Sample]:
    """Return the samples of matched clean and degraded images."""
    return [Sample(name, target, degraded) for name, (target, degraded) in pairs.items()]


def digest_of(samples: Sequence[Sample]) -> str:
    """Hash the names and the file sizes of samples."""
    return digest((sample.name, *sample.file_sizes) for sample in samples)


def scale_of_pairs(samples: Sequence[Sample]) -> int:
    """Return how many times larger targets are than inputs: whole, and the same for all pairs.

    Raises:
        ValueError: see `scale_of_pair`.
    """
    scale = None
    for sample in samples:
        scale = scale_of_pair(sample, scale)
    return scale or 1


def scale_of_pair(sample: Sample, expected: int | None) -> int:
    """Return how many times larger the target is than the input.

    The target may have up to `scale` - 1 more rows and columns at the bottom and right, which are cut off.

    Args:
        expected: scale of the other pairs, if it is known.

    Raises:
        ValueError: no scale fits, or another one than the expected.
    """
    assert sample.input is not None
    (h, w), (th, tw) = read_header(sample.input).size, sample.header.size
    scale = max(th // h, 1)
    if (h * scale, w * scale) != (th - th % scale, tw - tw % scale):
        raise ValueError(
            f"{sample.input} has {h} x {w} pixels and {sample.target} {th} x {tw}; the target of a pair must have the "
            f"input's size, or a whole number of times that size"
        )
    if expected not in (None, scale):
        raise ValueError(
            f"{sample.target} has a scale of {scale} over its input, but other pairs have a scale of {expected}: keep "
            f"pairs of one scale"
        )
    return scale
