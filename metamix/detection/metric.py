"""Compute COCO's scores with pycocotools.

Detections are in COCO's own format: {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, in pixels of
the image file, with "segmentation" if masks are scored.
"""

import contextlib
import copy
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from metamix.training.task import Batch, Metric, State
from metamix.utils.text import aligned

from .coco import CocoSplit
from .data import DetectionData
from .detectors import detect
from .objects import Objects, select

# The first nine of COCO's twelve numbers; the last three are AR by size.
SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100")

Detections = list[dict[str, Any]]


@dataclass(frozen=True)
class Scores:
    """COCO's scores of one split. AP and AR are in percent; precision and F1 range from 0 to 1."""

    # AP (mean over IoU 0.50 to 0.95), AP50, AP75, AP of small (below 32 x 32 pixels), medium (below 96 x 96) and large
    # objects, and AR, the recall with at most 1, 10 and 100 detections per image. Sizes without objects are left out.
    summary: dict[str, float]
    classes: dict[str, dict[str, float]]  # AP and AP50 by class name
    precision: dict[str, np.ndarray]  # precision at recall 0, 0.01, ..., 1 and IoU 0.5, (101,), by class name
    # F1 of each scored image at IoU 0.5, by image id; only detections that score 0.5 or more count.
    images: dict[int, float]


class DetectionMetric(Metric):
    """Score detections as COCO does.

    The model gets one image at a time. A batch would pad its images to a common size, and the padding would change the
    outputs of norms and convolutions. Scores would then depend on the batch size and on the number of processes.
    """

    def __init__(self, data: DetectionData):
        self.data = data
        masks = {"mask_": "segm"} if data.options.detector == "mask_rcnn" else {}
        self.kinds = {"": "bbox"} | masks  # iouType of pycocotools, by the prefix of the scores
        self._scored: tuple[Sequence[State] | None, dict[str, Scores]] = None, {}  # states, and scores by prefix

    def start(self) -> State:
        """Return an empty state: split, ids of scored images, and their detections."""
        return {"split": None, "seen": [], "results": []}

    def predict(self, model: nn.Module, batch: Batch) -> Iterator[Objects]:
        """Yield the objects found in each image, with masks as run lengths."""
        return (detect(model, image / 255) for image in batch["image"])

    def update(self, state: State, outputs: Iterable[Objects], batch: Batch) -> None:
        state["split"] = batch["split"][0]
        split = self.data.scored[state["split"]]
        for index, objects in zip(batch["index"].tolist(), outputs, strict=True):
            state["seen"].append(split.ids[index])
            state["results"] += to_coco(objects, split.ids[index], split)

    def result(self, states: list[State]) -> dict[str, float]:
        """Return COCO's AP scores of boxes, and of any masks; raise ValueError if no readable image has an object."""
        scores = {
            prefix + name: value
            for prefix, scored in self.scores(states).items()
            for name, value in scored.summary.items()
            if name.startswith("AP")
        }
        if not scores:
            raise ValueError("none of the images that could be read has an object to score")
        return scores

    def by_class(self, states: list[State]) -> dict[str, dict[str, float]]:
        """Return AP and AP50 of each class, of boxes and, for Mask R-CNN, of masks."""
        rows: dict[str, dict[str, float]] = {}
        for prefix, scored in self.scores(states).items():
            for name, row in scored.classes.items():
                rows.setdefault(name, {}).update({prefix + score: value for score, value in row.items()})
        return rows

    def scores(self, states: list[State]) -> dict[str, Scores]:
        """Return all scores of boxes and, for Mask R-CNN, of masks, by the prefix of their names: "" and "mask_".

        Scoring takes minutes on a large data set, so the scores of the last states are cached.
        """
        if self._scored[0] is not states:
            results = [result for state in states for result in state["results"]]
            seen = [image_id for state in states for image_id in state["seen"]]
            split = self.data.scored_split(states)
            scores = {prefix: score(split, results, kind, seen) for prefix, kind in self.kinds.items()}
            self._scored = states, scores
        return self._scored[1]


def table(scores: Scores) -> str:
    """Format the scores of the whole split, and then AP and AP50 of each class."""
    numbers = "  ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in scores.summary.items())
    rows = [
        (name, f"{row['AP']:.1f}", f"{row['AP50']:.1f}")
        for name, row in [*scores.classes.items(), ("all classes", scores.summary)]
    ]
    return "\n".join([numbers, *aligned([("", "AP", "AP50"), *rows], right=(1, 2))])


def to_coco(prediction: Objects, image_id: int, split: CocoSplit) -> Detections:
    """Convert the objects of one image into COCO's format."""
    objects = select(prediction, prediction["labels"] > 0)  # 0 is background
    boxes = objects["boxes"].cpu().double()  # to the CPU first, since Apple's GPUs have no float64
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(objects["labels"].tolist(), boxes.tolist(), objects["scores"].tolist(), strict=True)
    results = [
        {"image_id": image_id, "category_id": split.category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in rows
    ]
    for result, runs in zip(results, objects.get("runs", ())):
        result["segmentation"] = runs
    return results


def from_coco(results: Detections, split: CocoSplit) -> Objects:
    """Convert detections of one image into objects. Either all detections have a mask or no detection has one."""
    boxes = torch.tensor([result["bbox"] for result in results]).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([split.labels[result["category_id"]] for result in results], dtype=torch.int64)
    objects = {"boxes": boxes, "labels": labels, "scores": torch.tensor([result["score"] for result in results])}
    runs = [result["segmentation"] for result in results if "segmentation" in result]
    return objects | {"runs": runs} if runs else objects


def score(split: CocoSplit, results: Detections, kind: str = "bbox", image_ids: Sequence[int] | None = None) -> Scores:
    """Compute COCO's scores of boxes ("bbox") or masks ("segm") for `image_ids`, by default all images of the split."""
    from pycocotools.cocoeval import COCOeval

    truth = copy.copy(split.coco)  # the evaluation writes into it
    truth.anns = {i: dict(annotation) for i, annotation in split.coco.anns.items()}
    unused = {"segm": "bbox", "bbox": "segmentation"}[kind]
    copies = [{key: value for key, value in result.items() if key != unused} for result in results]  # loadRes adds keys
    # loadRes fails on an empty list. A detection without an area matches no object.
    none = {"image_id": split.ids[0], "category_id": split.category_ids[0], "bbox": [0, 0, 0, 0], "score": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(copies or [none]), kind)
        evaluation.params.imgIds = list(split.ids if image_ids is None else image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = zip(SUMMARY, evaluation.stats, strict=False)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 IoUs, 101 recalls, classes), -1: no objects
    classes, curves = {}, {}
    for k, name in enumerate(split.coco.cats[number]["name"] for number in sorted(split.coco.cats)):
        if (precision[:, :, k] > -1).any():
            curves[name] = precision[0, :, k]
            classes[name] = {"AP": 100 * precision[:, :, k].mean().item(), "AP50": 100 * curves[name].mean().item()}
    return Scores(
        summary={name: 100 * float(value) for name, value in values if value > -1},
        classes=classes,
        precision=curves,
        images=f1_by_image(evaluation),
    )


def f1_by_image(evaluation) -> dict[int, float]:
    """Compute F1 = 2 TP / (detections + objects) of each image at IoU 0.5, for the detections that score 0.5 or more.

    F1 is 1 for an image that has neither objects nor detections.
    """
    parameters = evaluation.params
    hits, total = (dict.fromkeys(map(int, parameters.imgIds), 0) for _ in range(2))
    for e in evaluation.evalImgs:  # an entry or None for each class, area range and image
        if e is not None and e["aRng"] == parameters.areaRng[0]:
            counted = (np.array(e["dtScores"]) >= 0.5) & ~np.array(e["dtIgnore"][0], dtype=bool)
            hits[int(e["image_id"])] += int((counted & (e["dtMatches"][0] > 0)).sum())
            total[int(e["image_id"])] += int(counted.sum()) + int((np.array(e["gtIgnore"]) == 0).sum())
    return {image: 2 * hits[image] / total[image] if total[image] else 1.0 for image in hits}
