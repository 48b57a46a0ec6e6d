"""Open the splits of a data set of labelled images, make their loaders and augment batches."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from metamix.data.augment import Augment, normalize
from metamix.data.loader import MemoryLoader, StreamLoader, eval_loader, train_loader
from metamix.data.memory import channel_statistics, image_size, in_memory
from metamix.data.options import DataOptions, train_command
from metamix.data.sources import Source, open_data, scarce_classes
from metamix.models.backbone import per_channel
from metamix.tasks.find import task_of_data, task_of_folder
from metamix.tasks.network import describe_initial_weights
from metamix.utils.options import changed_flags
from metamix.utils.text import plural
from metamix.weights.metadata import ModelMetadata

from .options import ClassificationOptions, ModelOptions, data_name


class ClassificationData:
    """Open a data set of labelled images and make its loaders.

    Args:
        options: options of training or, for evaluation, only `ModelOptions`.
        seed: seed of the augmentation.
        metadata: metadata of the weights to evaluate, which give the order of the classes; None in training.

    Attributes:
        threshold: lowest probability at which a label is predicted: one number for all labels, or one for each label.
            It is 0.5 in training, and None if each image has one class.
        shares_images: whether only a share of the images is scored, since the data have no test split.
        as_weights: note that names the settings taken from the initial weights; empty if no setting was taken.
    """

    def __init__(self, options: ModelOptions, seed: int = 0, metadata: ModelMetadata | None = None):
        self.options, self.name, self.seed = options, data_name(options), seed
        self.notes: list[str] = []
        self.as_weights = ""
        other = task_of_data(options.data, options.data_dir)
        if options.data == "digits":  # digits needs no folder, so the folder may be for another task
            other = other or task_of_folder(options.data_dir)
        if other:
            trains = isinstance(options, ClassificationOptions)
            advice = f"add --task {other}" if trains else "the weights belong to a classifier, so give other data"
            raise ValueError(f"{options.data_dir or options.data} is a data set for {other}: {advice}")
        self.splits = open_data(
            options.data,
            root=options.data_dir,
            holdout=options.holdout,
            download=options.download,
            test_on=options.test_on,
            test_share=options.test_share,
            classes=(metadata and metadata.classes) or (),
            fine_tune=self._fine_tune(metadata) if metadata else "",
            train_required=metadata is None,
        )
        self.threshold = (metadata.threshold if metadata else 0.5) if self.splits.multi_label else None
        initial = describe_initial_weights(options) if isinstance(options, ClassificationOptions) else None
        self.shares_images = self._check_share(metadata, initial)
        if metadata is None:
            self.notes += scarce_classes(self.splits)
        for split, source in self.splits.sources().items() if self.splits.multi_label else ():
            if not source.labels.any():
                raise ValueError(f"no image of {split} has a label: give other data, or other shares for the splits")
        self.classes = self._classes_of(metadata) if metadata else self.splits.classes
        self.in_chans = self.splits.in_chans
        self.prepare_as(initial)
        self.identity: dict[str, Any] = {
            "samples": {split: len(source) for split, source in self.splits.sources().items()},
            "classes": list(self.classes),
        }
        if not (isinstance(options, ClassificationOptions) and (options.pretrained or options.checkpoint)):
            self.identity |= {"mean": list(self.mean), "std": list(self.std)}  # from the data set, not from weights
        if isinstance(options, DataOptions):
            self.identity |= {"digest": self.splits.digest, "content": self.splits.content}
            unused = ("crop_scale", "crop_pct") if self.held_in_memory else ("padding",)
            why = "are in memory (--memory no streams them)" if self.held_in_memory else "are streamed, not in memory"
            self.notes += [f"{flag} has no effect: images {why}" for flag in changed_flags(options, *unused)[::2]]

    def prepare_as(self, weights: ModelMetadata | None) -> None:
        """Choose the size and the statistics of the images.

        Values that the options do not set come from `weights`, the metadata of the initial weights or of the run
        to continue. `image_size` and `channel_statistics` choose the values that the metadata lack.
        """
        options, images = self.options, self.splits.train or self.splits.test
        values: dict[str, Any] = {}
        if weights and options.img_size is None:
            sides = {weights.img_size} if isinstance(weights.img_size, int) else set(weights.img_size or ())
            values |= {"img_size": sides.pop()} if len(sides) == 1 else {}  # only if the images were square
        if weights and options.mean is None and options.std is None:
            statistics = [each and per_channel(each, self.in_chans) for each in (weights.mean, weights.std)]
            values |= dict(zip(("mean", "std"), statistics)) if all(statistics) else {}
        self._resolved = options = replace(options, **values)
        self.size = image_size(images, options)
        self.mean, self.std = channel_statistics(images, options)
        what = [f"images of {self.size} pixels (--img-size)"] if "img_size" in values else []
        if "mean" in values:
            mean, std = (",".join(f"{value:.3g}" for value in each) for each in (self.mean, self.std))
            what.append(f"mean {mean} and std {std} (--mean, --std)")
        self.as_weights = f"taken from the initial weights: {', '.join(what)}" if what else ""
        if isinstance(options, DataOptions):
            self.augment = Augment(
                options,
                seed=self.seed,
                mean=self.mean,
                std=self.std,
                size=self.size,
                num_classes=len(self.classes),
                cropped=not in_memory(images, options),
            )

    @property
    def held_in_memory(self) -> bool:
        """Return whether all images are decoded at the start. Evaluation ignores `crop_pct` for them."""
        return in_memory(self.splits.test, self._resolved)

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> MemoryLoader | StreamLoader:
        """Make the training loader; raise ValueError if mixup cannot pair samples or sampling cannot balance labels."""
        share, options, train = batch_size // world_size, self._resolved, self.splits.train
        assert isinstance(options, DataOptions) and train is not None
        if options.sampling == "balanced" and self.splits.multi_label:
            raise ValueError("sampling is balanced, but images have several labels: give --class-weights balanced")
        if share % 2 and (options.mixup or options.cutmix):
            raise ValueError(
                f"mixup and cutmix pair neighbouring samples, but batch_size {batch_size} gives each of {world_size} "
                f"processes an odd number of samples, {share}: give a multiple of {2 * world_size}"
            )
        return train_loader(train, options, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> dict[str, MemoryLoader | StreamLoader]:
        return {
            split: eval_loader(source, self._resolved, batch_size=batch_size, rank=rank, world_size=world_size)
            for split, source in self.splits.sources().items()
            if split != "train"
        }

    def training_images(self) -> Source | tuple[()]:
        """Return the images to train on, or an empty tuple if the data set has no training split."""
        return self.splits.train or ()

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images, (n, C, H, W) uint8, to float32."""
        return normalize(images, self.mean, self.std)

    def is_training_data(self, metadata: ModelMetadata) -> bool:
        """Return whether weights were trained on these data. Folders are compared by their files, if recorded."""
        recorded = metadata.extra.get("digest")
        if self.options.data != "folder" or not isinstance(recorded, dict):
            return metadata.data == self.name
        return any(recorded.get(split) == value for split, value in self.splits.digest.items())

    def _check_share(self, metadata: ModelMetadata | None, initial: ModelMetadata | None) -> bool:
        """Return `shares_images`; raise ValueError if `test_share` is unusable or all training images are scored.

        `metadata` describes the weights to evaluate, and `initial` describes the weights that training starts from.
        """
        options, train, test = self.options, self.splits.train, self.splits.test
        shared = train is not None and train.images is test.images
        if metadata is None:
            asked = f"test_share is {options.test_share:g}"
            if train is None:
                raise ValueError(f"{asked}, which leaves no image to train on: give a lower share")
            if not shared and options.test_share != type(options).test_share:
                raise ValueError(f"{asked}, but the data have a test split: leave --test-share out")
        digests = metadata.extra.get("digest") if metadata and options.data == "folder" else None
        same = isinstance(digests, dict) and digests.get("train") == self.splits.digest["test"]
        if metadata and same and train is None:
            share = metadata.extra.get("test_share")
            advice = f"give --test-share {share} to score the held-out images" if share else "give other images"
            raise ValueError(f"{options.data_dir} holds the images that the weights were trained on: {advice}")
        if shared:
            scored = f"{plural(len(test), 'image')} {'is' if len(test) == 1 else 'are'} scored"
            held_out = not metadata or (same and metadata.extra.get("test_share") == options.test_share)
            trained_too = " and not trained on" if held_out else ", and may have been trained on"
            if initial and initial.data == self.name:
                recorded = initial.extra.get("digest"), initial.extra.get("test_share")
                if recorded != (self.splits.digest, options.test_share):
                    trained_too = f"; {options.checkpoint} may have been trained on some of them: put others into val/"
            self.notes.append(f"{scored}{trained_too} (--test-share)")
        return shared

    def _fine_tune(self, metadata: ModelMetadata) -> str:
        """Return the command that fine-tunes the evaluated weights on these data."""
        options = self.options
        model = ["--model", metadata.architecture or options.model]
        flags = ["--data", options.data, *changed_flags(options, "data_dir", "test_on"), *model]
        return train_command(options.checkpoint, *flags)

    def _classes_of(self, metadata: ModelMetadata) -> tuple[str, ...]:
        """Check that the data fit the weights, and return the classes of the weights."""
        of_data, classes, name = self.splits.classes, metadata.classes, metadata.model or self.options.model
        kinds = "one class per image", "several labels per image"
        for what, has, wanted in (
            (" channels", self.splits.in_chans, metadata.in_chans),
            ("", kinds[self.splits.multi_label], kinds[metadata.threshold is not None]),
            (" classes", len(of_data), metadata.num_classes),
        ):
            fewer = what == " classes" and classes and len(of_data) < len(classes)  # classes are matched by name
            if has != wanted and not fewer:
                raise ValueError(
                    f"{name} was trained for {wanted}{what}, but {self.name} has {has}; give other --data, or "
                    f"fine-tune first: {self._fine_tune(metadata)}"
                )
        if classes and of_data != classes:
            self.notes.append("the classes of the data are numbers: they are matched to the model's classes by order")
        return classes or of_data
