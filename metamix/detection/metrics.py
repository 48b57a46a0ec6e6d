"""COCO's scores, by pycocotools.

Detections are in COCO's own form, {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, in pixels of the
image file, with "segmentation" where masks are scored.
"""

import contextlib
import copy
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .coco import BoxSource

# The first nine of COCO's twelve numbers; the others are AR by size.
SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100")


@dataclass(frozen=True)
class Scores:
    """What COCO's evaluation says of one split, in percent.

    Attributes:
        summary: AP (the mean over IoU 0.50 to 0.95), AP50, AP75, AP by size of the objects (below 32 x 32 pixels, below
            96 x 96, above), and AR, the recall with at most 1, 10 and 100 detections an image. A size of which there is
            no object is left out.
        classes: AP and AP50 by class name.
        precision: class name -> precision at recall 0, 0.01, ..., 1, of IoU 0.5: (101,).
        images: image id -> F1 of the detections that score 0.5 or more, at IoU 0.5.
    """

    summary: dict[str, float]
    classes: dict[str, dict[str, float]]
    precision: dict[str, np.ndarray]
    images: dict[int, float]


def table(scores: Scores) -> str:
    """COCO's nine numbers, then AP and AP50 of each class, in lines."""
    width = max(map(len, ["all classes", *scores.classes]))
    all_classes = {"AP": scores.summary["AP"], "AP50": scores.summary["AP50"]}
    lines = ["  ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in scores.summary.items())]
    lines += [f"{'':{width}}     AP   AP50"]
    for name, row in [*scores.classes.items(), ("all classes", all_classes)]:
        lines.append(f"{name:{width}}  {row['AP']:5.1f}  {row['AP50']:5.1f}")
    return "\n".join(lines)


def to_coco(answer: dict[str, Tensor], image_id: int, source: BoxSource) -> list[dict]:
    """What a detector of torchvision says of one image, in COCO's form."""
    boxes = answer["boxes"].cpu().double()  # on the CPU: Apple's GPUs have no float64
    boxes[:, 2:] -= boxes[:, :2]
    results = [
        {"image_id": image_id, "category_id": source.category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(answer["labels"].tolist(), boxes.tolist(), answer["scores"].tolist())
        if label > 0
    ]
    if "masks" in answer:
        from pycocotools import mask

        shapes = (answer["masks"][:, 0] >= 0.5).byte().cpu().numpy()  # (n, H, W)
        for result, shape in zip(results, shapes):
            result["segmentation"] = mask.encode(np.asfortranarray(shape))
    return results


def from_coco(results: list[dict], source: BoxSource) -> dict[str, Tensor]:
    """Detections of one image as a detector of torchvision gives them: "boxes" (n, 4), "labels" (n,) and "scores"
    (n,)."""
    boxes = torch.tensor([result["bbox"] for result in results]).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([source.labels[result["category_id"]] for result in results], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "scores": torch.tensor([result["score"] for result in results])}


def score(source: BoxSource, results: list[dict], kind: str = "bbox") -> Scores:
    """COCO's scores of detections on a split; `kind` is "bbox" or "segm"."""
    from pycocotools.cocoeval import COCOeval

    truth = copy.copy(source.coco)  # evaluation writes into it
    truth.anns = {i: dict(annotation) for i, annotation in source.coco.anns.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(detections(source, results, kind))
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = zip(SUMMARY, evaluation.stats)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 IoUs, 101 recalls, classes), -1 without any object
    classes, curves = {}, {}
    for k, name in enumerate(source.classes):
        if (precision[:, :, k] > -1).any():
            curves[name] = precision[0, :, k]
            classes[name] = {"AP": 100 * precision[:, :, k].mean().item(), "AP50": 100 * curves[name].mean().item()}
    return Scores(
        summary={name: 100 * float(value) for name, value in values if value > -1},
        classes=classes,
        precision=curves,
        images=f1_by_image(evaluation),
    )


def detections(source: BoxSource, results: list[dict], kind: str) -> list[dict]:
    """Results as pycocotools wants them: copies, for it adds to them; without a box where it shall measure masks; and
    not none at all, but then one that scores 0, which changes no number."""
    nothing = {"image_id": source.ids[0], "category_id": source.category_ids[0], "bbox": [0, 0, 1, 1], "score": 0.0}
    if not results:
        return [nothing]
    unused = {"segm": "bbox", "bbox": "segmentation"}[kind]
    return [{key: value for key, value in result.items() if key != unused} for result in results]


def f1_by_image(evaluation) -> dict[int, float]:
    """Image id -> 2 TP / (detections + objects) at IoU 0.5, of detections that score 0.5 or more; 1 where there are
    none of either."""
    parameters = evaluation.params
    hits, total = (dict.fromkeys(map(int, parameters.imgIds), 0) for _ in range(2))
    for e in evaluation.evalImgs:  # one for each class, range of areas and image, or None
        if e is not None and e["aRng"] == parameters.areaRng[0]:
            counted = (np.array(e["dtScores"]) >= 0.5) & ~np.array(e["dtIgnore"][0], dtype=bool)
            hits[int(e["image_id"])] += int((counted & (e["dtMatches"][0] > 0)).sum())
            total[int(e["image_id"])] += int(counted.sum()) + int((np.array(e["gtIgnore"]) == 0).sum())
    return {image: 2 * hits[image] / total[image] if total[image] else 1.0 for image in hits}
