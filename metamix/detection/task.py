"""Object detection: torchvision's detectors over any backbone, on sets in COCO's format, scored as COCO scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from metamix.data import CorruptImage
from metamix.models import count_macs
from metamix.training.recipe import option
from metamix.utils.files import write_text
from metamix.utils.tensor_files import load_weights

from .coco import BoxSource, find_splits, open_split
from .data import eval_loader, train_loader
from .detectors import LEVELS, Dense
from .load import build_described, load_detector, load_pretrained
from .metrics import Scores, from_coco, score, table, to_coco
from .pictures import draw_grid, draw_precision_recall

SHOWN = 4  # best images, and as many of the worst, in the picture of both
EVAL_BATCH = 8  # images at a time in evaluation: a batch is padded to its largest


@dataclass
class DataOptions:
    """Data: what eval.py needs to know."""

    data: Literal["coco"] = option("coco", "format of the data set", group="data")
    data_dir: str = option(
        "", "folder of the set, with annotations/instances_train.json and images/", group="data", on_resume="free"
    )
    test_on: str = option("", "split to score at the end; empty: test, or val where there is no test", group="data")
    workers: int = option(2, "processes that read images; 0: the training process does", group="data", on_resume="free")
    corrupt_limit: float = option(
        0.01, "stop if more than this share of the images cannot be read", group="data", on_resume="free"
    )


@dataclass
class EvalOptions(DataOptions):
    """Model: a file of train.py says all of it."""

    checkpoint: str = option("", "weights of a detector: a run folder, or a file in it", group="model")


@dataclass
class DetectionOptions(DataOptions):
    """Detection: how a detector is trained."""

    train_on: tuple[str, ...] = option(
        ("train",), "splits to train on; val, where it is not among them, is held out", group="data"
    )
    min_size: int = option(800, "shorter side of the images, in pixels", group="data")
    max_size: int = option(1333, "but the longer side is at most this", group="data")

    model: str = option(
        "metaformer_pooling_s12", "backbone: a model of metamix or timm; train.py takes several, a,b,c", group="model"
    )
    model_args: dict = option({}, "further arguments of the backbone, as YAML: '{drop_path_rate: 0.1}'", group="model")
    pretrained: bool = option(False, "begin from the backbone's published weights", group="model")
    checkpoint: str | None = option(
        None, "begin from the weights in this file, of a classifier or of a detector", group="model"
    )
    detector: Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn"] = option(
        "retinanet", "what stands on the backbone", group="model"
    )
    detector_args: dict = option(
        {}, "further arguments of torchvision's detector, as YAML: '{score_thresh: 0.1}'", group="model"
    )
    out_channels: int = option(256, "width of the pyramid and the head", group="model")
    out_indices: tuple[int, ...] = option(
        (), "levels 0 to 3, of strides 4 to 32; none: as the detector was published", group="model"
    )
    extra: Literal["auto", "none", "pool", "p6p7"] = option(
        "auto", "further levels; auto: as the detector was published", group="model"
    )

    flip: float = option(0.5, "probability of a horizontal flip", group="augmentation")
    flip_vertical: float = option(0.0, "probability of a vertical flip", group="augmentation")
    scales: tuple[float, ...] = option(
        (1.0, 1.0), "least and largest factor on the size, drawn for every image", group="augmentation"
    )
    photometric: float = option(0.0, "probability of other colours, brightness and contrast", group="augmentation")
    iou_crop: float = option(0.0, "probability of a crop that keeps some object, as SSD's", group="augmentation")

    def __post_init__(self) -> None:
        if self.pretrained and self.checkpoint:
            raise ValueError(f"pretrained and checkpoint ({self.checkpoint}) both say where to begin; give one of them")
        for name in ("flip", "flip_vertical", "photometric", "iou_crop", "corrupt_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be between 0 and 1")
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales is {self.scales}, but two factors are needed, the smaller first: 0.8,1.25")
        taken = {"name", "backbone", "backbone_args", "num_classes", "min_size", "max_size", "resize_in_training"}
        if taken := taken & self.detector_args.keys():
            raise ValueError(
                f"detector_args has {', '.join(sorted(taken))}: --min-size and --max-size are the size of the images, "
                f"--model and --model-args the backbone, and --detector what stands on it"
            )
        taken = {"name", "pretrained", "checkpoint", "frozen_norms", "out_channels", "out_indices", "extra"}
        if taken := (taken | {"num_classes", "in_chans"}) & self.model_args.keys():
            raise ValueError(
                f"model_args has {', '.join(sorted(taken))}: --pretrained and --checkpoint are where to begin, "
                f"--out-channels, --out-indices and --extra the pyramid; images are read in colour, and the data set "
                f"has the classes"
            )
        if not self.train_on:
            raise ValueError("train_on is empty; name the splits to train on, such as train or train,val")
        if not 0 < self.min_size <= self.max_size:
            raise ValueError(
                f"min_size is {self.min_size} and max_size {self.max_size}; both must be above 0, and "
                f"min_size the smaller"
            )


class Detection:
    """The detection task: assembles data, model, loss, metric and pictures."""

    Options, EvalOptions = DetectionOptions, EvalOptions
    one_shape = False

    def __init__(self, options: DetectionOptions, seed: int = 0):
        self.options = options
        self.data = DetectionData(options)
        self.title = f"{self.data.name}-{options.detector}-{options.model}"
        self.model = DetectionModel(options, self.data)
        self.loss = detection_loss
        self.metric = DetectionMetric(options, self.data)
        self.pictures = DetectionPictures(self.metric, self.data)

    @property
    def notes(self) -> list[str]:
        return [*self.data.notes, *self.model.notes]

    @classmethod
    def trained(cls, options: EvalOptions) -> tuple[Detection, nn.Module, dict[str, Any]]:
        """For eval.py: the detector of `checkpoint`, built as it was trained, and the task with its classes."""
        if not options.checkpoint:
            raise ValueError("there are no weights to evaluate: give --checkpoint FILE, or a run folder")
        model, about = load_detector(options.checkpoint)
        built = {field.name: about[field.name] for field in fields(DetectionOptions) if field.name in about}
        data = {key: value for key, value in vars(options).items() if key != "checkpoint"}
        trained = DetectionOptions(**built | data)
        trained.train_on = ()  # whose images need not be there
        task = cls(trained)
        if "val" in about.get("train_on", ()):
            task.data.scored.pop("holdout", None)
        task.model.frozen_norms = about["frozen_norms"]
        if list(task.data.classes) != about["classes"]:
            raise ValueError(
                f"{options.checkpoint} knows the classes {', '.join(about['classes'])}, and "
                f"{options.data_dir} has {', '.join(task.data.classes)}; give other --data-dir, or fine-tune "
                f"first: train.py --checkpoint {options.checkpoint}"
            )
        return task, model, about


class DetectionData:
    """Splits and loaders of a data set in COCO's format."""

    def __init__(self, options: DetectionOptions):
        self.options = options
        splits = find_splits(options.data_dir)
        masks = options.detector == "mask_rcnn"
        test = options.test_on or ("test" if "test" in splits else "val")
        if test in options.train_on:
            raise ValueError(
                f"{test} is among the splits to train on, so it cannot be the test: give another --test-on or "
                f"--train-on. The splits are {', '.join(splits)}"
            )
        self.train = [open_split(splits, name, masks) for name in options.train_on]
        self.scored = {"test": open_split(splits, test, masks)}
        if "val" in splits and "val" not in (test, *options.train_on):
            self.scored["holdout"] = open_split(splits, "val", masks)
        first, *others = (*self.train, *self.scored.values())
        for source in others:
            if source.classes != first.classes:
                raise ValueError(
                    f"{source.annotations} has the classes {', '.join(source.classes)}, but "
                    f"{first.annotations} has {', '.join(first.classes)}; all splits need the same"
                )
        self.name = Path(options.data_dir).resolve().name
        self.classes = first.classes
        self.identity = {
            "samples": {
                "train": sum(map(len, self.train)),
                **{name: len(source) for name, source in self.scored.items()},
            },
            "classes": list(self.classes),
        }
        self.notes = [
            f"{source.useless} annotations of {source.annotations} are left out; "
            f"python -m metamix.detection.verify {options.data_dir} names them"
            for source in (*self.train, *self.scored.values())
            if source.useless
        ]
        if options.train_on and not any(source.objects for source in self.train):
            raise ValueError(
                f"{' and '.join(str(source.annotations) for source in self.train)} has "
                f"{self.identity['samples']['train']} images and no object to learn from: give another --train-on"
            )
        for source in self.scored.values():
            if not source.objects:
                raise ValueError(f"{source.annotations} has no object that could be found: give another --test-on")
        for source in (*self.train, *self.scored.values()):
            missing = source.missing()
            if len(missing) > options.corrupt_limit * len(source):
                raise ValueError(
                    f"{len(missing)} of the {len(source)} images of {source.annotations} are not there, such as "
                    f"{missing[0]}; python -m metamix.detection.verify {options.data_dir} names all"
                )

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int):
        return train_loader(self.train, self.options, batch_size=batch_size, rank=rank, world=world_size, seed=seed)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int):
        size = min(batch_size, EVAL_BATCH * world_size)
        return {
            name: Named(name, eval_loader(source, self.options, batch_size=size, rank=rank, world=world_size))
            for name, source in self.scored.items()
        }

    def augment(self, batch: dict[str, Any], epoch: int, step: int, rank: int, world_size: int) -> dict[str, Any]:
        return batch | {"image": [image / 255 for image in batch["image"]]}

    def scored_split(self, states: list[dict[str, Any]]) -> BoxSource:
        """Return the split that the metric's states are of."""
        return self.scored[next(state["split"] for state in states if state["split"])]


class DetectionModel:
    """Builds and describes the detector."""

    frozen_helpers: tuple[nn.Module, ...] = ()

    def __init__(self, options: DetectionOptions, data: DetectionData):
        self.options, self.data = options, data
        self.frozen_norms = False
        self.notes: list[str] = []

    def build(self, metadata: dict[str, Any] | None = None) -> nn.Module:
        """The detector; weights are those of its backbone, or of all of it where the file holds a detector."""
        options = self.options
        file = metadata or (options.checkpoint and load_weights(options.checkpoint)[1])
        whole = bool(file) and file.get("task") == "detection"
        self.frozen_norms = file["frozen_norms"] if whole else bool(options.pretrained or options.checkpoint)
        weights = {} if whole else {"pretrained": options.pretrained, "checkpoint": options.checkpoint}
        model = build_described(self._described(), **weights)
        if whole:
            for key, own in (("image_mean", file["mean"]), ("image_std", file["std"])):
                setattr(model.transform, key, options.detector_args.get(key, own))
        if whole and metadata is None:
            new = load_pretrained(model, options.checkpoint, list(self.data.classes))
            self.notes.append(f"weights from {options.checkpoint}" + (f"; made anew: {', '.join(new)}" if new else ""))
        elif options.checkpoint and metadata is None:
            self.notes.append(f"weights of the backbone from {options.checkpoint}")
        return model

    def describe(self, model: nn.Module) -> dict[str, Any]:
        options = self.options
        return self._described() | {
            "mean": list(model.transform.image_mean),
            "std": list(model.transform.image_std),
            "img_size": options.min_size,
            "data": self.data.name,
            **self.data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(Dense(model), (3, options.min_size, options.min_size)),
        }

    def _described(self) -> dict[str, Any]:
        """All that is needed to build the model again."""
        options, published = self.options, LEVELS[self.options.detector]
        return {
            "task": "detection",
            "frozen_norms": self.frozen_norms,
            "classes": list(self.data.classes),
            "out_indices": tuple(options.out_indices or published["out_indices"]),
            "extra": published["extra"] if options.extra == "auto" else options.extra,
            **{
                key: getattr(options, key)
                for key in ("detector", "detector_args", "model", "model_args", "out_channels", "min_size", "max_size")
            },
            "train_on": list(options.train_on),
        }


def detection_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the detector's own losses."""
    losses = model(batch["image"], batch["target"])
    named = {f"{name.removeprefix('loss_')}_loss": value for name, value in losses.items()}  # curves go by the end
    return sum(losses.values()), named


class DetectionMetric:
    """COCO's average precision."""

    def __init__(self, options: DetectionOptions, data: DetectionData):
        self.options, self.data = options, data
        self._scored: tuple[list[dict[str, Any]] | None, dict[str, Scores]] = None, {}

    def start(self) -> dict[str, Any]:
        return {"split": None, "results": []}

    def update(self, state: dict[str, Any], model: nn.Module, batch: dict[str, Any]) -> None:
        state["split"] = batch["split"][0]
        source = self.data.scored[state["split"]]
        answers = model([image / 255 for image in batch["image"]])
        for index, answer in zip(batch["index"].tolist(), answers):
            if index >= 0:  # in an image that cannot be read nothing is found
                state["results"] += to_coco(answer, source.ids[index], source)

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        kinds = {"": "bbox", "mask_": "segm"} if self.options.detector == "mask_rcnn" else {"": "bbox"}
        return {
            prefix + name: value
            for prefix, kind in kinds.items()
            for name, value in self.scores(states, kind).summary.items()
            if name.startswith("AP")
        }

    def scores(self, states: list[dict[str, Any]], kind: str = "bbox") -> Scores:
        """Compute COCO's scores once for `result`, `draw` and `report`: they take minutes on large sets."""
        if self._scored[0] is not states:
            self._scored = states, {}
        if kind not in self._scored[1]:
            results = [result for state in states for result in state["results"]]
            self._scored[1][kind] = score(self.data.scored_split(states), results, kind)
        return self._scored[1][kind]


class DetectionPictures:
    """Precision over recall, the best and the worst images, and a table of all scores."""

    def __init__(self, metric: DetectionMetric, data: DetectionData):
        self.metric, self.data = metric, data

    def draw(self, states: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Precision over recall; the best and the worst images, truth beside what was found; and all scores as a
        table."""
        scores, source = self.metric.scores(states), self.data.scored_split(states)
        curves, images, numbers = (
            Path(folder) / f"test_{name}" for name in ("curves.png", "images.png", "scores.json")
        )
        draw_precision_recall(curves, scores)
        by_score = sorted(scores.images, key=scores.images.get, reverse=True)
        chosen = by_score if len(by_score) <= 2 * SHOWN else [*by_score[:SHOWN], *by_score[-SHOWN:]]
        found = {image: [] for image in chosen}
        for detection in (d for state in states for d in state["results"]):
            if detection["image_id"] in found and detection["score"] >= 0.5:
                found[detection["image_id"]].append(detection)
        rows = []
        for image_id in chosen:
            try:
                image, truth = source.read(source.ids.index(image_id))
            except CorruptImage:  # which the loader has told of
                continue
            title = f"{source.coco.imgs[image_id]['file_name']}, F1 {scores.images[image_id]:.2f}"
            rows.append((title, image, truth, from_coco(found[image_id], source)))
        draw_grid(images, rows, self.data.classes)
        write_text(numbers, json.dumps({"all": scores.summary, "classes": scores.classes}, indent=2) + "\n")
        return [curves, images, numbers]

    def report(self, states: list[dict[str, Any]]) -> str:
        return table(self.metric.scores(states))


class Named:
    """A loader whose batches say which split they are of."""

    def __init__(self, split: str, loader):
        self.split, self.loader = split, loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            yield batch | {"split": [self.split] * len(batch["image"])}
