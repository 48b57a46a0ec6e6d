"""From the name of any timm model to a backbone with a pyramid, as torchvision's detectors want it.

    build_backbone("metaformer_raft_s12")(images)     (B, 3, H, W) -> maps of 256 channels at strides 4, 8, 16, 32

A model of several stages gets a feature pyramid, an isotropic one ViTDet's simple pyramid. Levels are counted from
stride 4 on: 0, 1, 2, 3 stand for strides 4, 8, 16, 32 whatever the model; the patches of some models make them 3.5, 7,
14, 28.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
from timm.layers import BatchNormAct2d, GroupNorm1Act, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from metamix.layers import GroupNorm1
from metamix.utils.tensor_files import load_weights
from metamix.utils.text import nearest

from .pyramids import FeaturePyramid, SimplePyramid
from .registry import check_model, check_published
from .weights import adapt_checkpoint, check_all_but_head

EXTRA = {  # levels past the coarsest one asked for: how many, and what makes them
    "none": (0, lambda dim: None),
    "pool": (1, lambda dim: LastLevelMaxPool()),  # of Faster and Mask R-CNN
    "p6p7": (2, lambda dim: LastLevelP6P7(dim, dim)),  # of RetinaNet and FCOS
}


class Backbone(nn.Module):
    """(B, C, H, W) -> an OrderedDict of (B, out_channels, H / s, W / s) for each s of `strides`, the finest first.

    Attributes:
        out_channels: channels of every level.
        levels: names of the levels that were asked for; extra ones have other names.
        strides: of all levels, extra ones included.
        size_divisible: images whose sides it divides have maps of exactly these strides.
        mean, std: of the images that the model was made for, per channel, on a scale from 0 to 1.
    """

    def __init__(
        self,
        body: nn.Module,
        pyramid: nn.Module,
        *,
        levels: Iterable[str],
        strides: Sequence[float],
        out_channels: int,
        size_divisible: int,
        in_chans: int = 3,
    ):
        super().__init__()
        self.body = body
        self.pyramid = pyramid
        self.levels = tuple(levels)
        self.strides = tuple(strides)
        self.out_channels = out_channels
        self.size_divisible = size_divisible
        self.mean, self.std = (per_channel(body.pretrained_cfg[key], in_chans) for key in ("mean", "std"))
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(x)
        return self.pyramid([m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps)


def build_backbone(
    name: str,
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    out_channels: int = 256,
    extra: str = "none",
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    frozen_norms: bool | None = None,
    **model_args,
) -> Backbone:
    """The model of that name with a pyramid on top.

    Detectors train on batches of few images, or of one, so no batch norm stays: those of a model with loaded weights
    are frozen, those of a new one become group norms of one group (the zoo's WaveMix has them as `norm="group"`).

    Args:
        name: any timm name, the zoo's included, that has features.
        out_indices: levels, ascending: 0 to 3 for strides 4 to 32. A stride that a multi-stage model does not have is
            pooled from the next finer one; an isotropic model has all.
        out_channels: width of the levels.
        extra: further levels: "none", "pool" (one, subsampled, as Faster R-CNN has it) or "p6p7" (two, by convolutions,
            as RetinaNet and FCOS have them).
        pretrained: load the model's published weights.
        checkpoint: load the weights of a classifier from this file or run folder instead.
        frozen_norms: freeze batch norms, or replace them; None: freeze them where weights are loaded.
        model_args: further arguments of the model, such as `img_size=(480, 640)` or `drop_path_rate=0.1`. A model made
            for grey images takes colour ones here, unless `in_chans=1` is among them.

    Raises:
        ValueError: an unknown name or option; a stride finer than the model has; an isotropic model whose maps are as
            fine as a stride below 4; pretrained where no weights are published; a checkpoint of another model, or one
            that lacks any weight but the head's.
    """
    check_model(name)
    if extra not in EXTRA:
        raise ValueError(f"extra is {extra!r}{nearest(extra, EXTRA)} Accepted: {', '.join(EXTRA)}.")
    if not out_indices or list(out_indices) != sorted(set(out_indices) & {0, 1, 2, 3}):
        raise ValueError(
            f"out_indices is {tuple(out_indices)}; accepted are ascending levels of 0, 1, 2, 3 "
            f"for strides 4, 8, 16, 32: such as (0, 1, 2, 3) or (1, 2, 3)."
        )
    if pretrained and checkpoint:
        raise ValueError(f"pretrained and checkpoint ({checkpoint}) both say where weights come from: give one.")
    if pretrained:
        check_published(name)

    # What maps there are is asked of a model without memory; the one that is kept has nothing that they do not need.
    model_args = dict(in_chans=3) | model_args
    try:
        with torch.device("meta"):
            probe = timm.create_model(name, features_only=True, **model_args)
    except TypeError as error:
        raise ValueError(f"{name} does not take {model_args}: {error}") from None
    info = probe.feature_info
    rows = zip(info.out_indices, info.reduction(), info.channels())
    maps = {reduction: (i, dim) for i, reduction, dim in rows}  # of several of one stride the last
    unit = min(maps) * 2.0 ** -round(math.log2(min(maps) / 4))  # stride of level 0, next to 4
    strides = [unit * 2**i for i in out_indices]
    isotropic = len(maps) == 1
    if isotropic and min(maps) < 4:
        refuse_fine(name, probe, min(maps))
    if not isotropic and strides[0] < min(maps):
        accepted = [i for i in range(4) if unit * 2**i >= min(maps)]
        raise ValueError(
            f"{name} has maps of strides {', '.join(map(str, maps))}, none as fine as {strides[0]:g} "
            f"(level {out_indices[0]}): take out_indices from {tuple(accepted)}."
        )
    sources = [max(r for r in maps if r <= s or isotropic) for s in strides]
    used = sorted(set(sources))
    size = probe.pretrained_cfg["input_size"][1:]
    body = load_body(name, tuple(maps[r][0] for r in used), pretrained, checkpoint, size, model_args)
    if frozen_norms or (frozen_norms is None and (pretrained or checkpoint)):
        body = freeze_batch_norm_2d(body)
    else:
        body = group_norms(body)

    count, make_extra = EXTRA[extra]
    pyramid = (SimplePyramid if isotropic else FeaturePyramid)(
        [maps[r][1] for r in used],
        [(str(i), used.index(r), round(math.log2(s / r))) for i, s, r in zip(out_indices, strides, sources)],
        out_channels,
        make_extra(out_channels),
    )
    return Backbone(
        body,
        pyramid,
        levels=map(str, out_indices),
        strides=[*strides, *(strides[-1] * 2 ** (i + 1) for i in range(count))],
        out_channels=out_channels,
        size_divisible=math.ceil(max(strides[-1], used[-1])),
        in_chans=model_args["in_chans"],
    )


def per_channel(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Fit a mean or std to the number of channels as timm fits the weights: averaged for one channel, else repeated."""
    if in_chans == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(in_chans))


def load_body(
    name: str,
    indices: tuple[int, ...],
    pretrained: bool,
    checkpoint: str | Path | None,
    size: tuple[int, int],
    model_args: dict,
):
    """timm's feature extractor for these maps, with its weights; `size`, (H, W), is what the name stands for."""
    overlay = {}
    if checkpoint:
        tensors, about = load_weights(checkpoint)
        theirs, ours = (model.partition(".")[0] for model in (about.get("model", name), name))
        if theirs != ours:
            raise ValueError(f"{checkpoint} holds the weights of {theirs}, not of {ours}: take that backbone")
        with torch.device("meta"):
            model = timm.create_model(name, **model_args)
        given = adapt_checkpoint(model, tensors, checkpoint)
        try:
            check_all_but_head(given, model)  # timm would leave random what is not there
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from None
        cfg = {key: tuple(about[key]) for key in ("mean", "std") if key in about}
        if "in_chans" in about:  # timm makes a stem for grey images one for colour, and the other way round
            cfg["input_size"] = (about["in_chans"], *size)
        overlay = dict(pretrained=True, pretrained_cfg_overlay=cfg | dict(state_dict=tensors))
    body = timm.create_model(
        name, **dict(pretrained=pretrained, features_only=True, out_indices=indices) | model_args | overlay
    )
    for module in body.modules():  # timm keeps copies of what it loaded
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    return body


def group_norms(module: nn.Module) -> nn.Module:
    """Replaces all batch norms inside by group norms of one group, with the weights that they started from."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            make = GroupNorm1Act if isinstance(child, BatchNormAct2d) else GroupNorm1
            new = make(child.num_features, affine=child.affine)
            new.load_state_dict({key: child.state_dict()[key] for key in new.state_dict()})
            if isinstance(child, BatchNormAct2d):
                new.act, new.drop = child.act, child.drop
            setattr(module, name, new)
        else:
            group_norms(child)
    return module


def refuse_fine(name: str, model: nn.Module, stride: int) -> None:
    size = (3, 800, 1216)
    raise ValueError(
        f"{name} keeps all its maps at stride {stride}: to train on a single image of {size[1]} x {size[2]} would take "
        f"{kept_bytes(model, size) / 2**30:.0f} GiB for what its forward pass keeps. Take a model whose stride is 4 or "
        f"more, such as wavemix_192_16, or give this one a coarser stem."
    )


def kept_bytes(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Bytes that a forward pass on one image of `size` keeps for the backward pass, of a model on the meta device."""
    kept = {}  # storages, so that a tensor that is kept twice counts once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model(torch.empty(1, *size, device="meta"))
    del features
    return sum(storage.nbytes() for storage in kept.values())
