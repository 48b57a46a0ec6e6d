"""Map our tensors to the flax names and layouts in checkpoints of MAXIM's authors (github.com/google-research/maxim).

The upper levels of their module tree differ from ours, so `unet_paths` walks both trees. At the lower levels, each of
our classes has a counterpart, and `CHILDREN` maps our names of its children to their names.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.layers import Mlp
from metamix.mixers import Maxim
from metamix.mixers.maxim import GatedMlp
from metamix.weights.layout import Layout

from .maxim import (
    Blocks,
    ChannelAttention,
    CrossGating,
    MaximUNet,
    MultiAxisGmlp,
    OutputConv,
    Rcab,
    Rdcab,
    Rescale,
    Sam,
    SpatialGate,
)
from .metaformer import Block
from .official import ModelAndLayout, accept, official

CHILDREN: dict[type[nn.Module], dict[str, str]] = {
    Block: {"norm1": "LayerNorm_in", "mixer": ""},  # around a MAXIM mixer, without an MLP
    MultiAxisGmlp: {"norm": "LayerNorm_in", "mixer": ""},
    Maxim: {"fc1": "in_project", "grid": "GridGmlpLayer", "block": "BlockGmlpLayer", "fc2": "out_project"},
    GatedMlp: {
        "norm": "LayerNorm",
        "fc1": "in_project",
        "gate_norm": "*GatingUnit/intermediate_layernorm",  # * is Grid or Block, as in the parent's name
        "spatial": "*GatingUnit/Dense_0",
        "fc2": "out_project",
    },
    Rcab: {"norm": "LayerNorm", "conv1": "conv1", "conv2": "conv2", "attention": "channel_attention"},
    Rdcab: {"norm": "LayerNorm", "mlp": "channel_mixing", "attention": "channel_attention"},
    ChannelAttention: {"fc1": "Conv_0", "fc2": "Conv_1"},
    Mlp: {"fc1": "Dense_0", "fc2": "Dense_1"},
    CrossGating: {
        "up_y": "ConvTranspose_0",
        "proj_x": "Conv_0",
        "proj_y": "Conv_1",
        "norm_x": "LayerNorm_x",
        "norm_y": "LayerNorm_y",
        "fc1_x": "in_project_x",
        "fc1_y": "in_project_y",
        "gate_x": "SplitHeadMultiAxisGating_x",
        "gate_y": "SplitHeadMultiAxisGating_y",
        "fc2_x": "out_project_x",
        "fc2_y": "out_project_y",
    },
    SpatialGate: {
        "norm": "LayerNorm_in",
        "fc1": "in_project",
        "grid": "Dense_0",
        "block": "Dense_1",
        "fc2": "out_project",
    },
    Sam: {"features": "Conv_0", "residual": "Conv_1", "attention": "Conv_2"},
    Rescale: {"conv": "Conv_0"},
    OutputConv: {"conv": ""},
}

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

Paths = Iterator[tuple[nn.Module, str]]  # our modules that hold parameters, with their paths in flax


def maxim_layout(model: MaximUNet, state: Mapping[str, Any]) -> Layout:
    """Return the layout of a checkpoint of the whole network; `state` has its tensors.

    Flax numbers unnamed modules in the order of their creation. The numbers of the UpSampleRatio modules in a
    checkpoint are in that order, but they may have gaps.
    """
    numbers = sorted({int(m[1]) for key in state if (m := re.match(r"UpSampleRatio_(\d+)/", key))})
    wanted = sum(isinstance(module, Rescale) for module in model.modules())
    if len(numbers) != wanted:  # tensors are missing: errors then name them by these numbers
        numbers = list(range(wanted))
    return flax_layout(model, unet_paths(model, numbers))


def flax_layout(model: nn.Module, paths: Paths) -> Layout:
    """Return the layout of a flax tree; `paths` has its modules."""
    path_of = dict(paths)
    table = {}
    for prefix, module in model.named_modules():
        for kind, _ in module.named_parameters(recurse=False):
            leaf = "bias" if kind == "bias" else "kernel" if isinstance(module, CONVOLUTIONS) else "scale"
            table[f"{prefix}.{kind}".lstrip(".")] = f"{path_of[module]}/{leaf}".lstrip("/")
    return Layout(((r".+", lambda match: table[match[0]]),), arrange_flax)


def arrange_flax(key: str, tensor: Tensor, model: nn.Module) -> Tensor:
    """Bring a flax kernel into torch's layout.

    Flax stores (in, out) for a linear map and (height, width, in, out) for a convolution. Its transposed convolution
    correlates the zero-stuffed map with the kernel, whereas torch's convolves them, so the kernel is flipped.
    """
    name, _, kind = key.rpartition(".")
    if kind == "bias" or tensor.ndim < 2:
        return tensor
    if tensor.ndim == 2:
        return tensor.T
    if isinstance(model.get_submodule(name), nn.ConvTranspose2d):
        return tensor.permute(2, 3, 0, 1).flip(2, 3)
    return tensor.permute(3, 2, 0, 1)


def unet_paths(model: MaximUNet, numbers: list[int]) -> Paths:
    """Pair the modules with their paths; `numbers` count the UpSampleRatio modules, in order of creation."""
    rescales = (f"UpSampleRatio_{n}" for n in numbers)
    stages: list[Any] = list(model.stages)
    for s, stage in enumerate(stages):
        path, last = f"stage_{s}", s == len(stages) - 1
        levels = range(len(stage.encoder.blocks))
        for i, conv in enumerate(stage.inputs.convs):
            yield conv, f"{path}_input_conv_{i}"
        for i, fuse in enumerate(stage.inputs.fuse):
            yield from module_paths(fuse, f"{path}_input_fuse_sam_{i}")
        for i in levels:
            block = f"{path}_encoder_block_{i}"
            yield from blocks_paths(stage.encoder.blocks[i], block)
            yield stage.encoder.downs[i], f"{block}/Conv_1"
            if stage.encoder.gates:
                yield from module_paths(stage.encoder.gates[i], f"{block}/cross_gating_block")
        for i, blocks in enumerate(stage.bottleneck):
            block = f"{path}_global_block_{i}"
            yield from blocks_paths(blocks, block, proj="input_proj", attention="channel_attention_block_1_")
        for i in reversed(levels):
            for rescale in stage.skips.fuse[i].rescales:
                yield from module_paths(rescale, next(rescales))
            yield from module_paths(stage.skips.gates[i], f"{path}_cross_gating_block_{i}")
        for i in reversed(levels):
            for rescale in reversed(stage.decoder.fuse[i].rescales):
                yield from module_paths(rescale, next(rescales))
            yield stage.decoder.ups[i], f"{path}_decoder_block_{i}/ConvTranspose_0"
            yield from blocks_paths(stage.decoder.blocks[i], f"{path}_decoder_block_{i}/UNetEncoderBlock_0")
        for i, output in enumerate(stage.outputs):
            yield from module_paths(output, f"{path}_{'output_conv' if last else 'supervised_attention_module'}_{i}")


def blocks_paths(
    blocks: Blocks, path: str, *, proj: str = "Conv_0", attention: str = "channel_attention_block_1"
) -> Paths:
    """Pair the modules of `Blocks` with their paths. The authors call `proj` and `attention` by two names each."""
    yield blocks.proj, f"{path}/{proj}"
    groups: list[Any] = list(blocks.groups)
    for i, group in enumerate(groups):
        yield from module_paths(group.gmlp, f"{path}/SplitHeadMultiAxisGmlpLayer_{i}")
        yield from module_paths(group.attention, f"{path}/{attention}{i}")


def module_paths(module: nn.Module, path: str) -> Paths:
    """Pair the modules inside `module` with their paths under `path`."""
    if type(module) not in CHILDREN:
        yield module, path.strip("/")
        return
    for child, name in CHILDREN[type(module)].items():
        kind = path.rpartition("/")[2].removesuffix("GmlpLayer")
        yield from module_paths(getattr(module, child), f"{path}/{name.replace('*', kind)}".replace("//", "/"))


# Defaults of the authors' class that differ from `MaximUNet`'s, and the arguments of their variants
MAXIM_CLASS = dict(features=64, num_stages=2, num_groups=1, num_bottleneck_blocks=1, num_supervision_scales=1)
MAXIM_VARIANTS = {
    f"{size}-{stages}": dict(features=features, num_stages=stages, num_groups=2, num_bottleneck_blocks=2)
    for size, features in (("S", 32), ("M", 64))
    for stages in (1, 2, 3)
}


@official(
    "maxim_mab",
    same=("block_gmlp_factor", "grid_gmlp_factor", "input_proj_factor"),
    only=dict(use_bias=True, dropout_rate=0),
)
def maxim_mab(
    state: Mapping[str, Tensor],
    *,
    block_size: tuple[int, int],
    grid_size: tuple[int, int],
    **factors: int,
) -> ModelAndLayout:
    """Build our model for the arguments of one `ResidualSplitHeadMultiAxisGmlpLayer`."""
    if "LayerNorm_in/scale" not in state:
        raise ValueError("The checkpoint lacks LayerNorm_in/scale, which gives the width: give the layer's own tree.")
    dim = len(state["LayerNorm_in/scale"])
    mixer = Maxim(dim, size=block_size, block_size=block_size, grid_size=grid_size, **factors)
    # Their layer has a norm before and a residual around it: our block without the MLP half.
    model = Block(dim, mixer, norm1=partial(LayerNorm2d, eps=1e-6), mlp_ratio=0, layer_scale=0)
    return model, flax_layout(model, module_paths(model, ""))


@official(
    "maxim",
    same=tuple(inspect.signature(MaximUNet).parameters)[1:],
    only=dict(use_bias=True, dropout_rate=0, use_global_mlp=True, use_cross_gating=True, num_outputs=3),
    ignored=("lrelu_slope", "grid_size_lr"),
)
def maxim(state: Mapping[str, Tensor], *, variant: str | None = None, **arguments: Any) -> ModelAndLayout:
    """Build our model for the arguments of the authors' `MAXIM`, or of one of their variants."""
    accept("variant", variant, [None, *MAXIM_VARIANTS], ", ".join(MAXIM_VARIANTS))
    model = MaximUNet(**(MAXIM_CLASS | (MAXIM_VARIANTS[variant] if variant else {}) | arguments))
    return model, maxim_layout(model, state)
