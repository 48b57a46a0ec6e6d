"""Build networks for semantic segmentation on any backbone.

    model = build_segmenter("semantic_fpn", backbone="metaformer_raft_s12", num_classes=150)
    model(images)      images (B, 3, H, W) of any size -> scores (B, 150, H, W) in eval mode
                       in training mode a list: scores of the head, and of the auxiliary head if there is one

Normalise images with `model.mean` and `model.std` first. The model pads images with zeros to a multiple of the coarsest
stride, or to the backbone's fixed size if it has one, and crops the scores. Scores are float32 even under autocast.

`metamix.segmentation.heads` describes the heads. A backbone with several stages has a feature map for each stride. An
isotropic backbone has only one map, from which ViTDet's simple pyramid makes the others.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from metamix.layers import crop_to, pad_to, resize_to, round_up
from metamix.models.backbone import (
    Backbone,
    BackboneMixin,
    build_backbone,
    build_probe,
    find_fixed_size,
    for_any_size,
    load_body,
    plan_levels,
    refuse_fine_maps,
    takes_argument,
)
from metamix.models.pyramids import LastMap
from metamix.models.registry import check_model
from metamix.utils.checks import check_choice, check_counts, check_known, check_one_source, parse_size
from metamix.utils.rules import Count, Share, accepted, fits, rule, shown, where
from metamix.weights.download import download
from metamix.weights.find import read_weights
from metamix.weights.fit import load_into

from .heads import DeconvHead, FCNHead, SemanticFPNHead, UPerHead
from .published import published_segmenter

FINEST = {4: 0, 8: 1, 16: 2, 32: 3}  # finest stride of a pyramid -> its level
Stride = Annotated[int, where(FINEST.__contains__, "4, 8, 16 or 32")]
Widths = Annotated[tuple[Count, ...], Field(description="a list of widths, one after each doubling, such as [128, 64]")]
FEW_CHANNELS = 192  # if no feature map has more channels than this, the neck and the head have 64 by default


class Segmenter(BackboneMixin):
    """A backbone and a head: images (B, C, H, W) -> scores (B, num_classes, H, W), or a list of scores in training.

    Attributes:
        auxiliary: a second head that is used only in training, or None.
        classifier: names of the layers whose shape depends on the number of classes.
        mean, std: mean and standard deviation of each image channel, for pixel values from 0 to 1.
        fixed_size: (H, W) of the largest images if the backbone, such as MLP-Mixer, has a fixed size; None if it
            takes any size.
    """

    fixed_size: tuple[int, int] | None = None

    def __init__(self, backbone: Backbone, head: nn.Module, num_classes: int, auxiliary: nn.Module | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary
        self.num_classes = num_classes
        self.in_chans, self.mean, self.std = backbone.in_chans, backbone.mean, backbone.std
        heads = dict(head=head, auxiliary=auxiliary)
        self.classifier = tuple(f"{name}.{last_layer(module)}" for name, module in heads.items() if module is not None)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Compute logits: images (B, C, H, W) -> (B, classes, H, W), or a list of such logits in training."""
        self.check(images)
        padded = pad_to(images, self.fixed_size or (self.backbone.size_divisible,) * 2)
        maps = list(self.backbone(padded).values())
        scores = [self.head(maps)]
        if self.training and self.auxiliary is not None:
            scores.append(self.auxiliary(maps))
        scores = [x.float() if x.dtype.itemsize < 4 else x for x in scores]  # to interpolate in float32
        scores = [resize_to(x, padded.shape[-2:], "bilinear") for x in scores]
        scores = [crop_to(x, images.shape[-2:]) for x in scores]
        return scores if self.training else scores[0]

    def check(self, images: Tensor) -> None:
        """Raise ValueError for a batch of images that this model does not take."""
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images have shape {tuple(images.shape)}; this model takes (B, {self.in_chans}, H, W).")
        height, width = images.shape[-2:]
        if self.fixed_size and (height > self.fixed_size[0] or width > self.fixed_size[1]):
            h, w = self.fixed_size
            raise ValueError(
                f"images have {height} x {width} pixels, and this backbone takes {h} x {w} at most: give tiles of "
                f"{min(h, w)} pixels, or build it with another img_size."
            )
        if self.training and isinstance(self.head, UPerHead) and images.shape[0] < 2:
            raise ValueError("upernet trains on batches of 2 or more: after 1 x 1 pooling, BatchNorm needs 2 values.")


def last_layer(module: nn.Module) -> str:
    """Return the name of the module's last child."""
    return [name for name, _ in module.named_children()][-1]


@dataclass(frozen=True)
class BackboneRequest:
    """The arguments with which a head's function builds the backbone, and the number of classes."""

    name: str
    num_classes: int
    weights: dict[str, Any]  # `pretrained`, `checkpoint` and `batch_norms` of `build_backbone`
    model_args: dict[str, Any]  # arguments of the backbone without `img_size`
    # Image size that spatial weights are made for; None for the backbone's default.
    img_size: int | tuple[int, int] | None

    def padded_args(self, multiple: int) -> dict[str, Any]:
        """Return the backbone's arguments, including `img_size` if it is set and the backbone takes it.

        `img_size` is rounded up to a multiple of `multiple`.
        """
        if self.img_size is None or not takes_argument(self.name, self.model_args, "img_size", (256, 256)):
            return self.model_args
        sides = parse_size("img_size", self.img_size)
        return self.model_args | {"img_size": round_up(sides, (multiple, multiple))}


def on_pyramid(
    make_head: type[SemanticFPNHead] | type[UPerHead],
    published: int,
    request: BackboneRequest,
    *,
    neck_channels: Count | None = None,
    head_channels: Count | None = None,
    finest_stride: Stride = 4,
    auxiliary: bool = False,
    auxiliary_channels: Count | None = None,
    dropout: Share = 0.1,
) -> Segmenter:
    """Build a segmenter whose head reads feature maps of several strides and has the default width `published`.

    `build_segmenter` explains the other arguments. The auxiliary head reads the map of stride 16, or the finest map if
    its stride is larger.
    """
    levels = tuple(range(FINEST[finest_stride], 4))
    plan = plan_levels(request.name, levels, request.model_args)

    def width(channels: int | None, published: int) -> int:
        return channels or (published if max(plan.dims) > FEW_CHANNELS else 64)

    backbone = build_backbone(
        request.name,
        out_indices=levels,
        out_channels=None if make_head is UPerHead else width(neck_channels, 256),
        **request.weights,
        **request.padded_args(plan.size_divisible),
    )
    dims, classes = backbone.channels, request.num_classes
    head = make_head(dims, classes, channels=width(head_channels, published), dropout=dropout)
    channels, level = width(auxiliary_channels, 256), max(0, len(dims) - 2)
    second = FCNHead(dims, classes, level=level, channels=channels, dropout=dropout) if auxiliary else None
    return Segmenter(backbone, head, classes, second)


def wavemix(request: BackboneRequest, *, head_channels: Widths | None = None) -> Segmenter:
    """Build a segmenter with WaveMix's head; `build_segmenter` explains the arguments."""
    name, info = request.name, build_probe(request.name, request.model_args).feature_info
    index, stride, dim = info.out_indices[-1], info.reduction()[-1], info.channels()[-1]
    doublings = round(math.log2(stride))
    if 2**doublings != stride:
        raise ValueError(
            f"The last maps of {name} have stride {stride}, but the wavemix head can only double their sides: take a "
            f"backbone whose stride is a power of 2, or another head."
        )
    if stride < 4:
        refuse_fine_maps(name, stride)
    halves = [dim // 2 ** (i + 1) for i in range(doublings)]
    channels = list(head_channels or halves)
    if len(channels) != doublings or min(channels) < 1:
        raise ValueError(
            f"head_channels is {channels}, but the last maps of {name} have stride {stride}: give {doublings} widths, "
            f"one after each doubling, such as {halves}."
        )
    body = load_body(name, (index,), request.padded_args(stride), **request.weights)
    backbone = Backbone(body, LastMap(), levels=["last"], strides=[stride], channels=[dim], size_divisible=stride)
    return Segmenter(backbone, DeconvHead(dim, request.num_classes, channels=channels), request.num_classes)


HEADS: dict[str, Callable[..., Segmenter]] = {
    "semantic_fpn": partial(on_pyramid, SemanticFPNHead, 128),
    "upernet": partial(on_pyramid, UPerHead, 512, auxiliary=True),
    "wavemix": wavemix,
}


def build_segmenter(
    head: str,
    backbone: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    frozen_norms: bool | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Segmenter:
    """Build a network for semantic segmentation on any backbone.

    Args:
        head: "semantic_fpn", "upernet" or "wavemix".
        backbone: name of a model of metamix or timm that returns features.
        num_classes: number of classes, including the background if it is a class.
        in_chans: number of image channels.
        img_size: image size, an int or (H, W), that spatial weights are made for. Images may have any size, but a few
            of timm's models take only images up to this size. Backbones without spatial weights, such as resnet18,
            ignore it.
        pretrained: load published weights. If `published.WEIGHTS` lists the name of the backbone, such as
            "wavemix_192_16_l3.cityscapes", the whole segmenter is loaded, and its classifier is newly initialised if
            the number of classes differs. Otherwise only the backbone is loaded.
        checkpoint: load the backbone's weights from this file or run folder of a classifier.
        frozen_norms: whether to freeze the backbone's batch norms; None freezes them if weights are loaded.
        backbone_args: more arguments of the backbone, such as `dict(drop_path_rate=0.1)`.
        options: options of the head. The default widths of semantic_fpn and upernet are 64 if no feature map of the
            backbone has more than 192 channels, as in models of size nano. Otherwise they are the published widths:

            - neck_channels (semantic_fpn): width of the feature pyramid, 256.
            - head_channels: width of the head, 128 for semantic_fpn and 512 for upernet. For wavemix, a list of the
              widths after each doubling, by default a half, a quarter and so on of the backbone's width.
            - finest_stride (semantic_fpn, upernet): stride of the finest map, 4, 8, 16 or 32; by default 4.
            - auxiliary (semantic_fpn, upernet): train a second head on the map of stride 16; by default only for
              upernet.
            - auxiliary_channels (semantic_fpn, upernet): width of the second head, 256.
            - dropout (semantic_fpn, upernet): share of channels dropped before the classifiers, 0.1.

    Returns:
        The segmenter in training mode. It returns a list of logits (B, num_classes, H, W): the output of the head, then
        the output of the auxiliary head if there is one. After `eval()` it returns only the logits of the head.

    Raises:
        ValueError: a name or an option is unknown; a value is not accepted; the backbone has no map as fine as
            `finest_stride`, or only maps finer than stride 4; the wavemix head does not fit the stride of the last map;
            weights are not published or do not fit.
    """
    check_choice("head", head, HEADS)
    check_counts(2, num_classes=num_classes)
    check_counts(1, in_chans=in_chans)
    check_options(head, options)
    whole = published_segmenter(head, backbone)
    if whole:
        backbone, options = backbone.partition(".")[0], whole.options | options
    check_model(backbone, pretrained)
    check_one_source(pretrained, checkpoint)
    model_args = dict(backbone_args or {})
    for name in ("in_chans", "img_size", "num_classes"):
        if name in model_args:
            raise ValueError(f"backbone_args has {name}, which is an argument of build_segmenter itself.")
    model_args = for_any_size(backbone, model_args)
    if frozen_norms not in (True, False, None):
        raise ValueError(f"frozen_norms is {frozen_norms!r}, but it must be True, False or None.")
    freeze = pretrained or bool(checkpoint) if frozen_norms is None else frozen_norms
    weights = dict(pretrained=pretrained and not whole, checkpoint=checkpoint, batch_norms="train")
    request = BackboneRequest(backbone, num_classes, weights, dict(in_chans=in_chans) | model_args, img_size)
    model = HEADS[head](request, **options)
    model.fixed_size = find_fixed_size(backbone, request.padded_args(model.backbone.size_divisible))
    if whole and pretrained:
        path = download(whole.url, Path(whole.url).stem)
        new = model.classifier if num_classes != whole.num_classes else ()  # these layers keep their initial values
        name = f"{head} on {backbone}"
        load_into(model, read_weights(path)[0], path, name=name, layout=whole.layout, head=new)
    if freeze:
        freeze_batch_norm_2d(model.backbone)  # its pyramid has no batch norms
    return model


def check_options(head: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that a head does not have, or a value that the option does not accept."""
    parameters = inspect.signature(HEADS[head]).parameters
    others = {"request"} | ({"neck_channels"} if head == "upernet" else set())
    check_known(
        head, options, parameters.keys() - others, "Arguments of the backbone go into backbone_args, or --model-args."
    )
    for name, value in options.items():
        limits = rule(parameters[name].annotation)
        if not fits(value, limits):
            raise ValueError(f"{name} is {shown(value)}, but it must be {accepted(limits, value)}")
