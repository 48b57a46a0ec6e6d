"""Export RetinaNet and FCOS. The graph returns boxes, scores and labels before non-maximum suppression:

    images (n, C, H, W) -> boxes (n, K, 4), scores (n, K), labels (n, K)

The first K - 1 candidates are the best of each pyramid level, chosen as in torchvision. The last candidate is not an
object: it has the score -1 and the label of the last class, which is the number of classes. The graph takes images
that are normalised, resized and padded with zeros: to H x W or, in a dynamic graph, to multiples of `size_divisible` of
the detector's transform. A dynamic program of torch.export fails on a map of a single pixel, so its images are padded
until the coarsest map has at least two pixels on each side. `ExportedDetector` prepares images and suppresses boxes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from metamix.deploy.runtime import ExportedModel
from metamix.layers import round_up
from metamix.layers.image_inference import Size
from metamix.tasks.exportable import AnySide, CalibratedExport, Comparison, ExportOptions, Model, Pair
from metamix.training.task import Batch
from metamix.utils.checks import check_finite
from metamix.utils.rules import Share, rule
from metamix.utils.text import plural
from metamix.weights.files import ARTIFACT
from metamix.weights.metadata import ModelMetadata

from .box_match import BoxMatch
from .detectors import FCOS, RetinaNet
from .load import DetectorSpec, TrainedDetector, load_detector
from .objects import Objects, drop_empty
from .options import DetectionEvalOptions
from .task import Detection

CANDIDATES = 100  # number of candidates to compare on a random image

# Rules for the entries that `ExportedDetector` reads from `extra` in export.json, which is an untrusted file.
SETTINGS = {
    "score_thresh": rule(Share),
    "nms_thresh": rule(Share),
    **dict.fromkeys(("detections_per_img", "min_size", "max_size", "multiple", "least"), rule(AnySide)),
}


class DetectorGraph(nn.Module):
    """Compute the best candidates of each pyramid level. Their boxes may extend beyond the image.

    Args:
        model: RetinaNet or FCOS, in evaluation mode.
        dynamic: whether the graph takes images of any size. K is then the same for all sizes: a level with too few
            candidates is filled up with candidates of score -1.
    """

    def __init__(self, model: Any, dynamic: bool):
        super().__init__()
        self.backbone, self.head, self.box_coder = model.backbone, model.head, model.box_coder
        self.dynamic, self.centred = dynamic, isinstance(model, FCOS)
        self.classes = model.head.classification_head.num_classes  # with background
        self.anchors, self.candidates = model.anchor_generator, model.topk_candidates
        self.anchors.set_cell_anchors(torch.float32, torch.device("cpu"))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = list(self.backbone(images).values())
        candidates = [self.best(self.head([x]), level) for x, level in zip(maps, self.anchors.by_level(maps))]
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*candidates))
        last = labels[:, :1] * 0 + self.classes - 1
        return F.pad(boxes, (0, 0, 0, 1)), F.pad(scores, (0, 1), value=-1.0), torch.cat([labels, last], 1)

    def best(self, outputs: dict[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes (n, k, 4), scores and labels (n, k) of a level's best candidates."""
        scores = outputs["cls_logits"].sigmoid()  # (n, anchors, classes)
        if self.centred:
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        classes = scores.shape[-1]
        scores = scores.flatten(1)
        if self.dynamic:  # OpenVINO 2026.4 cannot convert a k that is the minimum of a constant and a size
            scores, count = F.pad(scores, (0, self.candidates), value=-1.0), self.candidates
        else:
            count = min(self.candidates, scores.shape[1])
        best, index = scores.topk(count)
        anchor = index // classes * (best >= 0)
        chosen = outputs["bbox_regression"].gather(1, anchor[..., None].expand(-1, -1, 4)).flatten(0, 1)  # (n k, 4)
        decode = self.box_coder.decode if self.centred else self.box_coder.decode_single
        boxes = decode(chosen, anchors[anchor.flatten()]).unflatten(0, (-1, count))
        return boxes, best, index % classes


def suppress(outputs: Sequence[Tensor], size: Sequence[int], settings: dict[str, Any]) -> Objects:
    """Return the objects of one image with a score above the threshold, after non-maximum suppression in each class.

    Args:
        outputs: outputs of the graph for the image: boxes (1, K, 4), scores (1, K) and labels (1, K).
        size: (height, width) of the image without padding; boxes are clipped to it.
        settings: score_thresh, nms_thresh and detections_per_img, as in torchvision.

    Raises:
        ValueError: an output is NaN or infinite.
    """
    boxes, scores, labels = (check_finite(output)[0] for output in outputs)
    sure = scores > settings["score_thresh"]
    objects = {"boxes": clip_boxes_to_image(boxes[sure], size), "scores": scores[sure], "labels": labels[sure]}
    objects = drop_empty(objects)  # boxes in the padding are empty
    keep = batched_nms(*objects.values(), settings["nms_thresh"])[: settings["detections_per_img"]]
    return {name: values[keep] for name, values in objects.items()}


class ExportedDetector(nn.Module):
    """Run a graph as a detector for images (C, h, w) of any size, with values from 0 to 1.

    Args:
        size: (H, W) of the graph; None if it is dynamic.
        settings: `Artifact.extra`.
    """

    def __init__(self, model: Model, metadata: ModelMetadata, size: Size | None, settings: dict[str, Any]):
        super().__init__()
        self.run, self.size, self.settings = model, size, settings
        self.score_thresh = settings["score_thresh"]  # score that an object must exceed; callers may change it
        self.classes = len(metadata.classes or ())
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (metadata.mean, metadata.std))

    def forward(self, images: Sequence[Tensor]) -> list[Objects]:
        """Find the objects of each image; boxes are in pixels of this image."""
        objects = []
        for image in images:
            prepared, size = self.prepare(image)
            objects.append(self.objects(self.run(prepared[None]), size, image))
        return objects

    def objects(self, outputs: Sequence[Tensor], size: Size, image: Tensor) -> Objects:
        """Return the objects of an image, from the graph's outputs and the size that `prepare` returned."""
        settings = self.settings | {"score_thresh": self.score_thresh}
        if (highest := int(outputs[2].max())) > self.classes:
            raise ValueError(
                f"the graph finds class {highest}, but {ARTIFACT} has {plural(self.classes, 'class')}: "
                f"export the model again"
            )
        objects = suppress(outputs, size, settings)
        height, width = image.shape[-2:]
        return objects | {"boxes": objects["boxes"] * torch.tensor([width / size[1], height / size[0]] * 2)}

    def prepare(self, image: Tensor) -> tuple[Tensor, Size]:
        """Normalise, resize (to at most H x W) and pad an image for the graph; also return its size before padding."""
        height, width = image.shape[-2:]
        shorter = self.settings["min_size"] / min(height, width)
        scale = min(shorter, self.settings["max_size"] / max(height, width))
        if self.size:
            scale = min(scale, self.size[0] / height, self.size[1] / width)
        new = max(1, int(height * scale)), max(1, int(width * scale))
        normal = (image - self.mean) / self.std
        resized = F.interpolate(normal[None], new, mode="bilinear", antialias=True)[0]
        least = self.settings["least"]
        full = self.size or round_up([max(side, least) for side in new], (self.settings["multiple"],) * 2)
        return F.pad(resized, (0, full[1] - new[1], 0, full[0] - new[0])), new


class ExportableDetector(CalibratedExport):
    """A RetinaNet or FCOS to export; without a task or without objects, it is compared on random images."""

    outputs: tuple[str, ...] = ("boxes", "scores", "labels")

    def __init__(self, detector: Any, metadata: ModelMetadata, options: ExportOptions, task: Detection | None = None):
        self.detector = detector.eval()
        step, coarsest = detector.backbone.size_divisible, max(detector.backbone.strides)
        shorter, longer = detector.transform.min_size[-1], detector.transform.max_size
        size: Any = options.img_size
        height, width = size or round_up((shorter, longer), (step, step))
        if height % step or width % step:
            raise ValueError(f"img_size is {height} x {width}, but {options.source} takes multiples of {step} pixels")
        least = 1
        if options.dynamic:
            smallest = 2 * math.ceil(coarsest)  # torch.export fixes the size if a map of the example is a single pixel
            height, width = round_up((max(height, smallest), max(width, smallest)), (step, step))
            if options.format == "torch":  # the smallest side at which no map is a single pixel
                least = (int(coarsest) // step + 1) * step
        self.fixed, channels = None if options.dynamic else (height, width), len(detector.transform.image_mean)
        metadata = replace(metadata, img_size=(height, width), in_chans=channels, num_classes=detector.num_classes)
        extra = {
            "score_thresh": detector.score_thresh,
            "nms_thresh": detector.nms_thresh,
            "detections_per_img": detector.detections_per_img,
            "min_size": shorter,
            "max_size": longer,
            "multiple": detector.transform.size_divisible,
            "least": least,
        }
        super().__init__(DetectorGraph(detector, options.dynamic), metadata, extra, task, options.images)
        if not options.dynamic and max(height, width) > round_up((longer, longer), (step, step))[0]:
            self.notes.append(
                f"images are resized to a shorter side of at most {shorter} and a longer side of at most {longer} "
                f"pixels: the rest of {height} x {width} is padding, which costs time and changes scores"
            )

    def eager(self, images: Tensor) -> list[Objects]:
        """Find the objects of prepared images (n, C, H, W) with torchvision's own code."""
        maps = list(self.detector.backbone(images).values())
        outputs = self.detector.head(maps)
        anchors = self.detector.anchor_generator.by_level(maps)  # DetectorGraph has set the cell anchors
        counts = [len(level) for level in anchors]
        split = {name: list(output.split(counts, 1)) for name, output in outputs.items()}
        shapes = [images.shape[-2:]] * len(images)
        return self.detector.postprocess_detections(split, [anchors] * len(images), shapes)

    def parity(self, precision: str) -> BoxMatch:
        return BoxMatch(self.extra["score_thresh"], self.extra["detections_per_img"], precision)

    def random_images(self) -> list[Tensor]:
        larger = 0 if self.fixed else self.extra["multiple"]
        return [self.examples(2)[:1], self.examples(2, larger, 2 * larger)[1:]]

    def pair(self, images: Tensor, outputs: Any) -> Pair:
        return drop_empty(self.eager(images)[0]), suppress(outputs, images.shape[-2:], self.extra)

    def test_outputs(self, exported: Model) -> Iterator[tuple[Batch, Pair, Pair]]:
        ours = self.detector_of(exported)
        for batch in self.test_images():
            image = batch["image"][0] / 255
            prepared, size = ours.prepare(image)
            outputs = exported(prepared[None])
            scored = self.task.metric.predict(self.detector, batch), [ours.objects(outputs, size, image)]
            yield batch, self.pair(prepared[None], outputs), scored

    @torch.no_grad()
    def compare(self, exported: Model, precision: str) -> Comparison:
        """Compare the objects that the two models find; if there are none, compare candidates on random images."""
        comparison = super().compare(exported, precision)
        if not comparison.parity["objects"]:
            match = BoxMatch(0.0, CANDIDATES + 1, precision)
            for images in self.random_images():
                match.update(best_candidates(self.model(images)), best_candidates(exported(images), None))
            comparison.parity, comparison.problems = {"on": "random images"} | match.result(), match.problems()
        return comparison

    def detector_of(self, graph: Model) -> ExportedDetector:
        """Wrap a graph as a detector that takes images of any size."""
        return ExportedDetector(graph, self.metadata, self.fixed, self.extra)

    def inputs(self, batch: Batch) -> list[Tensor]:
        return [self.detector_of(self.model).prepare(batch["image"][0] / 255)[0][None]]

    def image_score(self, model: Model, batch: Batch) -> float:
        """Return the AP of the image; see `image_ap`."""
        (objects,) = self.detector_of(model)([batch["image"][0] / 255])
        return image_ap(objects, batch["target"][0])


def best_candidates(outputs: Sequence[Tensor], count: int | None = CANDIDATES) -> Objects:
    """Return the `count` candidates of one image that have the highest scores; all candidates if `count` is None."""
    boxes, scores, labels = (check_finite(output)[0, :-1] for output in outputs)  # the last is not an object
    best = scores.argsort(descending=True)[:count]
    return {"boxes": boxes[best], "scores": scores[best], "labels": labels[best]}


def image_ap(predicted: Objects, truth: Objects) -> float:
    """Compute the average precision of one image in percent, the mean over IoU 0.5 to 0.95 as in COCO.

    The detections of all classes are ranked together. The result is NaN if the image has no objects.
    """
    ious = torch.linspace(0.5, 0.95, 10)
    overlaps = box_iou(predicted["boxes"], truth["boxes"]) * (predicted["labels"][:, None] == truth["labels"])
    free, hits = torch.ones(len(ious), len(truth["boxes"])), torch.zeros(len(ious), len(overlaps))
    if not free.numel():
        return math.nan
    for i, overlap in enumerate(overlaps):  # by score; each box is matched with the free object that it overlaps most
        best, place = (overlap * free).max(1)
        hits[:, i] = best >= ious
        free[hits[:, i] > 0, place[hits[:, i] > 0]] = 0
    precision = hits.cumsum(1) / torch.arange(1, len(overlaps) + 1)
    return 100 * float((precision * hits).sum() / free.numel())


def open_detector(options: ExportOptions) -> ExportableDetector:
    """Load a RetinaNet or FCOS that metamix trained, with its data set if a folder is given."""
    source = options.source
    if options.data not in (None, "coco") or (options.data and not options.data_dir):
        raise ValueError(f"data is {options.data}, but detection only takes a folder in COCO's format: give --data-dir")
    task = None
    model: Any
    if options.data_dir:
        eval_options = DetectionEvalOptions(checkpoint=source, data_dir=options.data_dir, workers=0)
        task, model, metadata = Detection.for_evaluation(eval_options)
    else:
        trained = load_detector(source)
        model, metadata = trained.model, trained.metadata
    if not isinstance(model, (RetinaNet, FCOS)):
        raise ValueError(f"{source} is a {type(model).__name__}; only RetinaNet and FCOS can be exported or timed")
    return ExportableDetector(model, metadata, options, task)


def exported_detector(exported: ExportedModel) -> TrainedDetector:
    """Use an exported model as a detector; raise ValueError if export.json is incomplete or contradicts the graph."""
    artifact = exported.artifact
    artifact.check(SETTINGS, needs=["num_classes", "mean", "std", "classes"])
    model = ExportedDetector(exported, artifact.model, artifact.size, artifact.extra).eval()
    spec, outputs = DetectorSpec.from_dict(artifact.model.to_dict(), ARTIFACT), exported.probe()
    if len(outputs) != 3 or int(outputs[2].max()) != model.classes:
        raise ValueError(
            f"{ARTIFACT} has {plural(model.classes, 'class')}, but the graph has a different number of classes: "
            f"export the model again"
        )
    return TrainedDetector(model, spec, artifact.model)
