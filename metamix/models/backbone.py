"""Build a timm model with a feature pyramid, as a backbone for detection and segmentation.

    build_backbone("metaformer_raft_s12")(images)     (B, 3, H, W) -> maps of 256 channels at strides 4, 8, 16, 32

A multi-stage model gets a feature pyramid; an isotropic model gets ViTDet's simple pyramid. Levels 0, 1, 2, 3 have the
strides 4, 8, 16, 32, or the closest that the model's maps allow: 3.5, 7, 14, 28 for patches of 7 or 14 pixels.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from timm.layers import BatchNormAct2d, GroupNorm1Act, freeze_batch_norm_2d, to_2tuple
from timm.models import get_model_input_config
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from metamix.layers import Conv2d, GroupNorm1
from metamix.utils.checks import check_choice, check_counts, check_one_source
from metamix.weights.download import require_reachable
from metamix.weights.find import read_weights

from .checkpoint import adapt_checkpoint
from .metaformer import MetaFormer
from .pyramids import FeaturePyramid, SimplePyramid
from .registry import check_model

BATCH_NORMS = ("auto", "freeze", "replace", "train")


class P6P7(LastLevelP6P7):
    """torchvision's two extra levels P6 and P7, with convolutions whose gradient is right on narrow maps too."""

    def __init__(self, dim: int):
        super().__init__(dim, dim)
        for conv in self.children():
            conv.__class__ = Conv2d  # keeps the initial weights


EXTRA: dict[str, tuple[int, Callable[[int], ExtraFPNBlock | None]]] = {  # by `extra`: level count and constructor
    "none": (0, lambda dim: None),
    "pool": (1, lambda dim: LastLevelMaxPool()),  # Faster and Mask R-CNN
    "p6p7": (2, P6P7),  # RetinaNet and FCOS
}


class Backbone(nn.Module):
    """A model with a pyramid: (B, C, H, W) -> an OrderedDict of maps (B, out_channels, H / s, W / s), finest first.

    Attributes:
        out_channels: channels of every level, or of the widest level if they differ.
        channels: channels of each level in `out_indices`.
        in_chans: image channels.
        levels: names of the levels in `out_indices`; the extra levels have other names.
        strides: stride s of each level, including the extra levels.
        size_divisible: if the image's sides are multiples of this, the maps of `out_indices` have exactly these
            strides. The sides of the extra levels' maps may be rounded up.
        mean, std: mean and standard deviation of each image channel, for pixel values from 0 to 1.
    """

    def __init__(
        self,
        body: Any,
        pyramid: nn.Module,
        *,
        levels: Iterable[str],
        strides: Sequence[float],
        channels: Sequence[int],
        size_divisible: int,
    ):
        super().__init__()
        self.body = body
        self.pyramid = pyramid
        self.levels = tuple(levels)
        self.strides = tuple(strides)
        self.channels = tuple(channels)
        self.out_channels = max(channels)
        self.size_divisible = size_divisible
        self.in_chans = get_model_input_config(body)["input_size"][0]
        self.mean, self.std = (per_channel(body.pretrained_cfg[key], self.in_chans) for key in ("mean", "std"))
        self.nhwc = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(x)
        return self.pyramid([m.permute(0, 3, 1, 2) for m in maps] if self.nhwc else maps)


class BackboneMixin(nn.Module):
    """Methods that timm's optimizers and a trainer call on a network with a `backbone`."""

    backbone: Backbone

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group the parameters by depth for layer-wise learning rates: the backbone's layers first, then the others."""
        body: Any = self.backbone.body
        if "model" not in dict(body.named_children()):  # timm has split the model into its layers
            return {name: rf"backbone\.body\.{re.escape(name)}\." for name, _ in body.named_children()}

        def inside_body(pattern: str) -> str:
            unanchored = re.sub(r"(?<!\[)\^", "", pattern)
            return rf"backbone\.body\.model\.(?:{unanchored})"

        groups = body.model.group_matcher(coarse)
        return {
            name: inside_body(spec)
            if isinstance(spec, str)
            else [(inside_body(pattern), suffix) for pattern, suffix in spec]
            for name, spec in groups.items()
            if spec is not None
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of the backbone's parameters that take no weight decay."""
        model = getattr(self.backbone.body, "model", None)
        names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        return {f"backbone.body.model.{name}" for name in names}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing of the backbone on or off."""
        body: Any = self.backbone.body
        getattr(body, "model", body).set_grad_checkpointing(enable)


def build_backbone(
    name: str,
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    out_channels: int | None = 256,
    extra: str = "none",
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    batch_norms: str = "auto",
    **model_args: Any,
) -> Backbone:
    """Build a model with a feature pyramid.

    Detectors train on few images per batch, too few for batch statistics. So by default batch norms are frozen if
    weights are loaded, and otherwise replaced by group norms of one group (as with `norm="group"` of WaveMix).

    Args:
        name: a model of timm or of the zoo that supports `features_only`.
        out_indices: levels, ascending: 0 to 3 for strides 4 to 32. If a multi-stage model has no map of a level's
            stride, the next finer map is pooled. An isotropic model's last map gives all levels.
        out_channels: channels of the levels. None leaves out the top-down path: each level then has as many channels
            as its stage, or as the isotropic model.
        extra: coarser levels to add: "none", "pool" (one level by subsampling, as in Faster R-CNN) or "p6p7" (two
            levels by convolutions, as in RetinaNet and FCOS).
        pretrained: load the model's published weights.
        checkpoint: load the weights of a classifier from this file or run folder; None loads no file.
        batch_norms: "freeze", "replace", "train", or "auto" to freeze them if weights are loaded, else to replace them.
        model_args: more arguments of the model, such as `img_size=(480, 640)` or `drop_path_rate=0.1`. `in_chans` is 3
            unless it is given, even for models that were made for grey images.

    Raises:
        ValueError: a name or option is unknown; options exclude each other; a level is finer than the model's finest
            map; an isotropic model has maps finer than stride 4; no weights are published; or the checkpoint belongs to
            another model or lacks weights.
    """
    check_model(name, pretrained)
    check_choice("extra", extra, EXTRA)
    if not out_indices or list(out_indices) != sorted(set(out_indices) & {0, 1, 2, 3}):
        raise ValueError(f"out_indices is {tuple(out_indices)}; give ascending levels from 0 to 3, such as (1, 2, 3).")
    check_one_source(pretrained, checkpoint)
    check_choice("batch_norms", batch_norms, BATCH_NORMS)
    if out_channels is None and extra != "none":
        raise ValueError(f"extra is {extra!r}, which needs levels of one width: give out_channels.")
    if out_channels is not None:
        check_counts(1, out_channels=out_channels)
    model_args = dict(in_chans=3) | for_any_size(name, model_args)
    plan = plan_levels(name, out_indices, model_args)
    weights: dict[str, Any] = dict(pretrained=pretrained, checkpoint=checkpoint, batch_norms=batch_norms)
    body = load_body(name, plan.body_indices, model_args, **weights)

    levels = [(str(i), source, times) for i, (source, times) in zip(out_indices, plan.sources)]
    dims = [plan.dims[source] for source, _ in plan.sources]
    width = out_channels or dims[0]
    count, make_extra = EXTRA[extra]
    pyramid: nn.Module
    if plan.isotropic:
        pyramid = SimplePyramid(plan.dims[-1], {name: times for name, _, times in levels}, width, make_extra(width))
    else:
        pyramid = FeaturePyramid(plan.dims, levels, out_channels, make_extra(width))
    return Backbone(
        body,
        pyramid,
        levels=map(str, out_indices),
        strides=[*plan.strides, *(plan.strides[-1] * 2 ** (i + 1) for i in range(count))],
        channels=[out_channels or dim for dim in dims],
        size_divisible=plan.size_divisible,
    )


@dataclass(frozen=True)
class Plan:
    """The levels of a pyramid, and the maps of a model that they are made from."""

    isotropic: bool  # whether all maps have the same stride
    strides: tuple[float, ...]  # stride of each level
    body_indices: tuple[int, ...]  # indices of the maps that the levels need, for timm's `out_indices`
    dims: tuple[int, ...]  # channels of these maps
    sources: tuple[tuple[int, int], ...]  # for each level: index of its map in `dims`, and how many times to halve it
    size_divisible: int  # images whose sides are multiples of this have maps of exactly these strides


def plan_levels(name: str, out_indices: Sequence[int], model_args: dict[str, Any]) -> Plan:
    """Choose the maps for the levels in `out_indices`; see `build_backbone` for arguments and errors."""
    # The probe lists all maps. The real model then gets only the layers that the chosen maps need.
    probe = build_probe(name, model_args)
    info = probe.feature_info
    rows = zip(info.out_indices, info.reduction(), info.channels())
    maps = {reduction: (i, dim) for i, reduction, dim in rows}  # the last map of each stride
    unit = min(maps) * 2.0 ** -round(math.log2(min(maps) / 4))  # stride of level 0, as close to 4 as possible
    strides = [unit * 2**i for i in out_indices]
    isotropic = len(maps) == 1
    if isotropic and min(maps) < 4:
        refuse_fine_maps(name, min(maps))
    if not isotropic and strides[0] < min(maps):
        accepted = [i for i in range(4) if unit * 2**i >= min(maps)]
        raise ValueError(
            f"{name} has maps of strides {', '.join(map(str, maps))}, but none as fine as {strides[0]:g} "
            f"(level {out_indices[0]}): choose out_indices from {tuple(accepted)}."
        )
    sources = [max(r for r in maps if r <= s or isotropic) for s in strides]
    used = sorted(set(sources))
    return Plan(
        isotropic=isotropic,
        strides=tuple(strides),
        body_indices=tuple(maps[r][0] for r in used),
        dims=tuple(maps[r][1] for r in used),
        sources=tuple((used.index(r), round(math.log2(s / r))) for s, r in zip(strides, sources)),
        size_divisible=math.ceil(max(strides[-1], used[-1])),
    )


def build_probe(name: str, model_args: dict[str, Any]) -> Any:
    """Build timm's feature extractor for all maps of a model, on the meta device."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, features_only=True, **model_args)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} does not take {model_args}: {error}") from None


def takes_argument(name: str, model_args: dict[str, Any], argument: str, value: Any) -> bool:
    """Return whether a model's constructor takes an argument. For example, timm's resnet18 takes no img_size."""
    try:
        build_probe(name, model_args | {argument: value})
    except ValueError as error:
        if f"'{argument}'" in str(error):
            return False
        raise
    return True


def for_any_size(name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Add the arguments with which timm's ViT and Swin take images of any size, unless they are given."""
    missing = {a: v for a, v in (("dynamic_img_size", True), ("strict_img_size", False)) if a not in model_args}
    return model_args | {a: value for a, value in missing.items() if takes_argument(name, model_args, a, value)}


@torch.no_grad()
def find_fixed_size(name: str, model_args: dict[str, Any]) -> tuple[int, int] | None:
    """Return the image size (H, W) that a model is built for if it takes no other size, else None.

    The model is run at this size and at twice this size. The result is None if the model fails at this size or
    runs at twice this size.
    """
    probe = build_probe(name, model_args).eval()
    if isinstance(getattr(probe, "model", None), MetaFormer):
        return None
    channels, *default_size = probe.pretrained_cfg["input_size"]
    h, w = to_2tuple(model_args.get("img_size", tuple(default_size)))

    def runs(height: int, width: int) -> bool:
        try:
            probe(torch.empty(1, model_args.get("in_chans", channels), height, width, device="meta"))
        except (AssertionError, RuntimeError):
            return False
        return True

    return None if runs(2 * h, 2 * w) or not runs(h, w) else (h, w)


def load_body(
    name: str,
    indices: tuple[int, ...],
    model_args: dict[str, Any],
    *,
    pretrained: bool,
    checkpoint: str | Path | None,
    batch_norms: str,
) -> nn.Module:
    """Build timm's extractor of the maps at `indices`. `build_backbone` describes the other arguments."""
    weights: dict[str, Any] = {"pretrained": pretrained}
    if pretrained:
        require_reachable(name)
    if checkpoint:
        tensors, metadata = read_weights(checkpoint)
        theirs, ours = metadata.architecture or name, name.partition(".")[0]
        if metadata.task and any(key.startswith("backbone.") for key in tensors):
            raise ValueError(f"{checkpoint} has weights for {metadata.task}: give a file of the classifier {ours}")
        if theirs.partition(".")[0] != ours:
            raise ValueError(f"{checkpoint} holds weights of {theirs}, not of {ours}: give --model {theirs}")
        with torch.device("meta"):
            model: Any = timm.create_model(name, **model_args)
        adapt_checkpoint(model, tensors, checkpoint, metadata)  # only a check: timm ignores missing and extra weights
        cfg: dict[str, Any] = {key: value for key, value in metadata.pretrained_cfg().items() if key in ("mean", "std")}
        if metadata.in_chans is not None:  # timm adapts the stem to a different number of channels
            cfg["input_size"] = (metadata.in_chans, *model.pretrained_cfg["input_size"][1:])
        weights = {"pretrained": True, "pretrained_cfg_overlay": cfg | {"state_dict": tensors}}
    arguments: dict[str, Any] = {"features_only": True, "out_indices": indices} | model_args | weights
    body = timm.create_model(name, **arguments)
    for module in body.modules():  # timm keeps a copy of the tensors that it loaded
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    if batch_norms == "freeze" or (batch_norms == "auto" and (pretrained or checkpoint)):
        return freeze_batch_norm_2d(body)
    return body if batch_norms == "train" else replace_batch_norms(body)


def replace_batch_norms(module: nn.Module) -> nn.Module:
    """Replace all batch norms inside a module with group norms of one group, which take over weights and biases."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            make = GroupNorm1Act if isinstance(child, BatchNormAct2d) else GroupNorm1
            new = make(child.num_features, affine=child.affine)
            new.load_state_dict({key: child.state_dict()[key] for key in new.state_dict()})
            if isinstance(child, BatchNormAct2d):
                new.act, new.drop = child.act, child.drop
            setattr(module, name, new)
        else:
            replace_batch_norms(child)
    return module


def per_channel(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Adapt the mean or std of image channels to `in_chans` channels, as timm adapts the first convolution.

    A single channel gets the average of the values, since timm sums the channels' weights. Otherwise the channels take
    the values in turn.
    """
    if in_chans == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(in_chans))


def refuse_fine_maps(name: str, stride: int) -> NoReturn:
    """Raise ValueError for a model whose maps are too large to train on images of a usual size."""
    raise ValueError(
        f"{name} keeps all its maps at stride {stride}, which may take tens of GiB for one image of 800 x 1216. Use a "
        f"model of stride 4 or more, such as wavemix_192_16, or give this model a coarser stem."
    )
