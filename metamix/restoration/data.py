"""Load images and pairs of images for restoration: splits, loaders and batches.

A training batch is {"image": (n, C, h, w), "target": (n, C, H, W), "index": (n,) int64, "name": a list}. Images and
targets are float32 with values from 0 to 1; noise may push images outside this range. A batch to score holds lists
of images and of targets, since their sizes differ. Images to score are degraded with random numbers that depend only on
the index of the image, so every run is scored on the same images.

With `--channels y`, a colour image is converted to its luminance in studio range, 16 to 235. A grey file to score or to
restore keeps its values from 0 to 255, as in the MATLAB scripts of the field. A grey file to train on is scaled to
studio range, since the model will see the luminance of colour photographs.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamix.data.augment import neighbour
from metamix.data.counter_rng import MIX, seeded, stratified_choice
from metamix.data.files import content_digest
from metamix.data.loader import SampleReader, StreamLoader, collate_crops, collate_pairs
from metamix.data.order import EvalOrder, TrainOrder
from metamix.training.task import Batch
from metamix.utils.text import plural
from metamix.weights.metadata import ModelMetadata

from .degradations import Chain, parse_degradations
from .files import read_picture
from .inference import enlarge
from .options import RestorationOptions, verify_command
from .pixels import to_y
from .sources import ImagePair, digest_of, find_roots, find_samples, leave_out, scale_of_pair, test_folders

Pair = tuple[str, Tensor, Tensor | None]  # name, clean image and degraded image, which is None until it is made


class RestorationData:
    """Find the images, check them, and make their loaders.

    Args:
        options: the training options. To evaluate weights, give the degradation and channels they were trained with.
        seed: seed of mixup.
        metadata: metadata of the weights to evaluate, or None for training. The training split is not opened for an
            evaluation.
    """

    def __init__(self, options: RestorationOptions, seed: int = 0, metadata: ModelMetadata | None = None):
        self.options, self.seed, self.notes = options, seed, list[str]()
        self.enlarge = 1  # factor by which crops are enlarged for the model; the task sets it after choosing the model
        self.chain = parse_degradations(options.degradation)
        self.paired = not self.chain.steps
        digests, train = metadata.extra.get("digest") if metadata else None, metadata is None
        parts = self._find(train, digests.get("test", "") if isinstance(digests, dict) else "")
        if train and options.test_share != type(options).test_share and (scored := find_roots(options).get("test")):
            raise ValueError(f"test_share is {options.test_share:g}, but {scored} is scored: leave --test-share out")
        if isinstance(digests, dict) and digests.get("train") == digest_of(parts["test"]):
            self.notes.append("the model was trained on the images that are scored: give other images")
        everything = [sample for samples in parts.values() for sample in samples]
        self.name = Path((not train and options.test_dir) or options.data_dir or options.test_dir).resolve().name
        self.channels = self._choose_channels(everything, metadata.in_chans if metadata else None)
        self.in_chans = 3 if self.channels == "rgb" else 1
        scale = None
        for sample in everything if self.paired else []:
            scale = scale_of_pair(sample, scale)
        self.scale = scale or self.chain.scale  # how many times larger the clean images are than the degraded ones
        if train and options.crop > 1:
            self._check_crops(parts["train"])
        self.parts = {
            split: RestorationSplit(samples, self.channels, self.scale, studio_range=split == "train")
            for split, samples in parts.items()
        }
        # "test", and "holdout" if there is a folder val that is not the test folder
        self.scored = {split: samples for split, samples in self.parts.items() if split != "train"}
        self.scored_in_grey = sum(sample.grey for sample in parts["test"])
        if self.channels == "y" and self.scored_in_grey:
            grey = plural(self.scored_in_grey, "scored image")
            self.notes.append(f"grey files are compared as stored, 0 to 255 ({grey})")
        self.identity: dict[str, Any] = {
            "samples": {split: len(samples) for split, samples in parts.items()},
            "digest": {split: digest_of(samples) for split, samples in parts.items()},
        }
        if train:
            self.identity["content"] = {
                split: content_digest([path for sample in samples for path in sample.files])
                for split, samples in parts.items()
            }

    def _find(self, train: bool, test_digest: str) -> dict[str, list[ImagePair]]:
        """Find the samples of each split by the layout of the folders."""
        options = self.options
        roots, folders = find_roots(options), test_folders(options)
        if train and not options.data_dir:
            raise ValueError("no images to train on are given: give --data-dir FOLDER")
        if "test" in roots:
            wanted = [split for split in roots if train or split != "train"]
            parts = {split: find_samples(roots[split], options, self.paired) for split in wanted}
            if train:
                parts["train"] = leave_out(parts["train"], roots["train"], [roots["test"], *folders])
                if not parts["train"]:
                    raise ValueError(
                        f"all images of {roots['train']} are in {roots['test']}, so none is left to train on: give "
                        f"another --data-dir"
                    )
                used = [root.resolve() for root in roots.values()]
                self.notes += [
                    f"{folder} is neither trained on nor scored, since --test-dir is given"
                    for folder in folders
                    if folder.resolve() not in used
                ]
            return parts
        samples = find_samples(roots["train"], options, self.paired)
        if len(samples) < 2:
            raise ValueError(f"{roots['train']} has one image, too few to train and score: give --test-dir FOLDER")
        count = min(max(1, round(options.test_share * len(samples))), len(samples) - 1)
        held = stratified_choice(torch.zeros(len(samples), dtype=torch.int64), count).tolist()
        parts = {
            "train": [sample for sample, out in zip(samples, held) if not out],
            "test": [sample for sample, out in zip(samples, held) if out],
        }
        note = f"{count} of {plural(len(samples), 'image')} {'is' if count == 1 else 'are'} scored"
        if train or digest_of(parts["test"]) == test_digest:
            note += " and not trained on"
        elif test_digest:
            note += "; the model may have been trained on scored images"
        self.notes.append(f"{note} (to score other images, give --test-dir FOLDER)")
        return parts if train else {"test": parts["test"]}

    def _choose_channels(self, samples: Sequence[ImagePair], model_channels: int | None) -> str:
        """Return rgb, grey or y; raise ValueError if grey was asked for and an image has colours."""
        asked = self.options.channels
        coloured = [sample for sample in samples if not sample.grey]
        if asked == "grey" and coloured:
            path = coloured[0].input if coloured[0].header.grey else coloured[0].target
            advice = {1: "y for its luminance", 3: "rgb"}.get(model_channels or 0, "rgb, or y for its luminance")
            raise ValueError(f"channels is grey, but {path} is in colour: give --channels {advice}")
        return asked if asked != "auto" else "rgb" if coloured else "grey"

    def _check_crops(self, samples: Sequence[ImagePair]) -> None:
        crop = self.options.crop
        for sample in samples:
            h, w = (side - side % self.scale for side in sample.header.size)
            if min(h, w) < crop:
                raise ValueError(
                    f"{sample.target} has {h} x {w} pixels, less than the crop of {crop}: give a smaller --crop, or "
                    f"take the image out"
                )

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> StreamLoader:
        """Make the loader of random crops; an epoch has `options.crops` crops of each image."""
        if self.options.mixup and batch_size // world_size % 2:
            raise ValueError(
                f"batch_size is {batch_size}, but mixup mixes pairs of crops: give a multiple of {2 * world_size}"
            )
        options, samples = self.options, self.parts["train"]
        order = TrainOrder(len(samples) * options.crops, batch_size, rank, world_size, seed)
        transform = partial(train_crop, options=options, chain=self.chain, scale=self.scale, times=self.enlarge)
        verify = verify_command(options, options.data_dir)
        return StreamLoader(samples, options, order, transform, seed, collate=collate_crops, verify=verify)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> dict[str, StreamLoader]:
        """Make the loaders of the splits to score, which yield whole images one by one."""
        return {
            split: self.scoring_loader(samples, EvalOrder(len(samples), 1, rank, world_size), split)
            for split, samples in self.scored.items()
        }

    def scoring_loader(self, samples: SampleReader, order: EvalOrder, split: str = "train") -> StreamLoader:
        """Make a loader that yields whole images one by one."""
        options, transform = self.options, partial(degrade_whole, chain=self.chain)
        verify = verify_command(options, (split == "test" and options.test_dir) or options.data_dir)
        return StreamLoader(samples, options, order, transform, 0, collate=collate_pairs, verify=verify)

    def training_images(self) -> "RestorationSplit":
        """Open the images to train on, without the images that are scored."""
        notes = [*self.notes]
        samples, self.notes = self._find(True, "")["train"], notes  # drop the notes that `_find` adds
        self._choose_channels(samples, self.in_chans)
        for sample in samples if self.paired else []:
            scale_of_pair(sample, self.scale)
        return RestorationSplit(samples, self.channels, self.scale, studio_range=True)

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Mix neighbouring crops and their targets with one random weight. The loader does all other augmentation."""
        if not self.options.mixup:
            return batch
        with seeded(self.seed, MIX, epoch, step):
            share = np.random.beta(self.options.mixup, self.options.mixup)
        mixed = {key: share * batch[key] + (1 - share) * neighbour(batch[key]) for key in ("image", "target")}
        return batch | mixed


class RestorationSplit:
    """Read the images of a split for `StreamLoader`.

    Clean images are cut so that their sides are multiples of `scale`. `channels` and `studio_range` are as in
    `read_tensor`.
    """

    def __init__(self, samples: Sequence[ImagePair], channels: str, scale: int, *, studio_range: bool):
        self.samples, self.channels, self.scale, self.studio_range = samples, channels, scale, studio_range

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, index: int) -> str:
        return str(self.samples[index].target)

    def read(self, index: int) -> Pair:
        """Read an image, and return its name, the clean image and the degraded image, (C, H, W) each.

        The sides of the clean image are cut to multiples of the scale. The degraded image is None if there is no pair.
        """
        sample = self.samples[index]
        studio_range = self.channels == "y" and (self.studio_range or not sample.grey)
        target = read_tensor(sample.target, self.channels, studio_range)
        h, w = (side - side % self.scale for side in target.shape[-2:])
        degraded = None if sample.input is None else read_tensor(sample.input, self.channels, studio_range)
        return sample.name, target[:, :h, :w], degraded


def read_tensor(path: Path, channels: str, studio_range: bool = False) -> Tensor:
    """Read an image file as (C, H, W) float32 with values from 0 to 1.

    Args:
        channels: "rgb", "grey", or "y" for the luminance, in studio range where the file has colours.
        studio_range: with y, scale a grey file to studio range too.
    """
    colours = read_picture(path).colours
    if channels == "grey" or (channels == "y" and len(colours) == 1 and not studio_range):
        return colours[:1]
    colours = colours.expand(3, -1, -1)
    return to_y(colours) if channels == "y" else colours


def train_crop(
    pair: Pair, options: RestorationOptions, chain: Chain, scale: int, times: int
) -> tuple[str, Tensor, Tensor]:
    """Crop, degrade, flip and rotate an image at random; the loader seeds torch's generator for each sample.

    A crop is degraded together with the surrounding pixels that affect it, as far as the image has such pixels. The
    degraded pixels are then enlarged by the factor `times`.
    """
    (name, target, degraded), crop = pair, options.crop
    top, left = (scale * int(torch.randint((side - crop) // scale + 1, ())) for side in target.shape[-2:])
    reach = chain.reach + (3 * scale if times > 1 else 0)
    rows, columns = (
        slice(max(0, start - reach), min(side, start + crop + reach))
        for start, side in zip((top, left), target.shape[-2:])
    )
    if degraded is None:
        degraded = chain(target[:, rows, columns], torch.default_generator)
    else:
        small = [slice(part.start // scale, part.stop // scale) for part in (rows, columns)]
        degraded = degraded[:, small[0], small[1]]
    degraded = enlarge(degraded, times)
    ratio = scale // times
    y, x, side = (top - rows.start) // ratio, (left - columns.start) // ratio, crop // ratio
    images = [degraded[:, y : y + side, x : x + side], target[:, top : top + crop, left : left + crop]]
    if options.flip:
        dims = [dim for dim in (-2, -1) if torch.randint(2, ())]
        images = [image.flip(dims) for image in images]
    if options.rotate:
        turns = int(torch.randint(4, ()))
        images = [image.rot90(turns, (-2, -1)) for image in images]
    return name, images[0], images[1]


def degrade_whole(pair: Pair, chain: Chain) -> tuple[str, Tensor, Tensor]:
    """Degrade a whole image for scoring; the loader seeds torch's generator with the image's index."""
    name, target, degraded = pair
    return name, chain(target, torch.default_generator) if degraded is None else degraded, target
