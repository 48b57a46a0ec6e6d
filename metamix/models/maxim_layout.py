"""Map our tensors to the flax names and layouts of MAXIM's authors (github.com/google-research/maxim)."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metamix.weights.layout import Layout

from .maxim import Level, MaximUNet, MultiAxisGmlp
from .official import ModelAndLayout, check_value, official

NAMES = (
    # The network
    (r"^stages\.(\d+)\.inputs\.convs\.(\d+)\.", r"stage_\1_input_conv_\2/"),
    (r"^stages\.(\d+)\.inputs\.fuse\.(\d+)\.", r"stage_\1_input_fuse_sam_\2/"),
    (r"^stages\.(\d+)\.encoder\.blocks\.(\d+)\.", r"stage_\1_encoder_block_\2/"),
    (r"^stages\.(\d+)\.encoder\.gates\.(\d+)\.", r"stage_\1_encoder_block_\2/cross_gating_block/"),
    (r"^stages\.(\d+)\.encoder\.downs\.(\d+)\.", r"stage_\1_encoder_block_\2/Conv_1/"),
    (r"^stages\.(\d+)\.bottleneck\.(\d+)\.", r"stage_\1_global_block_\2/"),
    (r"^stages\.(\d+)\.skips\.gates\.(\d+)\.", r"stage_\1_cross_gating_block_\2/"),
    (r"^stages\.(\d+)\.decoder\.ups\.(\d+)\.", r"stage_\1_decoder_block_\2/ConvTranspose_0/"),
    (r"^stages\.(\d+)\.decoder\.blocks\.(\d+)\.", r"stage_\1_decoder_block_\2/UNetEncoderBlock_0/"),
    (r"^stages\.(\d+)\.outputs\.(\d+)\.conv\.", r"stage_\1_output_conv_\2/"),
    (r"^stages\.(\d+)\.outputs\.(\d+)\.", r"stage_\1_supervised_attention_module_\2/"),
    # Blocks. The blocks of the bottleneck have their own names.
    (r"(global_block_\d+/)proj\.", r"\1input_proj/"),
    (r"(global_block_\d+/)groups\.(\d+)\.attention\.", r"\1channel_attention_block_1_\2/"),
    (r"/proj\.", "/Conv_0/"),
    (r"groups\.(\d+)\.attention\.", r"channel_attention_block_1\1/"),
    (r"groups\.(\d+)\.gmlp\.norm\.", r"SplitHeadMultiAxisGmlpLayer_\1/LayerNorm_in/"),
    (r"groups\.(\d+)\.gmlp\.mixer\.", r"SplitHeadMultiAxisGmlpLayer_\1/"),
    # Rcab, Rdcab
    (r"attention\.fc([12])\.", lambda m: f"channel_attention/Conv_{int(m[1]) - 1}/"),
    (r"mlp\.fc([12])\.", lambda m: f"channel_mixing/Dense_{int(m[1]) - 1}/"),
    (r"conv([12])\.", r"conv\1/"),
    # CrossGating with its SpatialGates
    (r"up_y\.", "ConvTranspose_0/"),
    (r"proj_x\.", "Conv_0/"),
    (r"proj_y\.", "Conv_1/"),
    (r"norm_([xy])\.", r"LayerNorm_\1/"),
    (r"fc1_([xy])\.", r"in_project_\1/"),
    (r"fc2_([xy])\.", r"out_project_\1/"),
    (r"gate_([xy])\.", r"SplitHeadMultiAxisGating_\1/"),
    (r"(Gating_[xy]/)norm\.", r"\1LayerNorm_in/"),
    (r"(Gating_[xy]/)grid\.", r"\1Dense_0/"),
    (r"(Gating_[xy]/)block\.", r"\1Dense_1/"),
    # The mixer with its gated MLPs
    (r"\b(grid|block)\.gate_norm\.", r"\1.\1GatingUnit/intermediate_layernorm/"),
    (r"\b(grid|block)\.spatial\.", r"\1.\1GatingUnit/Dense_0/"),
    (r"\bgrid", "Grid"),
    (r"\bblock", "Block"),
    (r"\b(Grid|Block)\.", r"\1GmlpLayer/"),
    # Sam, and layers that several modules have
    (r"features\.", "Conv_0/"),
    (r"residual\.", "Conv_1/"),
    (r"attention\.", "Conv_2/"),
    (r"\bconv\.", "Conv_0/"),
    (r"\bnorm\.", "LayerNorm/"),
    (r"\bfc1\.", "in_project/"),
    (r"\bfc2\.", "out_project/"),
    (r"([Nn]orm\w*/)weight$", r"\1scale"),
    (r"weight$", "kernel"),
)


def maxim_layout(model: MaximUNet, state: Mapping[str, Any]) -> Layout:
    """Return the layout of a checkpoint of the whole network; `state` holds the checkpoint's tensors.

    Flax numbers unnamed modules in the order of their creation. The numbers of the UpSampleRatio modules in a
    checkpoint are in that order, but they may have gaps.
    """
    stages: list[Any] = list(model.stages)
    depth = len(stages[0].encoder.blocks)
    numbers = sorted({int(m[1]) for key in state if (m := re.match(r"UpSampleRatio_(\d+)/", key))})
    wanted = len(stages) * 2 * depth**2  # in each stage, first the skips' modules, then the decoder's
    if len(numbers) != wanted:  # tensors are missing or left over; errors name missing ones by these numbers
        numbers = list(range(wanted))

    def upsample_ratio(match: re.Match) -> str:
        stage, level, source = (int(match[group]) for group in ("stage", "level", "source"))
        decoder = match["part"] == "decoder"
        # Count the levels that are fused before this one; each part fuses its coarsest level first.
        fused = 2 * depth * stage + depth * decoder + depth - 1 - level
        return f"UpSampleRatio_{numbers[depth * fused + (depth - 1 - source if decoder else source)]}/"

    rescales = r"^stages\.(?P<stage>\d+)\.(?P<part>skips|decoder)\.fuse\.(?P<level>\d+)\.rescales\.(?P<source>\d+)\."
    return Layout(((rescales, upsample_ratio), *NAMES), arrange_flax)


def arrange_flax(key: str, tensor: Tensor, model: nn.Module) -> Tensor:
    """Bring a flax kernel into torch's layout.

    Flax stores (in, out) for a linear map and (height, width, in, out) for a convolution. Its transposed convolution
    correlates the zero-stuffed map with the kernel, whereas torch convolves the two, so the kernel is flipped.
    """
    name, _, kind = key.rpartition(".")
    if kind == "bias" or tensor.ndim < 2:
        return tensor
    if tensor.ndim == 2:
        return tensor.T
    if isinstance(model.get_submodule(name), nn.ConvTranspose2d):
        return tensor.permute(2, 3, 0, 1).flip(2, 3)
    return tensor.permute(3, 2, 0, 1)


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
    state: Mapping[str, Tensor], *, block_size: tuple[int, int], grid_size: tuple[int, int], **factors: int
) -> ModelAndLayout:
    """Build our model for the arguments of one `ResidualSplitHeadMultiAxisGmlpLayer`."""
    if "LayerNorm_in/scale" not in state:
        raise ValueError("The checkpoint lacks LayerNorm_in/scale, which shows the width: give only this layer's tree.")
    level = Level(len(state["LayerNorm_in/scale"]), block_size, grid_size)
    names = ((r"^norm\.", "LayerNorm_in/"), (r"^mixer\.", ""), *NAMES)
    return MultiAxisGmlp(level, **factors), Layout(names, arrange_flax)


@official(
    "maxim",
    same=tuple(inspect.signature(MaximUNet).parameters)[1:],
    only=dict(use_bias=True, dropout_rate=0, use_global_mlp=True, use_cross_gating=True, num_outputs=3),
    ignored=("lrelu_slope", "grid_size_lr"),
)
def maxim(state: Mapping[str, Tensor], *, variant: str | None = None, **arguments: Any) -> ModelAndLayout:
    """Build our model for the arguments of the authors' `MAXIM`, or of one of their variants."""
    check_value("variant", variant, [None, *MAXIM_VARIANTS], ", ".join(MAXIM_VARIANTS))
    model = MaximUNet(**(MAXIM_CLASS | (MAXIM_VARIANTS[variant] if variant else {}) | arguments))
    return model, maxim_layout(model, state)
