"""Build the skeleton of every classifier in the zoo: MetaFormer (arXiv 2111.11418) around any token mixer.

    x <- x + s1 * DropPath(mixer(norm1(x)))
    x <- x + s2 * DropPath(mlp(norm2(x)))         left out if mlp_ratio is 0

A model is a stem, stages of such blocks with downsampling between them, a norm, a global mean and a linear head:

    images (B, 3, H, W) -> stem -> stage -> downsample, stage -> ... -> norm -> mean over H and W -> head

Several stages make a pyramid; one stage makes an isotropic model. Maps are (B, C, H, W) in any memory format. The
differences between papers are options; no code here branches on a mixer's name.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from timm.layers import DropPath, LayerScale2d, calculate_drop_path_rates, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from metamix.layers import GELU, GlobalPool, GradCheckpointing, GroupNorm1, Mlp, checkpointed, fx_leaf, resize_to
from metamix.mixers.registry import check_shape, create_mixer, describe_mixer, mixer_options
from metamix.utils.checks import check_counts, check_not_negative, check_rates, parse_size
from metamix.weights.fit import function_mismatch

from .arguments import Activation, Norm, activation, check_stages, mixers_per_stage, norm_layer, per_stage
from .embed import DOWNSAMPLE, STEM, Embed, limit_stride
from .resize import cast_floats, resize_mixers

POOLS = ("avg", "max", "avgmax", "")


class Block(nn.Module):
    """One MetaFormer block around a mixer, (B, dim, H, W) -> (B, dim, H, W).

    `mixer` is a module, and `proj_drop` and `drop_path` are the drop rates of this block. All other arguments have the
    same meaning as in `MetaFormer`.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        norm1: Callable[[int], nn.Module] = GroupNorm1,
        norm2: Callable[[int], nn.Module] = GroupNorm1,
        tie_norms: bool = False,
        mlp_ratio: float = 4.0,
        act_layer: type[nn.Module] = GELU,
        layer_scale: float = 1e-5,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        make_scale = partial(LayerScale2d, dim, layer_scale) if layer_scale else nn.Identity
        make_drop_path = partial(DropPath, drop_path) if drop_path else nn.Identity
        self.grad_checkpointing = False
        self.norm1 = norm1(dim)
        self.mixer: Any = mixer
        self.layer_scale1 = make_scale()
        self.drop_path1 = make_drop_path()
        self.mlp = None
        if mlp_ratio:
            self.tie_norms = tie_norms
            self.norm2 = nn.Identity() if tie_norms else norm2(dim)
            hidden = int(dim * mlp_ratio + 1e-6)  # without 1e-6, rounding may turn dim * (n / dim) into n - 1
            if not hidden:
                raise ValueError(f"mlp_ratio {mlp_ratio} times {dim} channels is less than one: give 0 for no MLP.")
            self.mlp = Mlp(dim, hidden, act_layer=act_layer, drop=proj_drop)
            reset_linear(self.mlp.fc1)
            reset_linear(self.mlp.fc2)
            self.layer_scale2 = make_scale()
            self.drop_path2 = make_drop_path()

    def forward(self, x: Tensor) -> Tensor:
        return checkpointed(self, self.branches, x) if self.grad_checkpointing else self.branches(x)

    def branches(self, x: Tensor) -> Tensor:
        """Add the mixer's and the MLP's branch to x."""
        y = check_shape(self.mixer(self.norm1(x)), x, type(self.mixer).__name__)
        x = x + self.drop_path1(self.layer_scale1(y))
        if self.mlp is not None:
            norm2 = self.norm1 if self.tie_norms else self.norm2
            x = x + self.drop_path2(self.layer_scale2(self.mlp(norm2(x))))
        return x


class Stage(nn.Module):
    """A downsampling layer (the identity in the first stage), then blocks of one resolution.

    `make_mixer(size=(H, W))` builds a mixer with the options of this stage, for maps of that size.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], make_mixer: "partial[nn.Module]"):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.make_mixer: Any = make_mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))

    def mixer_text(self, *, defaults: bool = False) -> str:
        """Return the mixer's name and the options that differ from their defaults; with `defaults`, all options."""
        return describe_mixer(self.make_mixer.args[0], self.make_mixer.keywords, defaults=defaults)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save the mixer's name and options in the `_metadata` that torch keeps with a state dict."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["mixer"] = self.mixer_text()

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict, *others: Any) -> None:
        """Reject the tensors of another mixer, which may have the same names and shapes."""
        super()._load_from_state_dict(state, prefix, metadata, *others)
        if problem := self.mixer_mismatch(prefix[:-1], metadata):
            *_, errors = others
            errors.append(problem)

    def mixer_mismatch(self, name: str, metadata: Mapping[str, Any]) -> str | None:
        """Return an error message if a state dict holds another mixer's tensors for this stage, else None.

        `name` is the stage's name in the model. `metadata` holds the entries that `_save_to_state_dict` wrote for it.
        """
        mixer = self.mixer_text()
        theirs, ours = {"the mixer": metadata.get("mixer") or mixer}, {"the mixer": mixer}
        problem = function_mismatch(theirs, ours, f"the state dict holds weights of {name}")
        return problem and (
            f"{problem} Build the model with that mixer, or pass dict(state) to load_state_dict to load the tensors "
            f"anyway."
        )


class MetaFormer(GradCheckpointing):
    """A MetaFormer as a timm model: (B, in_chans, H, W) -> (B, num_classes), for any H and W that the stem takes.

    Args:
        img_size: image size in pixels, an int or (H, W), that spatial weights and position embeddings are made for.
        in_chans: image channels.
        num_classes: outputs of the head; 0 for no head.
        global_pool: as in timm: "avg", "max", "avgmax", or "" for maps.
        depths: blocks of each stage.
        dims: channels of each stage.
        mixer: name of a registered mixer, or a name for each stage.
        mixer_args: options of the mixer: a dict for all stages, or a dict for each stage. `proj_drop` overrides
            `proj_drop_rate`.
        stem: constructor `embed(in_chans, dim)`; see `models/embed.py`.
        downsample: constructor `embed(in_chans, dim)`, or a constructor for each transition between stages.
        mlp_ratio: hidden width of the channel MLP as a multiple of the block's channels, or a number for each stage;
            0 leaves out the MLP and norm2.
        act_layer: activation of the MLP, a class or a name that timm knows.
        norm1, norm2, norm: norms before the mixer, the MLP and the head: a constructor, a name that timm knows, or
            "none".
        tie_norms: apply norm1 before the MLP too; norm2 is then not built.
        layer_scale: initial value of the learned scale of each branch; 0 leaves out the scales.
        pos_embed: add a learned position embedding after the stem; it is resampled for other map sizes.
        output_stride: stride of the last stage's maps, for segmentation. It may be the stride of an earlier stage if
            the downsampling layers after it are convolutions with odd kernels. None keeps the stride.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout in the MLPs, and in the mixers that have dropout.
        drop_path_rate: share of branches dropped in the last block, growing linearly from 0 in the first.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: lists have different lengths, a number is out of range, the image is too small for the stages, the
            model does not take `output_stride` or `dtype`, or a mixer, a mixer's option, a pooling, a norm or an
            activation is unknown.
    """

    pretrained_cfg: Any  # timm sets both attributes
    pretrained_model_args: Any

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
        stem: Embed = STEM,
        downsample: Embed | Sequence[Embed] = DOWNSAMPLE,
        mlp_ratio: float | Sequence[float] = 4.0,
        act_layer: Activation = GELU,
        norm1: Norm = GroupNorm1,
        norm2: Norm = GroupNorm1,
        norm: Norm = GroupNorm1,
        tie_norms: bool = False,
        layer_scale: float = 1e-5,
        pos_embed: bool = False,
        output_stride: int | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_stages(depths, dims)
        check_counts(1, in_chans=in_chans)
        check_rates(drop_rate=drop_rate, proj_drop_rate=proj_drop_rate, drop_path_rate=drop_path_rate)
        stages = len(depths)
        mlp_ratios = per_stage("mlp_ratio", mlp_ratio, stages)
        for ratio in mlp_ratios:
            check_not_negative("mlp_ratio", ratio)
        check_not_negative("layer_scale", layer_scale or 0)
        mixers, mixer_args = mixers_per_stage(mixer, mixer_args, stages)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        make_block = partial(
            Block,
            norm1=norm_layer("norm1", norm1),
            norm2=norm_layer("norm2", norm2),
            tie_norms=tie_norms,
            act_layer=activation(act_layer),
            layer_scale=layer_scale,
            proj_drop=proj_drop_rate,
        )
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.output_stride = output_stride
        self.num_features = self.head_hidden_size = dims[-1]

        # Mixers are built in the device's context and cast afterwards, so they need no `device` or `dtype` argument.
        with torch.device(device) if device is not None else nullcontext():
            self.stem: Any = stem(in_chans, dims[0])
            embeds = per_stage("downsample", downsample, stages - 1)
            downsamples: list[Any] = [nn.Identity(), *(embed(a, b) for embed, (a, b) in zip(embeds, pairwise(dims)))]
            if output_stride is not None:
                limit_stride(self.stem, downsamples[1:], output_stride)
            sizes = self.map_sizes(img_size, downsamples)
            self.pos_embed = None
            if pos_embed:
                self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, dims[0], *sizes[0]), std=0.02))
            self.stages: Any = nn.Sequential()
            for i, (dim, size, ratio) in enumerate(zip(dims, sizes, mlp_ratios)):
                make_mixer = mixer_maker(mixers[i], dim, mixer_args[i], proj_drop_rate)
                blocks = [make_block(dim, make_mixer(size=size), mlp_ratio=ratio, drop_path=p) for p in drop_paths[i]]
                self.stages.append(Stage(downsamples[i], blocks, make_mixer))
            self.norm = norm_layer("norm", norm)(dims[-1])
            self.head_drop = nn.Dropout(drop_rate)
            self.reset_classifier(num_classes, global_pool)
        if dtype is not None:
            if not dtype.is_floating_point:
                raise ValueError(f"dtype is {dtype}: give a type of floating-point numbers, such as torch.bfloat16.")
            cast_floats(self, dtype)

        self.isotropic = stages == 1
        self.feature_info = self.list_features(dims, [self.stem, *downsamples[1:]])

    def map_sizes(self, img_size: int | tuple[int, int], downsamples: Sequence[Any]) -> list[tuple[int, int]]:
        """Return (H, W) of the maps in each stage; reject images that are too small for the stages."""
        sizes = [self.stem.out_size(parse_size("img_size", img_size))]
        for down in downsamples[1:]:
            sizes.append(down.out_size(sizes[-1]))
        if min(min(s) for s in sizes) < 1:
            raise ValueError(f"img_size {img_size} is too small: the maps would be {sizes}; give a larger one.")
        return sizes

    def list_features(self, dims: Sequence[int], embeds: Sequence[Any]) -> list[dict[str, Any]]:
        """Describe the features for timm: the map after each stage, or after each block of an isotropic model."""
        strides = accumulate((embed.reduction for embed in embeds), operator.mul)
        maps = [dict(num_chs=dim, reduction=stride) for dim, stride in zip(dims, strides)]
        if self.isotropic:
            return [maps[0] | dict(module=f"stages.0.blocks.{i}") for i in range(len(self.stages[0].blocks))]
        return [each | dict(module=f"stages.{i}") for i, each in enumerate(maps)]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map after the final norm: (B, in_chans, H, W) -> (B, C, H', W')."""
        return self.norm(self.stages(self.embed(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Return the map that enters the first stage: the stem's output, plus the position embedding if any."""
        x = self.stem(check_batch(x))
        return x if self.pos_embed is None else x + resize_to(self.pos_embed, x.shape[-2:])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a map, or its pooled features if `pre_logits`. With global_pool "", both are maps."""
        x = self.head_drop(self.global_pool(x))
        if pre_logits:
            return x
        return self.head(x.movedim(1, -1)).movedim(-1, 1) if self.global_pool.is_identity() else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; arguments as in the constructor, but `global_pool=None` keeps the current pooling."""
        check_counts(0, num_classes=num_classes)
        if global_pool is not None or not hasattr(self, "global_pool"):
            if global_pool not in POOLS:
                raise ValueError(f"global_pool is {global_pool!r}: give one of {', '.join(map(repr, POOLS))}.")
            self.global_pool = GlobalPool(global_pool)
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            reset_linear(self.head)

    # Methods that timm's feature extractors, optimizers and scripts call

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final map, unless `intermediates_only`, and the features of `feature_info` that `indices` selects.

        The arguments are as in timm. With `norm`, the final norm is applied to features with as many channels as the
        norm. With `stop_early`, the layers after the last requested feature are skipped. The final map is then this
        feature, with the final norm only if no layers were skipped.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; features are maps: use output_fmt='NCHW'.")
        take, last = feature_take_indices(len(self.feature_info), indices)
        units: Any = self.stages[0].blocks if self.isotropic else self.stages  # their outputs are the features
        features = []
        x = self.embed(x)
        for i, unit in enumerate(units[: last + 1] if stop_early else units):
            x = unit(x)
            if i in take:
                features.append(self.norm(x) if norm and x.shape[1] == self.num_features else x)
        if intermediates_only:
            return features
        return (x if stop_early and last + 1 < len(units) else self.norm(x)), features

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that the features at `indices` do not need, and return these indices, counted from 0.

        `prune_norm` and `prune_head` drop the norm and the head. Both are always dropped if the last remaining feature
        does not have the number of channels that they take.
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
        """Resample spatial weights and position embeddings for images of a different size.

        Parameters whose shape does not change stay the same objects. If others are replaced, make a new optimizer.

        Raises:
            ValueError: the size is too small; or a mixer's weights depend on the size, and the mixer's `adapt_state` is
                missing or fails. The model is then unchanged.
        """
        sizes = self.map_sizes(img_size, [stage.downsample for stage in self.stages])
        resize_mixers(self.stages, sizes)
        if self.pos_embed is not None and self.pos_embed.shape[-2:] != sizes[0]:
            self.pos_embed = nn.Parameter(resize_to(self.pos_embed.detach(), sizes[0]), self.pos_embed.requires_grad)
        update_model_input_size(self, parse_size("img_size", img_size))

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that group parameters by depth, for layer-wise learning rates."""
        if coarse:
            return dict(stem=r"^stem|^pos_embed", blocks=r"^stages\.(\d+)")
        return dict(
            stem=r"^stem|^pos_embed",
            blocks=[
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        )

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that take no weight decay, in addition to all vectors."""
        return {"pos_embed"}


def mixer_maker(name: str, dim: int, options: dict[str, Any], proj_drop: float) -> "partial[nn.Module]":
    """Return the function `make_mixer(size=(H, W))` of a stage; a mixer with dropout gets `proj_drop`."""
    dropout = {"proj_drop": proj_drop} if any(o.name == "proj_drop" for o in mixer_options(name)) else {}
    return partial(create_mixer, name, dim, **dropout | options)


@fx_leaf
def check_batch(images: Tensor) -> Tensor:
    """Return the images; raise ValueError unless they are a batch. A layer's own error would be less clear."""
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}, not (B, C, H, W): for one image, give image[None].")
    return images


def reset_linear(layer: Any) -> None:
    """Initialize a linear map with small random weights and a bias of zero."""
    if not layer.weight.is_meta:  # on the meta device, timm takes 7 ms for each layer and sets nothing
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
