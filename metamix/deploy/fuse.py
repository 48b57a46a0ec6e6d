"""Make a model faster at inference without changing what it computes: `fuse`.

    s * (W x + b)            = (s W) x + s b          folds LayerScale into the last linear layer of its branch
    s * (mean(n) - n)        = mean(s n) - s n        folds LayerScale into the norm before pooling or identity
    W1 x + W2 x              = (W1 + W2) x            sums RaftMLP's parallel patch convolutions

Dropout and drop path do nothing in evaluation and are removed. Weights that each forward pass computes from parameters
are computed once: the matrices of raft, fc1 of nin's token MLP, and the triangular matrices of symmetric attention.
With `images`, weights that depend on the map size are also computed once: resized raft matrices, position embeddings
and position biases.

Raft keeps its LayerScale: many channels share its matrices, which cannot scale each channel differently. BatchNorm
stays too: ONNX Runtime and OpenVINO fold it where it follows a convolution.
"""

from copy import deepcopy
from typing import Any

import timm.layers
import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from torch import Tensor, nn

from metamix.layers import Dropout, Float32LayerNorm2d, GroupNorm1, Mlp, average_to, rearrange, resize_to, round_up
from metamix.mixers.identity import Identity
from metamix.mixers.maxim import Maxim
from metamix.mixers.minattn import Cholesky, MinAttn, triangular
from metamix.mixers.nin import Nin, TokenMlp
from metamix.mixers.pooling import Pooling
from metamix.mixers.raft import Raft, RaftMlp, resize_inputs, resize_outputs
from metamix.mixers.wavemix import WaveMix
from metamix.models.metaformer import Block, MetaFormer
from metamix.models.raftmlp import MultiScaleEmbed

Sizes = dict[nn.Module, tuple[int, int]]  # (H, W) of the feature map that a module gets

# Types are compared exactly: a subclass may compute something else, such as timm's norms with an activation.
DROPOUTS = (nn.Dropout, nn.Dropout2d, Dropout, DropPath)
GROUP_NORMS = (nn.GroupNorm, timm.layers.GroupNorm, timm.layers.GroupNorm1, GroupNorm1)
LAYER_NORMS = (LayerNorm2d, Float32LayerNorm2d)  # over the channels of (B, C, H, W)


@torch.no_grad()
def fuse(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Return a faster copy of a model, with the same outputs in evaluation.

    The original model is not changed. The copy is only for inference: it is in evaluation mode, and its parameters do
    not require gradients. Layers from other packages are not replaced, except for dropout and LayerScale.

    Args:
        model: a MetaFormer, or any module with metamix's layers in it, such as a detector.
        images: example images (n, C, H, W). If weights depend on the map size, the copy then takes only images of this
            height and width. None for a copy that takes all sizes that the model takes.
    """
    fused = deepcopy(model).eval().requires_grad_(False)
    sizes = {} if images is None else record_sizes(fused, images)
    module: Any
    for module in list(fused.modules()):
        kind, size = type(module), sizes.get(module)
        if kind is Block:
            fold_layer_scales(module)
        elif kind is Raft and module.resample != "weights":
            fix_rafts(module, module.grid)
        elif kind is Raft and size:  # without a size, its matrices are resized in each pass
            fix_rafts(module, size)
        elif kind is MinAttn and module.bias is not None and size:
            fix_bias(module, size)
        elif kind is MetaFormer and module.pos_embed is not None and size:
            module.pos_embed = nn.Parameter(resize_to(module.pos_embed, size))
    return replace(fused).requires_grad_(False)


def record_sizes(model: nn.Module, images: Tensor) -> Sizes:
    """Return the size of the feature map that each module with size-dependent weights gets from these images."""
    sizes: Sizes = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        height, width = arguments[0].shape[-2:]
        sizes[module] = height, width

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, (Raft, MinAttn))]
    for module in model.modules():
        if isinstance(module, MetaFormer):
            # The position embeddings are added to the stem's output.
            hooks.append(module.stem.register_forward_hook(lambda _, __, y, m=module: record(m, (y,))))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def replace(module: Any) -> nn.Module:
    """Replace the modules inside `module` with faster ones, in place; return `module` or its replacement."""
    for name, child in module.named_children():
        setattr(module, name, replace(child))
    kind = type(module)
    if kind in DROPOUTS:
        return nn.Identity()
    if kind is MultiScaleEmbed:
        return SummedEmbed(module)
    if kind is TokenMlp:
        return FixedTokenMlp(module)
    if kind is Cholesky:
        weight = rearrange(triangular(module.entries, module.d), "n i o -> (n o) i 1 1")
        return convolution(weight, None, groups=module.heads)
    return module


# LayerScale


def fold_layer_scales(block: Block) -> None:
    """Fold the mixer's scale into its last layer or its norm, and the scale of the MLP into the MLP, where possible."""
    if type(block.layer_scale1) is LayerScale2d and scale_outputs(last_layer(block), block.layer_scale1.gamma):
        block.layer_scale1 = nn.Identity()
    if type(block.mlp) is Mlp and type(block.layer_scale2) is LayerScale2d:
        scale = block.layer_scale2
        block.layer_scale2 = nn.Identity() if scale_outputs(block.mlp.fc2, scale.gamma) else scale


LAST_LAYERS = {Maxim: "fc2", MinAttn: "proj", Nin: "value"}  # nin multiplies the value by the gate


def last_layer(block: Block) -> Any:
    """Return the layer into which the LayerScale of the block's mixer can be folded; None if there is none."""
    mixer, kind = block.mixer, type(block.mixer)
    if kind in LAST_LAYERS:
        return getattr(mixer, LAST_LAYERS[kind])
    if kind is WaveMix:
        return mixer.levels[0].norm
    if kind in (Pooling, Identity) and (block.mlp is None or not block.tie_norms):
        return block.norm1  # these mixers are linear in each channel, and the MLP does not use this norm
    return None


def scale_outputs(layer: Any, scale: Tensor) -> bool:
    """Multiply the output channels of a layer by `scale` (C,), in place; return False for an unsupported layer."""
    if type(layer) not in (nn.Conv2d, nn.BatchNorm2d, *GROUP_NORMS, *LAYER_NORMS) or layer.weight is None:
        return False
    for name, parameter in list(layer.named_parameters(recurse=False)):
        shape = [-1] + [1] * (parameter.ndim - 1)
        setattr(layer, name, nn.Parameter(parameter * scale.view(shape)))
    return True


# Weights that each forward pass computes from parameters


def fix_rafts(raft: Any, size: tuple[int, int]) -> None:
    """Compute the matrices of a `Raft` for maps of one size, (height, width)."""
    raft.vertical = FixedRaftMlp(raft.vertical, size[0], "b (h r) (w c) 1")
    raft.horizontal = FixedRaftMlp(raft.horizontal, size[1], "(b h) (w r) c 1")


def fix_bias(attention: Any, size: tuple[int, int]) -> None:
    """Compute the position bias of a `MinAttn` for maps of one size, (height, width)."""
    x = torch.empty(1, 1, *size, device="meta")
    context = x if attention.context is None else average_to(x, attention.context)
    attention.bias = Constant(attention.bias(x, context))


class FixedRaftMlp(nn.Module):
    """A raft MLP for `length` tokens along the mixed side, (B, C, H, W) -> (B, C, H, W).

    `rafts` is the einops pattern that cuts a map into rafts, where r is `raft_size`. The values of a raft are ordered
    (length, raft_size), as they are in channels_last memory. So engines need not copy the feature map for the
    horizontal MLP. For the vertical MLP, they copy C / r adjacent values at a time.
    """

    def __init__(self, mlp: RaftMlp, length: int, rafts: str):
        super().__init__()
        r = self.raft_size = mlp.raft_size
        self.norm, self.act, self.rafts = mlp.norm, mlp.act, rafts
        w1 = rearrange(resize_inputs(mlp.fc1.weight, length), "o 1 r l -> o (l r) 1 1")
        w2, b2 = (resize_outputs(p, r, length) for p in mlp.fc2.parameters())
        self.fc1 = convolution(w1, mlp.fc1.bias)
        self.fc2 = convolution(rearrange(w2, "(r l) i 1 1 -> (l r) i 1 1", r=r), rearrange(b2, "(r l) -> (l r)", r=r))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = rearrange(self.norm(x).movedim(1, -1), f"b h w (r c) -> {self.rafts}", r=self.raft_size)
        x = self.fc2(self.act(self.fc1(x)))
        return rearrange(x, f"{self.rafts} -> b h w (r c)", r=self.raft_size, h=h, w=w).movedim(-1, 1)


class FixedTokenMlp(nn.Module):
    """The token MLP of nin as 1x1 convolutions over tokens, (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, mlp: TokenMlp):
        super().__init__()
        self.grid, self.act = mlp.grid, mlp.act
        self.fc1 = convolution(mlp.fc1.weight.flatten(1)[..., None, None], mlp.fc1.bias)
        self.fc2 = mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.grid
        x = rearrange(x.movedim(1, -1), "b h w c -> b c 1 (h w)").movedim(-1, 1)  # (B, h w, C, 1)
        x = self.fc2(self.act(self.fc1(x)))
        return rearrange(x.movedim(1, -1), "b c 1 (h w) -> b h w c", h=h, w=w).movedim(-1, 1)


class SummedEmbed(nn.Module):
    """A multi-scale patch embedding as one convolution, (B, in, H, W) -> (B, dim, ceil(H / s), ceil(W / s))."""

    def __init__(self, embed: MultiScaleEmbed):
        super().__init__()
        kernel, bias, padding = embed.summed()
        self.reduction, self.out_size = embed.reduction, embed.out_size
        self.conv = convolution(kernel, bias, stride=embed.reduction, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        s = self.reduction
        return self.conv(resize_to(x, round_up(x.shape[-2:], (s, s))))


class Constant(nn.Module):
    """Return a fixed tensor for any inputs."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.value


def convolution(weight: Tensor, bias: Tensor | None, **options: Any) -> nn.Conv2d:
    """Make a convolution with these weights; `options` are passed to `nn.Conv2d`."""
    out, into, height, width = weight.shape
    into *= options.get("groups", 1)
    conv = nn.Conv2d(into, out, (height, width), bias=bias is not None, device="meta", **options)
    conv.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv
