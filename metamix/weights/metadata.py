"""Read the metadata of a weight file (`ModelMetadata`), and check them before anything is built from them.

A weight file is untrusted. Its metadata may name a registered model, set arguments of that model's constructor and
describe the images and classes. They may not name another file, a URL or a hub repository, and every number that sets a
size must be within a range.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field
from timm.layers import to_2tuple

from metamix.utils.rules import (
    Positive,
    Share,
    ShareBelowOne,
    check_entries,
    refuse_entry,
    rule,
    rules_of,
    shown,
    where,
)

# Arguments of timm.create_model that choose the weights, wrap the model, or set its device and dtype. They say nothing
# about the model's architecture.
TIMM_ARGS = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn",
    "pretrained_custom_load", "pretrained_tag", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit",
    "features_only", "feature_cfg", "feature_cls", "feature_mode", "out_indices", "output_fmt", "flatten_sequential",
    "kwargs_filter", "device", "dtype",
)  # fmt: skip
MAX_CLASSES, MAX_CHANNELS = 100_000, 64
MAX_SCORED_CLASSES = 25_000  # with so many classes, a confusion matrix takes 5 GB, and detection scores take 2.4 GB
MAX_IMG_SIZE = 4096  # side in pixels of the images that a model is built for
MIN_CROP_PCT = 0.25  # limits memory: an image is resized to the side of its crop divided by crop_pct
MAX_SIDE = 65_536  # side in pixels of any image
DEPTHS = (  # arguments that count blocks
    "depths", "depth", "layers", "num_layers", "num_blocks", "num_stages", "num_groups", "num_bottleneck_blocks",
    "num_supervision_scales",
)  # fmt: skip
MAX_BLOCKS = 256
MAX_NUMBER = 65_536  # magnitude of any number in model_args, such as a width or a rate
MAX_LENGTH = 1_000  # characters of a string, and entries of a list in model_args
MAX_NESTING = 4  # depth of nested lists and dicts in model_args
REMEDY = "Use a file that metamix wrote, or save the tensors without metadata"


NumClasses = Annotated[int, Field(ge=0, le=MAX_CLASSES)]
InChans = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Side = Annotated[int, Field(ge=1, le=MAX_IMG_SIZE)]
ImgSize = Annotated[
    Side | tuple[Side, Side], Field(description=f"a side in pixels from 1 to {MAX_IMG_SIZE:,}, or (height, width)")
]
Sides = Annotated[
    tuple[Side, ...],
    Field(min_length=1, max_length=2, description=f"a side in pixels, or height,width, of at most {MAX_IMG_SIZE:,}"),
]
ModelName = Annotated[
    str,
    where(
        lambda name: re.fullmatch(r"\w[\w.\-]{0,199}", name),
        "the name of a registered model, such as metaformer_raft_s12; not a hub address or a path",
    ),
]
ModelArgs = Annotated[dict[Any, Any], Field(description="a mapping of argument names to plain values")]
Channels = Field(min_length=1, max_length=MAX_CHANNELS)
Mean = Annotated[tuple[float, ...], Channels]
Std = Annotated[tuple[Positive, ...], Channels]
CropPct = Annotated[float, Field(ge=MIN_CROP_PCT, le=2)]
Text = Annotated[  # pydantic's max_length refuses names that are not UTF-8
    str, where(lambda text: len(text) <= MAX_LENGTH, f"a string of at most {MAX_LENGTH:,} characters")
]
Classes = Annotated[tuple[Text, ...], Field(max_length=MAX_CLASSES)]
Threshold = Annotated[
    Share | Annotated[tuple[Share, ...], Field(max_length=MAX_CLASSES)],
    Field(description="a number from 0 to 1, or a list with one number for each class"),
]

# Rules of the entries of model_args


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


Blocks = Annotated[int, Field(ge=0, le=MAX_BLOCKS)]
StageBlocks = Annotated[
    tuple[Blocks, ...], Field(min_length=1, max_length=16), where(lambda blocks: sum(blocks) <= MAX_BLOCKS, "blocks")
]
PLAIN = where(
    _is_plain, f"a number up to {MAX_NUMBER:,}, a string, true, false, null, or short lists and mappings of these"
)
BLOCKS = Field(
    description=f"a number of blocks up to {MAX_BLOCKS}, or a list of 1 to 16 numbers whose sum is at most {MAX_BLOCKS}"
)
REFUSED = where(lambda value: False, "left out, since it is not an argument of the model itself")
ANY_ARGUMENT = rule(Annotated[Any, PLAIN])
ARGUMENTS = {
    "num_classes": rule(NumClasses | None),
    "in_chans": rule(InChans | None),
    "img_size": rule(ImgSize | None),
    **dict.fromkeys(DEPTHS, rule(Annotated[Blocks | StageBlocks, BLOCKS])),
    **dict.fromkeys(TIMM_ARGS, rule(Annotated[Any, REFUSED])),
}


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a weight file. An entry that is missing in the file is None or an empty dict."""

    task: Text | None = None  # task that trained the weights, such as "classification" or "detection"
    model: ModelName | None = None  # registered name of the model or the backbone, with or without a tag
    model_args: ModelArgs = field(default_factory=dict)  # constructor arguments that are not fields of this class
    num_classes: NumClasses | None = None  # outputs of the head
    in_chans: InChans | None = None  # image channels
    img_size: ImgSize | None = None  # side of the training images in pixels, or (height, width)
    mean: Mean | None = None  # per channel, for images on a scale from 0 to 1
    std: Std | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    crop_pct: CropPct | None = None  # share of the shorter side that the centre crop keeps
    crop_mode: Literal["center", "squash", "border"] | None = None  # as in timm; without it, "center"
    classes: Classes | None = None  # names of the classes, in the order of the outputs
    threshold: Threshold | None = None  # probability from which a label is predicted; None if an image has one class
    data: Text | None = None  # name of the data set
    holdout: ShareBelowOne | None = None  # share of the training split that was held out
    memory: Literal["auto", "yes", "no"] | None = None  # whether the data set was decoded into memory
    # every other entry, unchecked; the task that reads it must check it
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], source: object = "the weight file", remedy: str = REMEDY
    ) -> "ModelMetadata":
        """Check the entries of a file, and return them as `ModelMetadata`; unknown entries go to `extra`.

        Raise ValueError if an entry has the wrong type, is out of range or contradicts another, if `model` is not a
        plain name, or if `model_args` has one of `TIMM_ARGS`. The message begins with `source` and ends with `remedy`.
        """
        if not isinstance(raw, Mapping):
            raise ValueError(f"{source}: its metadata are a {type(raw).__name__}, not a mapping of names to values.")
        rules = rules_of(cls, "extra")
        entries = {name: raw[name] for name in rules if raw.get(name) is not None}
        check_entries(entries, {name: rules[name] for name in entries}, source, remedy=remedy)
        for name, value in entries.get("model_args", {}).items():
            place = f"model_args[{shown(name)}]"
            if not (isinstance(name, str) and name.isidentifier()):
                refuse_entry(place, value, "the name of an argument, such as 'depths'", source, remedy)
            check_entries({place: value}, {place: ARGUMENTS.get(name, ANY_ARGUMENT)}, source, remedy=remedy)
        extra = {str(key): value for key, value in raw.items() if key not in rules}
        entries = {name: to_tuples(value) for name, value in entries.items()}
        metadata = cls(**entries | {"model_args": dict(entries.get("model_args", {})), "extra": extra})
        if metadata.classes is not None and metadata.num_classes not in (None, len(metadata.classes)):
            accepted = f"{metadata.num_classes} names, as many as num_classes"
            refuse_entry("classes", metadata.classes, accepted, source, remedy)
        for name, values in (("mean", metadata.mean), ("std", metadata.std)):
            if values is not None and metadata.in_chans not in (None, len(values)):
                accepted = f"{metadata.in_chans} numbers, one for each input channel (in_chans)"
                refuse_entry(name, values, accepted, source, remedy)
        return metadata

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as entries for a file: plain values, without None."""
        entries = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        entries = {key: list(value) if isinstance(value, tuple) else value for key, value in entries.items()}
        return _without_none(entries) | self.extra

    def check_task(self, task: str, network: str, source: object) -> None:
        """Raise ValueError if the weights are for another task; `network` names a model of `task`: "a detector"."""
        if self.task not in (None, task):
            raise ValueError(
                f"{source} has weights for {self.task}, not for {network}: give --task {self.task}, or call "
                f"metamix.load in Python"
            )

    @property
    def architecture(self) -> str | None:
        """Return the model's name without its tag."""
        return self.model and self.model.partition(".")[0]

    def pretrained_cfg(self) -> dict[str, Any]:
        """Return the known facts about images and classes as entries of timm's `PretrainedCfg`."""
        names = ("num_classes", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        cfg: dict[str, Any] = {key: getattr(self, key) for key in names} | {"label_names": self.classes}
        if self.in_chans is not None and self.img_size is not None:
            cfg["input_size"] = (self.in_chans, *to_2tuple(self.img_size))
        return _without_none(cfg)

    @property
    def shape(self) -> dict[str, Any]:
        """Return the entries `num_classes`, `in_chans` and `img_size` that the file has, as constructor arguments."""
        return _without_none({"num_classes": self.num_classes, "in_chans": self.in_chans, "img_size": self.img_size})


def _without_none(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None}


def to_tuples(value: Any) -> Any:
    """Convert a list, and all lists in it, into tuples."""
    return tuple(map(to_tuples, value)) if isinstance(value, (list, tuple)) else value
