"""Build torchvision's detectors on any backbone.

    model = build_detector("retinanet", backbone="metaformer_raft_s12", num_classes=3)
    losses = model(images, targets)      in training mode: a dict of losses
    predictions = model(images)          in eval mode: boxes, labels, scores (and masks) of each image

`images` is a list of (3, H, W) tensors of any sizes, with values from 0 to 1. `targets` is a list of dicts with
"boxes" (n, 4) as x1, y1, x2, y2 in pixels, "labels" (n,) int64 from 1 to num_classes and, for Mask R-CNN, "masks"
(n, H, W). The boxes of an image without objects have the shape (0, 4).
"""

import inspect
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.models import detection
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from metamix.layers.spatial import resize_nearest
from metamix.models.backbone import Backbone, BackboneMixin, build_backbone
from metamix.utils.checks import check_choice, check_finite, check_known

from .anchors import ANCHOR_SCALE, Anchors, retinanet_sizes
from .objects import Objects, drop_empty, paste


class Detector(BackboneMixin):
    """Mixin that adds a label check, float32 outputs and attributes for training to torchvision's detectors."""

    transform: GeneralizedRCNNTransform  # normalises and resizes images
    # Names of the layers whose shape depends on the number of classes.
    classifier: tuple[str, ...] = ("head.classification_head.cls_logits",)
    # Names of the layers that return float32 under autocast. Boxes decoded in bfloat16 would be off by pixels.
    heads: tuple[str, ...] = ("head",)

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any):
        super().__init__(backbone, num_classes + 1, **options)
        self.num_classes = num_classes  # without the background
        for name in self.heads:
            self.get_submodule(name).register_forward_hook(to_float32)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        if self.training and targets:
            labels = torch.cat([target["labels"] for target in targets])
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
                raise ValueError(
                    f"The labels range from {int(labels.min())} to {int(labels.max())}, but this detector has "
                    f"{self.num_classes} classes: labels must be from 1 (0 is the background) to {self.num_classes}."
                )
        return super().forward(images, targets)


class RetinaNet(Detector, detection.RetinaNet):
    """RetinaNet (Lin et al., arXiv 1708.02002): nine anchors at each location, in three sizes and three aspect ratios.

    The smallest anchor of a level is `anchor_scale` times the level's stride. The others are 2^(1/3) and 2^(2/3) times
    as large. The paper's scale is 4; small objects in small images need a smaller scale.

    As in torchvision's second version, the head has group norms and the box loss is the generalised IoU. Without the
    norms, training from scratch is far slower.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, anchor_scale: float = ANCHOR_SCALE, **options: Any):
        anchors = Anchors(backbone.strides, retinanet_sizes(backbone.strides, anchor_scale), (0.5, 1.0, 2.0))
        head = RetinaNetHead(backbone.out_channels, 9, num_classes + 1, norm_layer=partial(nn.GroupNorm, 32))
        head.regression_head._loss_type = "giou"
        super().__init__(backbone, num_classes, anchor_generator=anchors, head=head, **options)


class FCOS(Detector, detection.FCOS):
    """FCOS (Tian et al., arXiv 1904.01355): predicts one box at each location, in units of the stride."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any):
        anchors = Anchors(backbone.strides, [[stride] for stride in backbone.strides], (1.0,))
        super().__init__(backbone, num_classes, anchor_generator=anchors, **options)


class FasterRCNN(Detector, detection.FasterRCNN):
    """Faster R-CNN (Ren et al., arXiv 1506.01497) on a pyramid.

    The anchors of each level have three aspect ratios and a size of 8 times the stride.
    """

    classifier: tuple[str, ...] = ("roi_heads.box_predictor",)
    heads: tuple[str, ...] = ("rpn.head", "roi_heads.box_predictor")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any):
        anchors = Anchors(backbone.strides, [[8 * stride] for stride in backbone.strides], (0.5, 1.0, 2.0))
        parts = dict(rpn_anchor_generator=anchors, box_roi_pool=roi_align(backbone, 7))
        super().__init__(backbone, num_classes, **(parts | options))


class MaskRCNN(FasterRCNN, detection.MaskRCNN):
    """Mask R-CNN (He et al., arXiv 1703.06870): Faster R-CNN with a mask for each box."""

    classifier = ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits")
    heads = (*FasterRCNN.heads, "roi_heads.mask_predictor")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any):
        super().__init__(backbone, num_classes, **(dict(mask_roi_pool=roi_align(backbone, 14)) | options))


DETECTORS = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
SET_HERE = {"anchor_generator", "head"}  # arguments of torchvision's detectors that metamix sets
ONE_STAGE: dict[str, Any] = dict(out_indices=(1, 2, 3), extra="p6p7")
TWO_STAGES: dict[str, Any] = dict(out_indices=(0, 1, 2, 3), extra="pool")
# Pyramid levels of the published detectors.
LEVELS = {"retinanet": ONE_STAGE, "fcos": ONE_STAGE, "faster_rcnn": TWO_STAGES, "mask_rcnn": TWO_STAGES}


def build_detector(
    name: str,
    *,
    backbone: str | Backbone,
    num_classes: int,
    backbone_args: dict[str, Any] | None = None,
    resize_in_training: bool = True,
    **options: Any,
) -> Detector:
    """Build one of torchvision's detectors on any backbone.

    Args:
        name: "retinanet", "fcos", "faster_rcnn" or "mask_rcnn".
        backbone: name of a model of metamix or timm, or a backbone that `build_backbone` returned.
        num_classes: number of object classes, without the background.
        backbone_args: arguments of `build_backbone` for a backbone given by name, such as
            `dict(pretrained=True, out_channels=128)`. By default the pyramid has the levels of the published detector.
        resize_in_training: resize training images as in evaluation; False if they already have their final size.
        options: arguments of torchvision's detector. Images are resized to a shorter side of min_size pixels (default
            800), or less if the longer side would exceed max_size pixels (1333). Other options include score_thresh and
            detections_per_img (box_score_thresh and box_detections_per_img for the R-CNNs). RetinaNet also takes
            anchor_scale, the size of its smallest anchor in strides (default 4).

    Raises:
        ValueError: the detector, the model or an option is unknown; num_classes is below 1; `backbone` is neither a
            name nor a `Backbone`; backbone_args are given for a built backbone; the backbone has no pyramid; or its
            out_channels do not suit the detector.
    """
    check_choice("detector", name, DETECTORS)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a detector needs at least 1 class besides the background.")
    advice = f"Arguments of the backbone go into backbone_args. metamix makes {' and '.join(sorted(SET_HERE))} itself."
    check_known(name, options, accepted_options(name), advice)  # torchvision ignores unknown options
    if isinstance(backbone, str):
        backbone = build_backbone(backbone, **(LEVELS[name] | (backbone_args or {})))
    elif backbone_args:
        raise ValueError("backbone_args are for a backbone given by name, but this one is already built: drop them.")
    if not isinstance(backbone, Backbone):
        raise ValueError(f"backbone is a {type(backbone).__name__}; give a model's name, or build_backbone(name).")
    if name in ("retinanet", "fcos") and (backbone.out_channels % 32 or backbone.out_channels < 64):
        raise ValueError(f"out_channels is {backbone.out_channels}, but {name} takes multiples of 32, at least 64.")
    defaults = dict(image_mean=backbone.mean, image_std=backbone.std, size_divisible=backbone.size_divisible)
    model = DETECTORS[name](backbone, num_classes, **(defaults | options))
    settings = ("min_size", "max_size", "image_mean", "image_std", "size_divisible")
    theirs = [getattr(model.transform, name) for name in settings]
    model.transform = Transform(*theirs, _skip_resize=not resize_in_training)
    return model


def accepted_options(name: str) -> set[str]:
    """Return the names of all options of a detector: metamix's, torchvision's, and the image transform's."""
    cls = DETECTORS[name]
    classes = (cls, cls.__bases__[1], GeneralizedRCNNTransform)
    options = {parameter for each in classes for parameter in inspect.signature(each).parameters}
    fixed = {"backbone", "num_classes", "kwargs", "options", "fixed_size"}
    return {option for option in options - fixed - SET_HERE if not option.startswith("_")}


class Transform(GeneralizedRCNNTransform):
    """Normalise and resize images like torchvision, but with antialiasing, to match the training transforms."""

    masks_as_runs = False  # whether objects get "runs" instead of torchvision's "masks", (n, 1, H, W) float32

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None):
        if self.training and self._skip_resize:
            return image, target
        size = image.shape[-2:]
        shorter = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(shorter / min(size), self.max_size / max(size))
        new = [max(1, int(side * scale)) for side in size]
        image = F.interpolate(image[None], new, mode="bilinear", antialias=True)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], size, new)
            if "masks" in target:
                target["masks"] = resize_nearest(target["masks"].float(), new).byte()
        return image, target

    def postprocess(self, result: list[Objects], image_shapes: Any, original_image_sizes: Any) -> list[Objects]:
        result = list(map(drop_empty, result))
        masks = [objects.pop("masks", None) for objects in result] if self.masks_as_runs else [None] * len(result)
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for objects, small, size, resized in zip(result, masks, original_image_sizes, image_shapes):
            if small is not None:
                objects["runs"] = paste(small, objects["boxes"], size, resized)
        return result


def detect(model: nn.Module, image: Tensor) -> Objects:
    """Find the objects in an image, (C, H, W) with values from 0 to 1. With Mask R-CNN, "runs" holds run lengths."""
    transform: Any = getattr(model, "transform", None) or nn.Identity()
    transform.masks_as_runs = True
    try:
        (objects,) = model([image])
    finally:
        transform.masks_as_runs = False
    return objects


def roi_align(backbone: Backbone, output_size: int) -> MultiScaleRoIAlign:
    """Build RoIAlign with the exact scales of the levels: torchvision would round them to powers of 2."""
    align = MultiScaleRoIAlign(list(backbone.levels), output_size, sampling_ratio=2)
    align.scales = [1 / stride for stride in backbone.strides[: len(backbone.levels)]]
    first = int(backbone.levels[0]) + 2  # the paper numbers a level by log2 of its stride
    align.map_levels = LevelMapper(first, first + len(backbone.levels) - 1)
    return align


def to_float32(module: nn.Module, args: Any, output: Any) -> Any:
    """Cast a head's outputs to float32; in evaluation without compilation, refuse infinity and NaN.

    Without this check, torchvision would silently drop boxes whose scores are NaN.
    """
    output = tree_map(lambda x: x.float() if x.dtype.itemsize < 4 else x, output)
    if not (module.training or torch.compiler.is_compiling()):
        for values in tree_leaves(output):
            if not values.is_meta:
                check_finite(values)
    return output


def anchor_range(model: Detector) -> tuple[float, float] | None:
    """Return the smallest and the largest anchor size in pixels; None for FCOS, which has no anchors."""
    if isinstance(model, FCOS):
        return None
    owner: Any = model.rpn if hasattr(model, "rpn") else model
    sizes = [size for level in owner.anchor_generator.sizes for size in level]
    return min(sizes), max(sizes)


class BackboneAndHead(nn.Module):
    """Run the backbone and the dense head of a detector, without the steps that follow for each proposal or box."""

    def __init__(self, model: Detector):
        super().__init__()
        self.backbone = model.backbone
        self.head: Any = getattr(model, "rpn", model).head

    def forward(self, x: Tensor):
        return self.head(list(self.backbone(x).values()))
