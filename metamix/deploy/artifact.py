"""The folder that `metamix export` writes.

export.json                 what the model is and how to feed it, see `Artifact`
report.json                 how it compares with the model that it was made from
model.onnx                  ONNX
model.xml, model.bin        OpenVINO IR
model.pt2                   torch.export; beside it, model.compiled.pt2, if AOTInductor compiled it for this CPU
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from metamix.utils.checks import check_choice
from metamix.utils.files import write_text
from metamix.utils.rules import SHARE, Rule, check_entries, is_text, is_whole, list_of, one_of, rules_of, whole
from metamix.weights.files import ARTIFACT, CHECKPOINT, WEIGHTS
from metamix.weights.metadata import INTERPOLATIONS, MAX_SIDE, ModelMetadata

REPORT = "report.json"
COMPILED = "model.compiled.pt2"
VERSION = 1
FORMATS = {"torch": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}  # format: its main file
HINT = "INFERENCE_PRECISION_HINT"  # OpenVINO's name
# What OpenVINO computes in, by precision; in an int8 model this is the precision of norms, gates and sums.
HINTS = {"fp32": {HINT: "f32"}, "bf16": {HINT: "bf16"}, "int8": {HINT: "bf16"}}
PRECISIONS = tuple(HINTS)


Shape = Annotated[
    tuple[int | None, ...], list_of("four whole numbers or null", lambda n: n is None or is_whole(n, 1), 4, 4)
]
Names = Annotated[tuple[str, ...], list_of("a list of names", is_text, 0, 1_000)]
Plain = Annotated[dict[str, Any], Rule("a mapping", lambda value: isinstance(value, dict))]


@dataclass(frozen=True)
class Artifact:
    """An exported model, as export.json describes it.

    Attributes:
        format: "torch", "onnx" or "openvino".
        precision: "fp32", "bf16" or "int8".
        model: the metadata of the weights: task, name, class names, and how images are prepared.
        input_shape: (batch, channels, height, width) of the input `images`, float32; None for a side that may vary.
        outputs: names of the outputs.
        extra: what the task needs to run the model, such as the multiple and the scale of a restorer.
        versions: versions of the packages that made it.
    """

    format: str
    precision: str
    model: ModelMetadata
    input_shape: Shape
    outputs: Names
    extra: Plain = field(default_factory=dict)
    versions: Plain = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Return the name of the main file."""
        return FORMATS[self.format]

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (height, width) of the input; None if they may vary."""
        height, width = self.input_shape[2:]
        return None if height is None or width is None else (height, width)

    @property
    def hints(self) -> dict[str, str]:
        """Return the properties that OpenVINO compiles the model with."""
        return HINTS[self.precision] if self.format == "openvino" else {}

    @property
    def task(self) -> str:
        """Return the task that trained the model; classification if the weights do not say."""
        return self.model.task or "classification"

    def save(self, folder: Path) -> None:
        """Write export.json."""
        entries = asdict(self) | {"model": self.model.to_dict()}
        write_text(folder / ARTIFACT, json.dumps({"version": VERSION} | entries, indent=2) + "\n")


# What each task reads from `extra`, and what a file, which is untrusted, may say there.
_WHOLE = whole(1, MAX_SIDE)
_SIDES = list_of("two whole numbers from 1 to 65,536", lambda n: is_whole(n, 1, MAX_SIDE), 2, 2)
EXTRA_RULES: dict[str, dict[str, Rule]] = {
    "classification": {},
    "segmentation": {"scale": _WHOLE, "multiple": _SIDES},
    "restoration": {
        "scale": _WHOLE,
        "multiple": _SIDES,
        "enlarge": _WHOLE,
        "channels": one_of(("rgb", "grey", "y")),
    },
    "detection": {
        "score_thresh": SHARE,
        "nms_thresh": SHARE,
        **dict.fromkeys(("detections_per_img", "min_size", "max_size", "multiple", "least"), _WHOLE),
    },
}

_KNOWN = Rule("a value", lambda value: value is not None)  # `ModelMetadata` has checked the value
# What each task reads from the metadata of the weights. Those of a segmenter are checked by `SegmenterSpec`.
MODEL_RULES: dict[str, dict[str, Rule]] = {
    "classification": {
        **dict.fromkeys(("num_classes", "in_chans", "img_size", "mean", "std", "crop_pct"), _KNOWN),
        "interpolation": one_of([name for name in INTERPOLATIONS if name != "random"]),
    },
    "segmentation": {},
    "restoration": {},
    "detection": dict.fromkeys(("classes", "mean", "std"), _KNOWN),
}


def load_artifact(folder: str | Path) -> Artifact:
    """Read export.json of a folder.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged, or of another version.
    """
    path = Path(folder) / ARTIFACT
    if not path.is_file():
        raise FileNotFoundError(_not_exported(Path(folder)))
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): export the model again") from None
    if not isinstance(raw, Mapping) or raw.get("version") != VERSION:
        version = raw.get("version") if isinstance(raw, Mapping) else type(raw).__name__
        raise ValueError(f"{path} is of version {version!r}, this metamix reads {VERSION}: export the model again")
    missing = [f.name for f in fields(Artifact) if f.name not in raw]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: export the model again")
    check_format_and_precision(raw["format"], raw["precision"])
    values: dict[str, Any] = {f.name: raw[f.name] for f in fields(Artifact)}
    check_entries(raw, rules_of(Artifact), path, "the file", "Export the model again")
    for name in ("input_shape", "outputs"):
        values[name] = tuple(values[name])
    artifact = Artifact(**values | {"model": ModelMetadata.from_dict(raw["model"], path)})
    if artifact.task not in EXTRA_RULES:
        raise ValueError(f"{path} is a model of the task {artifact.task!r}; accepted are {', '.join(EXTRA_RULES)}")
    rules = EXTRA_RULES[artifact.task]
    check_entries(artifact.model.to_dict(), MODEL_RULES[artifact.task], path, "model", "Export the model again")
    check_entries(artifact.extra, rules, path, "extra", "Export the model again")
    return artifact


def _not_exported(path: Path) -> str:
    """Say what to give instead of a path that holds no export.json."""
    if path.is_file() and path.with_name(ARTIFACT).is_file():
        return f"{path} is a file of an exported model: give its folder, {path.parent}"
    if (path / WEIGHTS).is_file() or (path / CHECKPOINT).is_file():
        return f"{path} is a run: give it as --checkpoint, or export it with metamix export {path} --output NEW"
    if path.is_file():
        return f"{path} is a file: give a folder that metamix export wrote. For weights give --checkpoint"
    return f"{path} is not an exported model, it has no {ARTIFACT}: make one with metamix export MODEL --output NEW"


def check_format_and_precision(format: str, precision: str) -> None:
    """Check that a format can be written in a precision.

    Raises:
        ValueError: the format or the precision is unknown, or the format cannot be written in that precision.
    """
    check_choice("format", format, tuple(FORMATS))  # a damaged file may give a list, which is not a key
    check_choice("precision", precision, PRECISIONS)
    if (format, precision) == ("onnx", "bf16"):
        raise ValueError(
            "ONNX Runtime has no bf16 kernels on a CPU: take --format openvino or torch with --precision bf16, or "
            "--format onnx with fp32 or int8."
        )
    if (format, precision) == ("torch", "int8"):
        raise ValueError(
            "int8 is not written as torch.export: take --format openvino or onnx with --precision int8, which are also "
            "faster on a CPU."
        )
