"""torchvision's detectors over any backbone: one line from a name to a model that trains.

    model = build_detector("retinanet", backbone="metaformer_raft_s12", num_classes=3)
    losses = model(images, targets)      in training: a dict of losses
    answers = model(images)              in evaluation: for each image boxes, labels, scores (and masks)

`images` is a list of (3, H, W) tensors, of any sizes, on a scale from 0 to 1; `targets` a list of dicts with "boxes"
(n, 4) as x1, y1, x2, y2 in pixels, "labels" (n,) int64 from 1 to num_classes, and for Mask R-CNN "masks" (n, H, W). An
image without objects has boxes of shape (0, 4).
"""

import inspect
import re
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from metamix.models.backbone import Backbone, build_backbone
from metamix.utils.text import nearest


class Detector:
    """What a trainer asks of a model, and a check of labels, for the classes below.

    `classifier` names the layers whose size goes by the number of classes.
    """

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        if self.training and targets:
            labels = torch.cat([target["labels"] for target in targets])
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
                raise ValueError(
                    f"Labels go from {int(labels.min())} to {int(labels.max())}, but this detector has "
                    f"{self.num_classes} classes: labels count from 1 (0 is the background) to {self.num_classes}."
                )
        return super().forward(images, targets)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Groups of parameters by depth, for layer-wise learning rates: the backbone's, then all that is above it."""
        body = self.backbone.body
        if "model" not in dict(body.named_children()):  # timm has taken the model apart: each part is a layer
            return {name: rf"backbone\.body\.{re.escape(name)}\." for name, _ in body.named_children()}

        def inside(pattern: str) -> str:
            anywhere = re.sub(r"(?<!\[)\^", "", pattern)
            return rf"backbone\.body\.model\.(?:{anywhere})"

        groups = body.model.group_matcher(coarse)
        return {
            name: inside(spec) if isinstance(spec, str) else [(inside(pattern), suffix) for pattern, suffix in spec]
            for name, spec in groups.items()
            if spec is not None
        }

    def no_weight_decay(self) -> set[str]:
        model = getattr(self.backbone.body, "model", None)
        names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        return {f"backbone.body.model.{name}" for name in names}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        body = self.backbone.body
        getattr(body, "model", body).set_grad_checkpointing(enable)


class RetinaNet(Detector, detection.RetinaNet):
    """Lin et al., arXiv 1708.02002: at each place nine anchors, of three sizes and three shapes.

    The sizes are `anchor_scale` strides, by default 4 as in the paper, and 2^(1/3) and 2^(2/3) times that: small
    objects on small images want a smaller one.

    As torchvision's second version, with group norms in the head and a generalised IoU loss: without norms a detector
    that starts from scratch has learned nothing when this one finds most objects.
    """

    classifier = ("head.classification_head.cls_logits",)

    def __init__(self, backbone: Backbone, num_classes: int, *, anchor_scale: float = 4.0, **options):
        sizes = [[anchor_scale * stride * 2 ** (i / 3) for i in range(3)] for stride in backbone.strides]
        anchors = Anchors(backbone.strides, sizes, (0.5, 1.0, 2.0))
        head = RetinaNetHead(backbone.out_channels, 9, num_classes + 1, norm_layer=partial(nn.GroupNorm, 32))
        head.regression_head._loss_type = "giou"
        super().__init__(backbone, num_classes + 1, anchor_generator=anchors, head=head, **options)
        self.num_classes = num_classes
        outputs_in_float32(self.head)


class FCOS(Detector, detection.FCOS):
    """Tian et al., arXiv 1904.01355: at each place one box, in units of the stride."""

    classifier = ("head.classification_head.cls_logits",)

    def __init__(self, backbone: Backbone, num_classes: int, **options):
        anchors = Anchors(backbone.strides, [[stride] for stride in backbone.strides], (1.0,))
        super().__init__(backbone, num_classes + 1, anchor_generator=anchors, **options)
        self.num_classes = num_classes
        outputs_in_float32(self.head)


class FasterRCNN(Detector, detection.FasterRCNN):
    """Ren et al., arXiv 1506.01497, on a pyramid: proposals from anchors of 8 strides and three shapes."""

    classifier = ("roi_heads.box_predictor",)

    def __init__(self, backbone: Backbone, num_classes: int, **options):
        super().__init__(backbone, num_classes + 1, **(two_stages(backbone) | options))
        self.num_classes = num_classes
        outputs_in_float32(self.rpn.head, self.roi_heads.box_predictor)


class MaskRCNN(Detector, detection.MaskRCNN):
    """He et al., arXiv 1703.06870: Faster R-CNN and a mask for each box."""

    classifier = ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits")

    def __init__(self, backbone: Backbone, num_classes: int, **options):
        parts = two_stages(backbone) | dict(mask_roi_pool=roi_align(backbone, 14))
        super().__init__(backbone, num_classes + 1, **(parts | options))
        self.num_classes = num_classes
        outputs_in_float32(self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor)


DETECTORS = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
ONE_STAGE, TWO_STAGES = dict(out_indices=(1, 2, 3), extra="p6p7"), dict(out_indices=(0, 1, 2, 3), extra="pool")
LEVELS = {"retinanet": ONE_STAGE, "fcos": ONE_STAGE, "faster_rcnn": TWO_STAGES, "mask_rcnn": TWO_STAGES}  # as published


def build_detector(
    name: str,
    *,
    backbone: str | Backbone,
    num_classes: int,
    backbone_args: dict | None = None,
    resize_in_training: bool = True,
    **options,
) -> nn.Module:
    """A detector of torchvision over any backbone.

    Args:
        name: "retinanet", "fcos", "faster_rcnn" or "mask_rcnn".
        backbone: the name of any timm model, or what `build_backbone` returned.
        num_classes: classes of objects; the background is not one of them.
        backbone_args: arguments of `build_backbone` for a backbone given by name, over the levels that the detector was
            published with: `dict(pretrained=True, out_channels=128)`.
        resize_in_training: whether training images are resized as those of evaluation are; not if they come in their
            final sizes.
        options: arguments of torchvision's detector, such as min_size and max_size in pixels (images are resized to a
            shorter side of min_size, 800, but a longer one of at most max_size, 1333), score_thresh or
            detections_per_img (box_score_thresh and so on for the R-CNNs).

    Raises:
        ValueError: an unknown detector, model or option, a backbone without a pyramid, no class.
    """
    if name not in DETECTORS:
        raise ValueError(f"There is no detector {name!r}{nearest(name, DETECTORS)} Accepted: {', '.join(DETECTORS)}.")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a detector needs at least 1 class, background not counted.")
    ours = DETECTORS[name]
    classes = (ours, ours.__mro__[2], GeneralizedRCNNTransform)  # ours, torchvision's, and what it hands on
    accepted = {parameter for cls in classes for parameter in inspect.signature(cls).parameters}
    accepted -= {"backbone", "num_classes", "kwargs", "options", "fixed_size", "anchor_generator", "head"}
    for option in options:
        if option not in accepted:  # torchvision would take no notice of it
            raise ValueError(
                f"{name} has no option {option!r}{nearest(option, accepted)} "
                f"Its options: {', '.join(sorted(a for a in accepted if a[0] != '_'))}."
            )
    if isinstance(backbone, str):
        backbone = build_backbone(backbone, **(LEVELS[name] | (backbone_args or {})))
    elif backbone_args:
        raise ValueError("backbone_args are for a backbone given by name; this one is built already: leave them out.")
    if not isinstance(backbone, Backbone):
        raise ValueError(f"backbone is a {type(backbone).__name__}; give a name of timm's, or build_backbone(name).")
    if name in ("retinanet", "fcos") and (backbone.out_channels % 32 or backbone.out_channels < 64):
        raise ValueError(
            f"The head of {name} has norms of 32 groups, and out_channels is {backbone.out_channels}: "
            f"give a multiple of 32, 64 or more."
        )
    defaults = dict(image_mean=backbone.mean, image_std=backbone.std, size_divisible=backbone.size_divisible)
    model = ours(backbone, num_classes, **(defaults | options))
    model.transform = Transform.like(model.transform, resize_in_training)
    return model


class Transform(GeneralizedRCNNTransform):
    """torchvision's normalisation and resizing, but antialiased, as torchvision's transforms of training images are."""

    @classmethod
    def like(cls, other: GeneralizedRCNNTransform, resize_in_training: bool) -> "Transform":
        return cls(
            other.min_size,
            other.max_size,
            other.image_mean,
            other.image_std,
            other.size_divisible,
            _skip_resize=not resize_in_training,
        )

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
                target["masks"] = F.interpolate(target["masks"][:, None].float(), new)[:, 0].byte()
        return image, target


class Anchors(AnchorGenerator):
    """torchvision's anchors, at the exact strides of the pyramid and in float32.

    torchvision's own strides are the image's size over the map's, rounded down: wrong for 3.5, and for maps that were
    rounded up. It also computes in the maps' dtype, and bfloat16 knows only every eighth pixel beyond 1024.
    """

    def __init__(self, strides: Sequence[float], sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]):
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        strides = [(stride, stride) for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([x.shape[-2:] for x in feature_maps], strides))
        return [anchors for _ in image_list.image_sizes]


def two_stages(backbone: Backbone) -> dict:
    """What both R-CNNs are built with: anchors of proposals, and how boxes are cut from the maps."""
    anchors = Anchors(backbone.strides, [[8 * stride] for stride in backbone.strides], (0.5, 1.0, 2.0))
    return dict(rpn_anchor_generator=anchors, box_roi_pool=roi_align(backbone, 7))


def roi_align(backbone: Backbone, output_size: int) -> MultiScaleRoIAlign:
    """torchvision's RoIAlign over the levels asked for, told their scales: it would round them to powers of 2."""
    align = MultiScaleRoIAlign(list(backbone.levels), output_size, sampling_ratio=2)
    align.scales = [1 / stride for stride in backbone.strides[: len(backbone.levels)]]
    first = int(backbone.levels[0]) + 2  # the paper counts levels by the logarithm of their stride
    align.map_levels = LevelMapper(first, first + len(backbone.levels) - 1)
    return align


def outputs_in_float32(*heads: nn.Module) -> None:
    """Under autocast boxes and losses are computed from float32: in bfloat16 a box would be off by pixels."""
    for head in heads:
        head.register_forward_hook(to_float32)


def to_float32(module: nn.Module, args, output):
    return tree_map(lambda x: x.float() if x.dtype.itemsize < 4 else x, output)


class Dense(nn.Module):
    """What a detector computes at every place of an image, (B, 3, H, W) -> the outputs of its dense head: its cost, for
    R-CNNs without what they do for each proposal."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.head = model.rpn.head if hasattr(model, "rpn") else model.head

    def forward(self, x: Tensor):
        return self.head(list(self.backbone(x).values()))
