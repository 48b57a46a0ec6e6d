"""Metadata of a weight file: `ModelMetadata`, checked before anything is built from it.

A weight file is untrusted. Its metadata may name a registered model, set arguments of that model's constructor and
describe the images and classes. They may not name another file, a URL or a hub repository, and every number has a
range.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from torch import Tensor

from metamix.utils.rules import (
    Rule,
    ShareBelowOne,
    Text,
    accept_also,
    check_entries,
    check_entry,
    is_list,
    is_number,
    is_text,
    is_whole,
    list_of,
    number,
    one_of,
    refuse_entry,
    rules_of,
    shown,
    whole,
)

# Arguments of timm.create_model that are not the model's own: where weights come from, and what wraps the model.
TIMM_ARGS = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn",
    "pretrained_custom_load", "pretrained_tag", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit",
    "features_only", "feature_cfg", "feature_cls", "feature_mode", "out_indices", "output_fmt", "flatten_sequential",
    "kwargs_filter", "device", "dtype",
)  # fmt: skip
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
MEMORY = ("auto", "yes", "no")
MAX_CLASSES, MAX_CHANNELS = 100_000, 64
MAX_IMG_SIZE = 8192  # sides in pixels of the images that a model is built for
MAX_SIDE = 65_536  # of any image, in pixels
DEPTHS = ("depths", "depth", "num_layers")  # arguments that count blocks
MAX_BLOCKS = 256
MAX_NUMBER = 65_536  # of any number in model_args: widths, depths, rates
MAX_LENGTH = 1_000  # entries of a list and characters of a string in model_args
MAX_NESTING = 4  # lists and dicts inside each other in model_args
REMEDY = "Use a file that metamix wrote, or save the tensors without metadata"


def _is_img_size(value: object) -> bool:
    return is_whole(value, 1, MAX_IMG_SIZE) or is_list(value, lambda side: is_whole(side, 1, MAX_IMG_SIZE), 2, 2)


NUM_CLASSES, IN_CHANS = whole(0, MAX_CLASSES), whole(1, MAX_CHANNELS)
IMG_SIZE = Rule(f"a side in pixels from 1 to {MAX_IMG_SIZE:,}, or (height, width)", _is_img_size)
ModelName = Annotated[
    str,
    Rule(
        "the name of a registered model, such as metaformer_raft_s12; not a hub or path",
        lambda value: is_text(value) and re.fullmatch(r"\w[\w.\-]{0,199}", value) is not None,
    ),
]
ModelArgs = Annotated[
    dict[str, Any], Rule("a mapping of argument names to plain values", lambda value: isinstance(value, Mapping))
]
Mean = Annotated[
    tuple[float, ...],
    list_of(f"a list of 1 to {MAX_CHANNELS} numbers, one per channel", is_number, 1, MAX_CHANNELS),
]
Std = Annotated[
    tuple[float, ...],
    list_of(
        f"a list of 1 to {MAX_CHANNELS} numbers above 0, one per channel",
        lambda n: is_number(n) and n > 0,
        1,
        MAX_CHANNELS,
    ),
]
CropPct = Annotated[float, number("a number above 0 and at most 2", lambda n: 0 < n <= 2)]
Classes = Annotated[tuple[str, ...], list_of(f"a list of at most {MAX_CLASSES:,} names", is_text, 0, MAX_CLASSES)]

# Rules of the entries of model_args


def _is_depth(value: object) -> bool:
    """Return whether a value is a possible number of blocks, or one for each stage."""
    return is_whole(value, 0, MAX_BLOCKS) or is_list(value, lambda n: is_whole(n, 0, MAX_BLOCKS), 1, 16)


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


PLAIN = Rule(
    f"a number up to {MAX_NUMBER:,}, a string, true, false, null, or short lists and mappings of these", _is_plain
)
BLOCKS = Rule(f"a number of blocks up to {MAX_BLOCKS}, or a list of 1 to 16 such numbers", _is_depth)
REFUSED = Rule("no such entry: arguments of the constructor only, never a source of weights", lambda value: False)
ARGUMENTS = {
    "num_classes": accept_also([None], NUM_CLASSES),
    "in_chans": accept_also([None], IN_CHANS),
    "img_size": accept_also([None], IMG_SIZE),
    **dict.fromkeys(DEPTHS, BLOCKS),
    **dict.fromkeys(TIMM_ARGS, REFUSED),
}


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

    task: Text | None = None
    model: ModelName | None = None
    model_args: ModelArgs = field(default_factory=dict)
    num_classes: Annotated[int, NUM_CLASSES] | None = None
    in_chans: Annotated[int, IN_CHANS] | None = None
    img_size: Annotated[int | tuple[int, int], IMG_SIZE] | None = None
    mean: Mean | None = None
    std: Std | None = None
    interpolation: Annotated[str, one_of(INTERPOLATIONS)] | None = None
    crop_pct: CropPct | None = None
    classes: Classes | None = None
    data: Text | None = None
    holdout: ShareBelowOne | None = None
    memory: Annotated[str, one_of(MEMORY)] | None = None
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
        if not isinstance(raw, Mapping):
            raise ValueError(
                f"{source}: its metadata are a {type(raw).__name__}, not a mapping of names to plain values."
            )
        rules = rules_of(cls)
        entries = {name: raw[name] for name in rules if raw.get(name) is not None}
        check_entries(entries, {name: rules[name] for name in entries}, source, remedy=REMEDY)
        _check_model_args(entries.get("model_args", {}), source)
        extra = {str(key): value for key, value in raw.items() if key not in rules}
        entries = {name: to_tuples(value) for name, value in entries.items()}
        metadata = cls(**entries | {"model_args": dict(entries.get("model_args", {})), "extra": extra})
        if metadata.classes is not None and metadata.num_classes not in (None, len(metadata.classes)):
            accepted = f"{metadata.num_classes} names, as many as num_classes"
            refuse_entry("classes", metadata.classes, accepted, source, REMEDY)
        for name, values in (("mean", metadata.mean), ("std", metadata.std)):
            if values is not None and metadata.in_chans not in (None, len(values)):
                accepted = f"{metadata.in_chans} numbers, one for each of in_chans"
                refuse_entry(name, values, accepted, source, REMEDY)
        return metadata

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of the file's metadata as plain values, without None."""
        entries = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        entries = {key: list(value) if isinstance(value, tuple) else value for key, value in entries.items()}
        return {key: value for key, value in entries.items() if value is not None} | self.extra

    @property
    def architecture(self) -> str | None:
        """Return the model's name without its tag."""
        return self.model and self.model.partition(".")[0]

    def pretrained_cfg(self) -> dict[str, Any]:
        """Return what is known about images and classes, as entries of timm's `PretrainedCfg`."""
        names = ("num_classes", "mean", "std", "interpolation", "crop_pct")
        cfg: dict[str, Any] = {key: getattr(self, key) for key in names} | {"label_names": self.classes}
        if self.in_chans is not None and self.img_size is not None:
            size = self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)
            cfg["input_size"] = (self.in_chans, *size)
        return {key: value for key, value in cfg.items() if value is not None}

    @property
    def shape(self) -> dict[str, Any]:
        """Return `num_classes`, `in_chans` and `img_size`, where the file states them, as constructor arguments."""
        arguments = {key: getattr(self, key) for key in ("num_classes", "in_chans", "img_size")}
        return {key: value for key, value in arguments.items() if value is not None}


def _check_model_args(arguments: Mapping[str, Any], source: object) -> None:
    """Raise ValueError if `model_args` has an argument that a file may not set, or a value out of range."""
    for name, value in arguments.items():
        place = f"model_args[{shown(name)}]"
        if not (is_text(name) and name.isidentifier()):
            refuse_entry(place, value, "a name of an argument, such as 'depths'", source, REMEDY)
        check_entry(place, value, ARGUMENTS.get(name, PLAIN), source, remedy=REMEDY)


# Shared by the tasks whose weight files describe a whole network: a detector or a segmenter

SplitNames = Annotated[tuple[str, ...], list_of("a list of splits", is_text, 0, MAX_LENGTH)]


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
        held = common.model or "weights without a description"
        raise ValueError(
            f"{source} holds {held}, not a {network} that metamix trained: give a run folder of metamix train --task "
            f"{task}"
        )


def check_trained_with(option: str, trained: str, chosen: str, source: object) -> None:
    """Check that a file has the detector or the head of the run, so that the error names the option and not tensors.

    Raises:
        ValueError: it has another one.
    """
    if trained != chosen:
        raise ValueError(f"{source} was trained with the {option} {trained}, not {chosen}: give --{option} {trained}")


def arguments_without(names: Collection[str]) -> Rule:
    """Make a rule that accepts a mapping of arguments without these names."""
    return Rule(
        f"a mapping of arguments without {', '.join(sorted(names))}",
        lambda value: isinstance(value, Mapping) and value.keys().isdisjoint(names),
    )


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
