"""The skeleton of every model in the zoo: MetaFormer (arXiv 2111.11418) around any token mixer.

    x <- x + s1 * DropPath(mixer(norm1(x)))
    x <- x + s2 * DropPath(mlp(norm2(x)))         left out, parameters too, where mlp_ratio is 0

A model is a stem, stages of such blocks with a downsampling between them, a norm, a global mean and a linear head.
Several stages make a pyramid, one stage makes an isotropic model. Maps are (B, C, H, W) throughout, in any memory
format. What the papers do differently is an option here; nothing asks which mixer a block holds.
"""

import operator
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate, chain, pairwise

import torch
from timm.layers import GELU as TimmGELU
from timm.layers import (
    DropPath,
    LayerScale2d,
    calculate_drop_path_rates,
    get_act_layer,
    get_norm_layer,
    to_2tuple,
    trunc_normal_,
)
from timm.layers import GroupNorm1 as TimmGroupNorm1
from timm.layers.create_act import _ACT_LAYER_DEFAULT
from timm.layers.create_norm import _NORM_MAP
from timm.models import checkpoint, register_notrace_module
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from metamix.layers import GELU, Conv2d, GlobalPool, GroupNorm1, Mlp, resize_to
from metamix.mixers import create_mixer
from metamix.mixers.registry import depends_on_size
from metamix.utils.text import nearest

Norm = str | Callable[[int], nn.Module] | None  # a name that timm's get_norm_layer knows, a constructor, or none
Embed = Callable[[int, int], nn.Module]  # (in_chans, dim) -> a stem or a downsampling, see ConvEmbed
POOLS = ("avg", "max", "avgmax", "")


@register_notrace_module
class ConvEmbed(Conv2d):
    """A convolution as stem or downsampling: (B, in, H, W) -> (B, out, H', W'), H' = floor((H + 2 p - k) / s) + 1.

    A stem or downsampling of your own is any module built as `embed(in_chans, dim)` with these two: the attribute
    `reduction`, its stride as an int, and `out_size((H, W)) -> (H', W')`.
    """

    def __init__(self, in_chans: int, dim: int, *, kernel_size: int, stride: int, padding: int = 0):
        super().__init__(in_chans, dim, kernel_size, stride, padding)
        self.reduction = stride

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        k, s, p = self.kernel_size[0], self.stride[0], self.padding[0]
        return tuple((n + 2 * p - k) // s + 1 for n in size)


class Block(nn.Module):
    """One MetaFormer block around `mixer`, (B, C, H, W) -> (B, C, H, W); arguments as in `MetaFormer`."""

    def __init__(self, dim, mixer, *, mlp_ratio, act_layer, norm1, norm2, tie_norms, layer_scale, proj_drop, drop_path):
        super().__init__()

        def scale():
            return LayerScale2d(dim, layer_scale) if layer_scale else nn.Identity()

        self.grad_checkpointing = False
        self.norm1 = norm1(dim)
        self.mixer = mixer
        self.layer_scale1 = scale()
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.mlp = None
        if mlp_ratio:
            self.tie_norms = tie_norms
            self.norm2 = nn.Identity() if tie_norms else norm2(dim)
            hidden = int(dim * mlp_ratio + 1e-6)  # a ratio of two widths must give the first of them
            self.mlp = Mlp(dim, hidden, act_layer=act_layer, drop=proj_drop)
            for fc in (self.mlp.fc1, self.mlp.fc2):
                trunc_normal_(fc.weight, std=0.02)
                nn.init.zeros_(fc.bias)
            self.layer_scale2 = scale()
            self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.branches, x) if self.grad_checkpointing else self.branches(x)

    def branches(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.layer_scale1(self.mixer(self.norm1(x))))
        if self.mlp is not None:
            norm2 = self.norm1 if self.tie_norms else self.norm2
            x = x + self.drop_path2(self.layer_scale2(self.mlp(norm2(x))))
        return x


class Stage(nn.Module):
    """A downsampling (none in the first stage) and blocks of one resolution; `make_mixer(size=)` builds the mixers."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], make_mixer: Callable[..., nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.make_mixer = make_mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class MetaFormer(nn.Module):
    """A MetaFormer, as timm expects its models: (B, in_chans, H, W) -> (B, num_classes), any H, W that the stem takes.

    Args:
        img_size: image size, an int or (H, W), that spatial weights and position embeddings are made for.
        in_chans: image channels.
        num_classes: outputs of the head; 0 for none.
        global_pool: as in timm: "avg", "max", "avgmax", or "" for maps.
        depths, dims: blocks and channels of each stage.
        mixer: a registered mixer's name, or one for each stage.
        mixer_args: that mixer's options, a dict for all stages or one for each; `proj_drop` among them stands in for
            `proj_drop_rate`.
        stem, downsample: constructors `embed(in_chans, dim)`, see `ConvEmbed`; the latter may be one per transition.
        mlp_ratio: hidden width of the channel MLP, as a multiple of the block's channels; 0 builds none, nor its norm.
        act_layer: the MLP's activation, a class or a name that timm knows.
        norm1, norm2, norm: before the mixer, the MLP and the head: a constructor, a name that timm knows, or "none".
        tie_norms: apply norm1 before the MLP too; norm2 is then not built.
        layer_scale: start of the learned scale on each branch; 0 for no such scale.
        pos_embed: add a learned position embedding after the stem, resampled where the map has another size.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout in MLPs and mixers.
        drop_path_rate: share of whole branches dropped, growing linearly from 0 in the first block to this in the last.

    Raises:
        ValueError: lists of different lengths, an image too small for the stages, an unknown mixer, mixer option, norm
            or activation, or a mixer option that is not the caller's to set.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mixer: str | Sequence[str] = "pooling",
        mixer_args: dict | Sequence[dict] | None = None,
        stem: Embed = partial(ConvEmbed, kernel_size=7, stride=4, padding=2),
        downsample: Embed | Sequence[Embed] = partial(ConvEmbed, kernel_size=3, stride=2, padding=1),
        mlp_ratio: float | Sequence[float] = 4.0,
        act_layer: str | type[nn.Module] = GELU,
        norm1: Norm = GroupNorm1,
        norm2: Norm = GroupNorm1,
        norm: Norm = GroupNorm1,
        tie_norms: bool = False,
        layer_scale: float = 1e-5,
        pos_embed: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        stages = len(depths)
        if len(dims) != stages:
            raise ValueError(
                f"depths {tuple(depths)} and dims {tuple(dims)} differ in length: give one of each per stage."
            )
        mixers = per_stage("mixer", mixer, stages)
        mixer_args = per_stage("mixer_args", mixer_args or {}, stages)
        mlp_ratios = per_stage("mlp_ratio", mlp_ratio, stages)
        if own := {"name", "dim", "size"}.intersection(chain(*mixer_args)):
            raise ValueError(
                f"mixer_args has {', '.join(sorted(own))}, which the skeleton sets: use mixer, dims and img_size."
            )
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        block = partial(
            Block,
            act_layer=activation("act_layer", act_layer),
            norm1=norm_layer("norm1", norm1),
            norm2=norm_layer("norm2", norm2),
            tie_norms=tie_norms,
            layer_scale=layer_scale,
            proj_drop=proj_drop_rate,
        )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]

        # A mixer, yours too, is built under the device and cast afterwards: it needs no factory arguments.
        with torch.device(device) if device is not None else nullcontext():
            self.stem = stem(in_chans, dims[0])
            embeds = per_stage("downsample", downsample, stages - 1)
            downsamples = [nn.Identity(), *(embed(a, b) for embed, (a, b) in zip(embeds, pairwise(dims)))]
            sizes = self._map_sizes(img_size, downsamples)
            self.pos_embed = (
                nn.Parameter(trunc_normal_(torch.empty(1, dims[0], *sizes[0]), std=0.02)) if pos_embed else None
            )
            self.stages = nn.Sequential()
            for i, (dim, size) in enumerate(zip(dims, sizes)):
                make_mixer = partial(create_mixer, mixers[i], dim, **{"proj_drop": proj_drop_rate, **mixer_args[i]})
                blocks = [
                    block(dim, make_mixer(size=size), mlp_ratio=mlp_ratios[i], drop_path=rate) for rate in drop_paths[i]
                ]
                self.stages.append(Stage(downsamples[i], blocks, make_mixer))
            self.norm = norm_layer("norm", norm)(dims[-1])
            self.head_drop = nn.Dropout(drop_rate)
            self.reset_classifier(num_classes, global_pool)
        self.to(dtype=dtype)

        # A pyramid's features are those after each stage, an isotropic model's those after each block.
        self.isotropic = stages == 1
        reductions = accumulate((embed.reduction for embed in (self.stem, *downsamples[1:])), operator.mul)
        self.feature_info = [
            dict(num_chs=dim, reduction=reduction, module=f"stages.{i}")
            for i, (dim, reduction) in enumerate(zip(dims, reductions))
        ]
        if self.isotropic:
            self.feature_info = [dict(self.feature_info[0], module=f"stages.0.blocks.{j}") for j in range(depths[0])]

    def _map_sizes(self, img_size: int | tuple[int, int], downsamples: Sequence[nn.Module]) -> list[tuple[int, int]]:
        """(H, W) of the maps in each stage."""
        size = to_2tuple(img_size)
        if len(size) != 2 or not all(isinstance(n, int) for n in size):
            raise ValueError(f"img_size is {img_size!r}: give the side of a square, or (height, width), in pixels.")
        sizes = [self.stem.out_size(size)]
        for down in downsamples[1:]:
            sizes.append(down.out_size(sizes[-1]))
        if min(min(s) for s in sizes) < 1:
            raise ValueError(
                f"img_size {img_size} is too small, the maps of the stages would be {sizes}: choose a larger one."
            )
        return sizes

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the last stage's map after the final norm, (B, C, H', W')."""
        return self.norm(self.stages(self.embed(x)))

    def embed(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x if self.pos_embed is None else x + resize_to(self.pos_embed, x.shape[-2:])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map -> logits, or with `pre_logits` the pooled features; where global_pool is "", maps of either."""
        x = self.head_drop(self.global_pool(x))
        if pre_logits:
            return x
        return self.head(x.movedim(1, -1)).movedim(-1, 1) if self.global_pool.is_identity() else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features that `feature_info` lists, and the final map.

        Args:
            indices: which features; the last n for an int, all for None.
            norm: apply the final norm to the features that have its width.
            stop_early: compute nothing past the last feature asked for; the map returned is then that one.
            output_fmt: "NCHW" only.
            intermediates_only: return the features alone.

        Returns:
            (final map, features), or features.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; features are maps: use output_fmt='NCHW'.")
        take, last = feature_take_indices(len(self.feature_info), indices)
        units = self.feature_units()
        features = []
        x = self.embed(x)
        for i, unit in enumerate(units[: last + 1] if stop_early else units):
            x = unit(x)
            if i in take:
                features.append(self.norm(x) if norm and x.shape[1] == self.num_features else x)
        if intermediates_only:
            return features
        return (x if stop_early and last + 1 < len(units) else self.norm(x)), features

    def feature_units(self) -> nn.Sequential:
        """The modules whose outputs are the features, in their order; run one after the other they are the trunk."""
        return self.stages[0].blocks if self.isotropic else self.stages

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop all that the features at `indices` do not need; returns those indices, all of them positive.

        A norm or head that is to stay goes all the same where what is left has fewer channels.
        """
        take, last = feature_take_indices(len(self.feature_info), indices)
        if self.isotropic:
            self.stages[0].blocks = self.stages[0].blocks[: last + 1]
        else:
            self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        width = self.feature_info[-1]["num_chs"]
        if prune_norm or width != self.num_features:
            self.norm = nn.Identity()
        if prune_head or width != self.num_features:
            self.reset_classifier(0, "")
        self.num_features = self.head_hidden_size = width
        return take

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make spatial weights and position embeddings anew for images of another size, from those that are there."""
        sizes = self._map_sizes(img_size, [stage.downsample for stage in self.stages])
        for stage, size in zip(self.stages, sizes):
            mixer = stage.blocks[0].mixer
            if depends_on_size(mixer):
                continue
            made = shapes(stage.make_mixer(size=size))
            # What another took the place of inside, such as a batch norm for detection, is not size's doing.
            if any(made.get(name, shape) != shape for name, shape in shapes(mixer).items()):
                raise ValueError(
                    f"{type(mixer).__name__} has parameters of other shapes on maps of {size}: give it "
                    f"adapt_state(state), which brings parameters saved at another size to its own."
                )
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(resize_to(self.pos_embed.detach(), sizes[0]), self.pos_embed.requires_grad)
        for stage, size in zip(self.stages, sizes):
            for block in stage.blocks:
                old = block.mixer
                if not depends_on_size(old):
                    continue
                block.mixer = (
                    stage.make_mixer(size=size).to(next(block.parameters(), torch.empty(0))).train(old.training)
                )
                block.mixer.load_state_dict(block.mixer.adapt_state(old.state_dict()))
                for name, p in block.mixer.named_parameters():
                    p.requires_grad_(old.get_parameter(name).requires_grad)
        update_model_input_size(self, img_size)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of `num_classes` outputs, none for 0; `global_pool` as in the constructor, kept where None."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool is {global_pool!r}; accepted are {', '.join(map(repr, POOLS))}.")
            self.global_pool = GlobalPool(global_pool)
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the input of each block for the backward pass, and compute the rest again there.

        A BatchNorm in a block then sees each batch twice: its running statistics follow the batches faster.
        """
        for stage in self.stages:
            for block in stage.blocks:
                block.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Groups of parameters by depth, for layer-wise learning rates."""
        blocks = (
            r"^stages\.(\d+)"
            if coarse
            else [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        )
        return dict(stem=r"^stem|^pos_embed", blocks=blocks if coarse else [*blocks, (r"^norm", (99999,))])

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Of all that its state holds, by name."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def per_stage(name: str, value, stages: int) -> list:
    """`value` for each of `stages`: repeated, unless it is a sequence of one for each."""
    if isinstance(value, (str, dict, int, float)) or callable(value):
        return [value] * stages
    if len(value) != stages:
        raise ValueError(
            f"{name} has {len(value)} entries where there are {stages}: give one for all, or one for each."
        )
    return list(value)


# Those of timm's norms that take maps.
MAP_NORMS = [n for n in _NORM_MAP if n in ("batchnorm", "groupnorm", "groupnorm1") or "2d" in n]


def norm_layer(option: str, norm: Norm) -> Callable[[int], nn.Module]:
    """The constructor that `norm`, given for `option`, stands for; none is the identity, timm's GroupNorm1 is ours."""
    if norm is None or norm == "none":
        return lambda dim: nn.Identity()
    made = by_name(option, norm, get_norm_layer, [*MAP_NORMS, "none"])
    return GroupNorm1 if made is TimmGroupNorm1 else made


def activation(option: str, act: str | type[nn.Module]) -> type[nn.Module]:
    """The class that `act`, given for `option`, stands for; GELU, torch's or timm's, is ours."""
    made = by_name(option, act, get_act_layer, _ACT_LAYER_DEFAULT)
    return GELU if made in (nn.GELU, TimmGELU) else made


def by_name(option: str, layer, get: Callable, names: Collection[str]):
    """`layer`, or what timm's `get` knows by that name, one of `names` in any spelling."""
    if callable(layer):
        return layer
    known = {name.replace("_", ""): name for name in names}
    spelt = str(layer).replace("_", "").lower()
    if spelt not in known:
        raise ValueError(
            f"{option} is {layer!r}{nearest(layer, names)} Accepted: a constructor of your own, or one of "
            f"{', '.join(names)}."
        )
    return get(known[spelt])
