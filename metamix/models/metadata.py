"""Metadata of a weight file: `ModelMetadata`, checked before anything is built from it.

A weight file is untrusted. Its metadata may name a registered model, set arguments of that model's constructor and
describe the images and classes. They may not name another file, a URL or a hub repository, and every number has a
range.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from torch import Tensor

from metamix.utils.checks import Rule, is_whole
from metamix.utils.text import did_you_mean

# Arguments of timm.create_model that are not the model's own: where weights come from, and what wraps the model.
TIMM_ARGS = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn",
    "pretrained_custom_load", "pretrained_tag", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit",
    "features_only", "feature_cfg", "feature_cls", "feature_mode", "out_indices", "output_fmt", "flatten_sequential",
    "kwargs_filter", "device", "dtype",
)  # fmt: skip
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
MEMORY = ("auto", "yes", "no")
RANGES = {"num_classes": (0, 100_000), "in_chans": (1, 64), "img_size": (1, 8192)}
DEPTHS = ("depths", "depth", "num_layers")  # arguments that count blocks
MAX_BLOCKS = 256
MAX_SIDE = 65_536  # of an image, in pixels
MAX_NUMBER = 65_536  # of any number in model_args: widths, depths, rates
MAX_LENGTH = 1_000  # entries of a list and characters of a string in model_args
MAX_NESTING = 4  # lists and dicts inside each other in model_args


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a weight file. An entry that the file does not have is None, or an empty dict.

    Attributes:
        task: the task that trained the weights, such as "classification" or "detection".
        model: registered name of the model or the backbone, with or without a tag.
        model_args: arguments of its constructor beyond those below.
        num_classes: outputs of the head.
        in_chans: image channels.
        img_size: side of the training images in pixels, or (height, width).
        mean, std: per channel, for images on a scale from 0 to 1.
        interpolation: how images are resized.
        crop_pct: share of the shorter side that the centre crop keeps.
        classes: names of the classes, in the order of the outputs.
        data: name of the data set.
        holdout: share of the training split that was held out.
        memory: whether the data set was decoded into memory: "auto", "yes" or "no".
        extra: every other entry, unchecked; the task that wrote it must check it.
    """

    task: str | None = None
    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    in_chans: int | None = None
    img_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    classes: tuple[str, ...] | None = None
    data: str | None = None
    holdout: float | None = None
    memory: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: object = "the weight file") -> ModelMetadata:
        """Check the metadata of a file.

        Args:
            raw: the entries as `to_dict` wrote them; unknown keys go to `extra`.
            source: the file's name, for messages.

        Raises:
            ValueError: an entry has the wrong type or is out of range, or `model` or `model_args` name other weights
                than the file's own.
        """
        return _Reader(raw, str(source)).read()

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of the file's metadata as plain values, without those that are None."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        known = {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}
        return {key: value for key, value in known.items() if value is not None} | self.extra

    @property
    def architecture(self) -> str | None:
        """Return the model's name without its tag."""
        return self.model and self.model.partition(".")[0]

    def pretrained_cfg(self) -> dict[str, Any]:
        """Return what is known about images and classes, as entries of timm's `PretrainedCfg`."""
        known: dict[str, Any] = {key: getattr(self, key) for key in ("num_classes", "mean", "std", "interpolation")}
        known |= {"crop_pct": self.crop_pct, "label_names": self.classes}
        if self.in_chans is not None and self.img_size is not None:
            size = self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)
            known["input_size"] = (self.in_chans, *size)
        return {key: value for key, value in known.items() if value is not None}

    @property
    def shape(self) -> dict[str, Any]:
        """Return those of `num_classes`, `in_chans` and `img_size` that are known, as arguments of the constructor."""
        known = {key: getattr(self, key) for key in ("num_classes", "in_chans", "img_size")}
        return {key: value for key, value in known.items() if value is not None}


class _Reader:
    """The checks of `ModelMetadata.from_dict`."""

    def __init__(self, raw: Mapping[str, Any], source: str):
        self.source = source
        if not isinstance(raw, Mapping):
            raise ValueError(
                f"{source}: its metadata are a {type(raw).__name__}, not a mapping of names to plain values."
            )
        self.raw = raw

    def read(self) -> ModelMetadata:
        get, known = self.raw.get, {f.name for f in fields(ModelMetadata) if f.name != "extra"}
        found = ModelMetadata(
            task=self.text("task", get("task")),
            model=self.model(get("model")),
            model_args=self.model_args(get("model_args")),
            num_classes=self.whole("num_classes", get("num_classes")),
            in_chans=self.whole("in_chans", get("in_chans")),
            img_size=self.img_size("img_size", get("img_size")),
            mean=self.per_channel("mean", get("mean")),
            std=self.per_channel("std", get("std")),
            interpolation=self.one_of("interpolation", get("interpolation"), INTERPOLATIONS),
            crop_pct=self.number("crop_pct", get("crop_pct"), "above 0 and at most 2", lambda n: 0 < n <= 2),
            classes=self.class_names(get("classes")),
            data=self.text("data", get("data")),
            holdout=self.number("holdout", get("holdout"), "at least 0 and below 1", lambda n: 0 <= n < 1),
            memory=self.one_of("memory", get("memory"), MEMORY),
            extra={str(key): value for key, value in self.raw.items() if key not in known},
        )
        if found.std and min(found.std) <= 0:
            self.refuse("std", found.std, "numbers above 0")
        if found.classes is not None and found.num_classes not in (None, len(found.classes)):
            self.refuse("classes", found.classes, f"{found.num_classes} names, as many as num_classes")
        for key in ("mean", "std"):
            values = getattr(found, key)
            if None not in (values, found.in_chans) and len(values) != found.in_chans:
                self.refuse(key, values, f"{found.in_chans} numbers, one for each of in_chans")
        return found

    def refuse(self, key: str, given: object, accepted: str) -> NoReturn:
        shown = repr(given) if len(repr(given)) <= 80 else f"{repr(given)[:77]}..."
        raise ValueError(
            f"{self.source}: {key} in the metadata is {shown}; accepted is {accepted}. Use a file that metamix wrote, "
            f"or save the tensors without metadata."
        )

    def text(self, key: str, value: object) -> str | None:
        if value is not None and not isinstance(value, str):
            self.refuse(key, value, "a string")
        return value

    def one_of(self, key: str, value: object, accepted: tuple[str, ...]) -> str | None:
        if value is not None and value not in accepted:
            self.refuse(key, value, f"one of {', '.join(accepted)}{did_you_mean(str(value), accepted).rstrip('.')}")
        return value

    def whole(self, key: str, value: object, name: str = "") -> int | None:
        low, high = RANGES[key]
        if value is not None and not is_whole(value, low, high):
            self.refuse(name or key, value, f"a whole number from {low} to {high:,}")
        return value

    def img_size(self, key: str, value: object) -> int | tuple[int, int] | None:
        if isinstance(value, (list, tuple)) and len(value) == 2 and None not in value:
            return self.whole_side(key, value[0], value), self.whole_side(key, value[1], value)
        return None if value is None else self.whole_side(key, value, value)

    def whole_side(self, key: str, side: object, value: object) -> int:
        low, high = RANGES["img_size"]
        if not is_whole(side, low, high):
            self.refuse(key, value, f"a side in pixels from {low} to {high:,}, or (height, width)")
        return side

    def number(self, key: str, value: Any, accepted: str, within: Callable[[float], bool]) -> float | None:
        if value is not None and not (_is_number(value) and within(value)):
            self.refuse(key, value, f"a number {accepted}")
        return value

    def per_channel(self, key: str, value: object) -> tuple[float, ...] | None:
        if value is None:
            return None
        most = RANGES["in_chans"][1]
        if not (isinstance(value, (list, tuple)) and 1 <= len(value) <= most and all(map(_is_number, value))):
            self.refuse(key, value, f"a list of 1 to {most} numbers, one per channel")
        return tuple(value)

    def class_names(self, value: Any) -> tuple[str, ...] | None:
        if value is None:
            return None
        most = RANGES["num_classes"][1]
        named = isinstance(value, (list, tuple)) and len(value) <= most and all(isinstance(name, str) for name in value)
        if not named:
            self.refuse("classes", value, f"a list of at most {most:,} names")
        return tuple(value)

    def model(self, value: object) -> str | None:
        if value is not None and not (isinstance(value, str) and re.fullmatch(r"\w[\w.\-]{0,199}", value)):
            self.refuse(
                "model", value, "the name of a registered model, such as metaformer_raft_s12; not a hub or path"
            )
        return value

    def model_args(self, value: object) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.refuse("model_args", value, "a mapping of argument names to plain values")
        for key, given in value.items():
            name = f"model_args[{key!r}]"
            if not (isinstance(key, str) and key.isidentifier()):
                self.refuse("model_args", value, "a mapping whose keys are names of arguments")
            if key in TIMM_ARGS:
                self.refuse(name, given, "no such entry: arguments of the constructor only, never a source of weights")
            if key in ("num_classes", "in_chans"):
                self.whole(key, given, name)
            elif key == "img_size":
                self.img_size(name, given)
            elif key in DEPTHS and not _is_depth(given):
                self.refuse(name, given, f"a number of blocks up to {MAX_BLOCKS}, or a list of 1 to 16 such numbers")
            elif not _is_plain(given):
                self.refuse(
                    name,
                    given,
                    f"a number up to {MAX_NUMBER:,}, a string, true, false, null, or short lists and mappings of these",
                )
        return dict(value)


# Shared by the tasks whose weight files describe a whole network: a detector or a segmenter


def check_task(raw: Mapping[str, Any], source: object, task: str, network: str) -> None:
    """Check the metadata of a file as `ModelMetadata` does, and that `metamix train` wrote it for a task.

    Args:
        raw: the entries.
        source: the file's name, for messages.
        task: such as "detection".
        network: what the task trains, such as "detector".

    Raises:
        ValueError: an entry cannot be used, or the file is of another task.
    """
    common = ModelMetadata.from_dict(raw, source)
    if common.task != task:
        if common.task:
            raise ValueError(f"{source} has weights of {common.task}, not of a {network}: give --task {common.task}")
        found = common.model or "weights without a description"
        raise ValueError(
            f"{source} holds {found}, not a {network} that metamix trained: give a run folder of metamix train --task "
            f"{task}"
        )


def check_same_parts(theirs: Any, own: Any, names: Iterable[str], source: object) -> None:
    """Check that a network's weights are of the parts that a run builds, before tensors are compared.

    Args:
        theirs: what the file says of the network, a `DetectorSpec` or a `SegmenterSpec`.
        own: the same of the run.
        names: attributes to compare, which are options of the run.
        source: the file's name, for the message.

    Raises:
        ValueError: one differs.
    """
    for name in names:
        found, wanted = (str(getattr(spec, name)).partition(".")[0] for spec in (theirs, own))
        if found != wanted:
            raise ValueError(f"{source} was trained with the {name} {found}, not {wanted}: give --{name} {found}")


def arguments_without(names: Collection[str]) -> Rule:
    """Make a rule that accepts a mapping of arguments without these names."""
    words = f"a mapping of arguments without {', '.join(sorted(names))}"
    return words, lambda value: isinstance(value, Mapping) and value.keys().isdisjoint(names)


NETWORK_RULES: dict[str, Rule] = {
    "model": ("the name of a registered model", lambda value: isinstance(value, str)),  # checked by ModelMetadata
    "frozen_norms": ("true or false", lambda value: isinstance(value, bool)),
    "train_on": (
        "a list of splits",
        lambda value: isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value),
    ),
}


def without_head(
    tensors: dict[str, Tensor], metadata: Mapping[str, Any], classes: list[str], head: Collection[str]
) -> dict[str, Tensor]:
    """Drop the weights of the layers in `head` where the file has other classes; their number may be the same."""
    if metadata.get("classes", classes) == classes:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(f"{part}." for part in head))}


def to_lists(value: Any) -> Any:
    """Turn a tuple, and the tuples in it, into lists, as a file has them."""
    return [to_lists(item) for item in value] if isinstance(value, tuple) else value


def to_tuples(value: Any) -> Any:
    """Turn a list, and the lists in it, into tuples."""
    return tuple(map(to_tuples, value)) if isinstance(value, (list, tuple)) else value


def _is_number(value: object) -> bool:
    # Not math.isfinite, which raises OverflowError for an int that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_depth(value: object) -> bool:
    """Return whether a value is a possible number of blocks, or one for each stage."""
    if isinstance(value, (list, tuple)):
        return 1 <= len(value) <= 16 and all(is_whole(item, 0, MAX_BLOCKS) for item in value)
    return is_whole(value, 0, MAX_BLOCKS)


def _is_plain(value: object, depth: int = 0) -> bool:
    """Return whether a value is small, finite and of plain types."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return len(value) <= MAX_LENGTH
    if isinstance(value, (int, float)):
        return abs(value) <= MAX_NUMBER  # false for NaN
    if not isinstance(value, (list, tuple, Mapping)) or len(value) > MAX_LENGTH or depth == MAX_NESTING:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item, depth + 1) for key, item in value.items())
    return all(_is_plain(item, depth + 1) for item in value)
