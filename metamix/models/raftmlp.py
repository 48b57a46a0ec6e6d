"""Build RaftMLP, "How Much Can Be Done Without Attention and with Less Spatial Locality?" (arXiv 2108.04384).

A model has four levels of raft MLPs (`mixers/raft.py`) and channel MLPs. Each level begins with a patch embedding. Most
of these embed patches of several sizes. For images of another size, the authors resize the residual stream itself.
The registered models do this too (`resample="stream"`).

Departures in training: the authors apply drop path to the vertical and the horizontal MLP separately, with one rate for
all blocks, and use dropout in the raft MLPs too. They also initialize channel MLPs, head and stem differently.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from timm.models import register_notrace_module
from torch import Tensor, nn

from metamix.layers import ConvWeights, resize_to, round_up
from metamix.mixers.raft import RaftMlp
from metamix.utils.checks import check_counts
from metamix.weights.layout import Layout

from .arguments import check_stages, per_stage
from .metaformer import MetaFormer
from .official import ModelAndLayout, check_value, official, refuse
from .registry import IMAGENET, build, register


@register_notrace_module
class MultiScaleEmbed(nn.Module):
    """Embed patches of several sizes around the same centre with one linear map.

    (B, in, H, W) -> (B, dim, ceil(H / s), ceil(W / s)). If the stride does not divide the sides of an image, the image
    is enlarged until it does, as in the authors' code.

    The sum of convolutions with the same stride is one convolution. Its kernel is the sum of their kernels, each
    padded to the size of the largest. `forward` computes this convolution; the state dict holds the separate kernels.

    Args:
        kernels: sides of the patches; each must be the stride plus an even number.
        stride: s, distance between the centres of neighbouring patches.
    """

    def __init__(self, in_chans: int, dim: int, *, kernels: tuple[int, ...], stride: int):
        super().__init__()
        check_counts(1, patch_size=stride)
        if not isinstance(kernels, (tuple, list)) or not kernels:
            raise ValueError(f"embedding kernels are {kernels!r}: give each level a tuple of sides, such as (4, 8).")
        if any((k - stride) % 2 or k < stride for k in kernels):
            raise ValueError(
                f"kernels {kernels} cannot share centres at stride {stride}: give the stride plus even numbers."
            )
        self.reduction = stride
        # The convolutions are one linear map, so only the first has a bias.
        self.convs = nn.ModuleList(ConvWeights(in_chans, dim, k, bias=i == 0) for i, k in enumerate(kernels))

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H', W') of the output for an input of `size` = (H, W)."""
        return -(-size[0] // self.reduction), -(-size[1] // self.reduction)

    def forward(self, x: Tensor) -> Tensor:
        s = self.reduction
        x = resize_to(x, round_up(x.shape[-2:], (s, s)))
        kernel, bias, padding = self.summed()
        return F.conv2d(x, kernel, bias, s, padding)

    def summed(self) -> tuple[Tensor, Tensor, int]:
        """Return kernel, bias and padding of the convolution that sums all kernels."""
        convs: list[Any] = list(self.convs)
        largest = max(conv.kernel_size[0] for conv in convs)
        kernel: Any = sum(F.pad(conv.weight, [(largest - conv.kernel_size[0]) // 2] * 4) for conv in convs)
        return kernel, convs[0].bias, (largest - self.reduction) // 2


class ShortcutClassifier(nn.Module):
    """A classifier that reads every level, as with the authors' `shortcut=True`: (B, C, H, W) -> (B, num_classes).

    v = mean(norm(x_4));  v <- a_i * v + b_i for levels i = 3, 2, 1 with a_i, b_i = split(Linear(mean(norm(x_i)))).
    The model's own head then turns v into logits. No published model has this classifier.
    """

    def __init__(self, model: MetaFormer):
        super().__init__()
        dims = [info["num_chs"] for info in model.feature_info]
        self.model = model
        self.norms = nn.ModuleList(LayerNorm2d(dim, eps=1e-5) for dim in dims[:-1])
        self.gates = nn.ModuleList(nn.Linear(dim, 2 * dims[-1]) for dim in dims[:-1])
        self.to(next(model.parameters()))

    def forward(self, x: Tensor) -> Tensor:
        final, features = self.model.forward_intermediates(x)
        v = self.model.forward_head(final, pre_logits=True)
        for x, norm, gate in reversed(list(zip(features, self.norms, self.gates))):
            a, b = gate(norm(x).mean((-2, -1))).chunk(2, dim=-1)
            v = a * v + b
        return self.model.get_classifier()(v)


def raftmlp(
    name: str,
    pretrained: bool = False,
    *,
    dims: tuple[int, ...],
    depths: tuple[int, ...] = (2, 2, 6, 2),
    patch_sizes: tuple[int, ...] = (4, 2, 2, 2),
    embedding_kernels: tuple[tuple[int, ...], ...] = ((4, 8), (2, 4), (2, 4), (2,)),
    raft_size: int = 2,
    token_expansion: int = 2,
    channel_expansion: int = 4,
    **kwargs: Any,
) -> nn.Module:
    """Build a RaftMLP. The arguments below use the paper's terms; `kwargs` are arguments of `MetaFormer`.

    Args:
        dims: channels of each level.
        depths: blocks of each level.
        patch_sizes: stride of each level's patch embedding.
        embedding_kernels: sides of the patches of each level. With a single side that equals the stride, the level has
            a plain patch embedding.
        raft_size: number of channel groups.
        token_expansion: hidden width of the raft MLPs as a multiple of their input width.
        channel_expansion: hidden width of the channel MLPs as a multiple of their input width.
    """
    check_stages(depths, dims)
    kernels = per_stage("embedding_kernels", embedding_kernels, len(depths))
    strides = per_stage("patch_sizes", patch_sizes, len(depths))
    stem, *downsamples = (partial(MultiScaleEmbed, kernels=k, stride=s) for k, s in zip(kernels, strides))
    norm = partial(LayerNorm2d, eps=1e-5)
    preset: dict[str, Any] = dict(
        mixer="raft",
        default_mixer_args={"raft": dict(raft_size=raft_size, expansion=token_expansion, resample="stream")},
        norm1="none",
        norm2=norm,
        norm=norm,
        mlp_ratio=channel_expansion,
        layer_scale=0,
    )
    return build(name, pretrained, depths=depths, dims=dims, stem=stem, downsample=downsamples, **(preset | kwargs))


for name, dims in {
    "raftmlp_s": (64, 128, 256, 512),
    "raftmlp_m": (96, 192, 384, 768),
    "raftmlp_l": (128, 192, 512, 1024),
}.items():
    register(name, raftmlp, cfg=IMAGENET | dict(first_conv=("stem.convs.0", "stem.convs.1")), dims=dims)


# Checkpoints of github.com/okojoalg/raft-mlp

RAFTMLP_NAMES = (
    (r"^model\.", ""),  # inside ShortcutClassifier
    (r"^head\.", "classifier."),
    (r"^norms\.(\d+)\.", r"heads.\1.1."),
    (r"^gates\.(\d+)\.", r"heads.\1.4."),
    (r"^stem\.", "stages.0.downsample."),
    (r"^stages\.(\d+)\.", r"levels.\1."),
    (r"\.blocks\.(\d+)\.", lambda m: f".fn.{2 + int(m[1])}."),
    (r"\.mixer\.(vertical|horizontal)\.norm\.", r".mixer.\1.norm.1."),
    (r"\.mixer\.vertical\.", ".1."),
    (r"\.mixer\.horizontal\.", ".3."),
    (r"\.norm2\.", ".5.norm."),
    (r"\.mlp\.", ".5."),
    (r"\.fc1\.", ".fn.0."),
    (r"\.fc2\.", ".fn.3."),
)


def arrange_raftmlp(key: str, tensor: Tensor, model: nn.Module, patch: str) -> Tensor:
    """Reorder the channels of the raft MLPs' norms, and split the weights of patch embeddings by kernel."""
    *path, name, kind = key.split(".")
    parent: Any = model.get_submodule(".".join(path))
    if isinstance(parent, RaftMlp) and name == "norm":  # the authors' norm orders the channels differently
        return rearrange(tensor, "(c r) -> (r c)", r=parent.raft_size)
    if path[-1:] == ["convs"] and kind == "weight":  # the authors' Linear reads all patches, side by side
        columns = tensor.split([conv.weight[0].numel() for conv in parent], dim=1)[int(name)]
        k = parent[int(name)].kernel_size[0]
        return rearrange(columns, patch, h=k, w=k)
    return tensor


@official(
    "raftmlp",
    same=("num_classes",),
    renamed=dict(
        in_channels="in_chans", pretrained_image_size="img_size", channel_expansion_factor="channel_expansion"
    ),
    only=dict(token_mixing_type="ser_pm"),  # vertical, then horizontal
)
def official_raftmlp(
    state: Mapping[str, Tensor],
    *,
    layers: Sequence[Mapping],
    token_expansion_factor: int = 2,
    embedding_type: str = "emb_cross_mlp",
    shortcut: bool = True,
    **arguments: Any,
) -> ModelAndLayout:
    """Build our model for the arguments of the authors' `RaftMLP`."""
    check_value("embedding_type", embedding_type, ["emb_cross_mlp", "emb_mixer"], "'emb_cross_mlp' or 'emb_mixer'")
    cross = embedding_type == "emb_cross_mlp"
    wanted = {"depth", "dim", "patch_size", "raft_size", "embedding_kernels"}
    for i, layer in enumerate(layers):
        if layer.keys() - {"embedding_kernels"} != wanted - {"embedding_kernels"} or (cross and layer.keys() != wanted):
            refuse(f"layers[{i}]", dict(layer), f"a dict of {', '.join(sorted(wanted))}")
        if cross:
            smallest = min(layer["embedding_kernels"])
            check_value(
                f"layers[{i}]['patch_size']", layer["patch_size"], [smallest], f"{smallest}, the smallest kernel"
            )
    last = len(layers) - 1
    raft = dict(expansion=token_expansion_factor, resample="stream")
    model: Any = raftmlp(
        "raftmlp_s",
        depths=tuple(layer["depth"] for layer in layers),
        dims=tuple(layer["dim"] for layer in layers),
        patch_sizes=tuple(layer["patch_size"] for layer in layers),
        embedding_kernels=tuple(
            tuple(layer["embedding_kernels"]) if cross else (layer["patch_size"],) for layer in layers
        ),
        mixer_args=[dict(raft_size=layer["raft_size"], **raft) for layer in layers],
        **arguments,
    )
    if shortcut and last > 0:
        model = ShortcutClassifier(model)
    names = (
        *RAFTMLP_NAMES,
        (r"^norm\.", f"heads.{last if shortcut else 0}.1."),  # the head of the last level, or the only head
        (r"\.downsample\.convs\.\d+\.", ".fn.0.fc." if cross else ".fn.1."),
    )
    patch = "o (c h w) -> o c h w" if cross else "o (h w c) -> o c h w"
    return model, Layout(names, partial(arrange_raftmlp, patch=patch))
