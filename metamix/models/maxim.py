"""Build the restoration network of "MAXIM: Multi-Axis MLP for Image Processing" (arXiv 2201.02973), figure 2.

A stage is a UNet. Level i of its `depth` levels has maps of 2^i f channels at 1 / 2^i of the image's height and width.
Each of the finest `num_supervision_scales` levels also takes the image, shrunk to the level's size, and restores it.

    inputs      x_i    = Conv3x3(image_i)
    encoder     e_i    = Blocks(concat(d_(i-1), x_i)),    d_i = Conv4x4 of stride 2 (e_i)          fine to coarse,
                                                          d_(-1) = x_0
    bottleneck  z      = Blocks(... Blocks(d_last)),      y_depth = z
    skips       s_i, z = CrossGating(concat_j(Rescale(e_j)), z)                                    coarse to fine
    decoder     y_i    = Blocks(concat(Up(y_(i+1)), concat_j(Rescale(s_j))))                       coarse to fine
    outputs     image_i + Conv3x3(y_i)

    Blocks(x)   = c + G(... G(c)),  c = Conv1x1(x),  G(x) = Rcab(x + Maxim(norm(x)))     Rdcab in the bottleneck

In every stage but the last, each output is a supervised attention module (SAM). The next stage gates its inputs with
the SAM's features, and its encoder's maps with the sum e_i + y_i of the previous stage.

Departures from the authors' code. Only the first changes results of a published model:
- Images are padded below and to the right, not on all sides; see `run_padded`.
- A map is enlarged after its 1x1 convolution, not before. This takes up to 16 times less work, and the result is the
  same up to rounding.
- There is no `grid_size_lr`. The authors' code ignores it: the coarser levels use `block_size_lr` for grids too.
- use_bias, dropout_rate, use_global_mlp and use_cross_gating are left out: all published models have biases, gMLPs and
  gates, and no dropout.
- Input and output both have `in_chans` channels. The authors' num_outputs is 3 in all published models.
- The convolutions whose output is added to an image start at zero, so an untrained network returns its input. The
  output of the authors' untrained network is so far from its input that a short training run does not recover.

Cost: linear in the number of pixels.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import GELUTanh
from torch import Tensor, nn

from metamix.layers import (
    BLOCK,
    GRID,
    Conv2d,
    Float32LayerNorm2d,
    GradCheckpointing,
    Mlp,
    checkpointed,
    is_exporting,
    mix_sets,
    resize_to,
)
from metamix.layers.image_inference import check_multiples, run_padded, shrink_image
from metamix.mixers import Maxim
from metamix.utils.checks import check_counts, parse_size

Norm = partial(Float32LayerNorm2d, eps=1e-6)
Conv1x1 = partial(nn.Conv2d, kernel_size=1)
Conv3x3 = partial(Conv2d, kernel_size=3, padding=1)
Down = partial(Conv2d, kernel_size=4, stride=2, padding=1)
Up = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)


@dataclass(frozen=True)
class Level:
    """Channels of the maps at one resolution, and the sizes of the token sets that linear maps mix there."""

    dim: int
    block_size: tuple[int, int]
    grid_size: tuple[int, int]


def multiple_of(levels: Sequence[Level], axis: int) -> int:
    """Return the number that must divide an image's side along `axis`, so that all maps split into whole sets."""
    sizes = ((level.block_size[axis], level.grid_size[axis]) for level in levels)
    return math.lcm(*(2**i * math.lcm(block, grid) for i, (block, grid) in enumerate(sizes)))


class Carried(NamedTuple):
    """Maps that a stage passes to the next stage."""

    sams: list[Tensor]  # features of the supervised attention modules, by level
    encoded: list[Tensor]  # maps of the encoder, by level
    decoded: list[Tensor]  # maps of the decoder, by level


class MaximUNet(GradCheckpointing):
    """Restore images: (B, in_chans, H, W) -> (B, in_chans, H, W).

    Evaluation takes any H and W of at least 1: images are padded by reflection to multiples of `multiple`, and cropped
    afterwards. Training and exported graphs take only multiples of `multiple`. Training returns a list of images, stage
    by stage and within a stage from the coarsest scale to the finest. The last image is the result.

    Args:
        in_chans: image channels.
        features: f, channels of the finest level.
        depth: levels of each UNet.
        num_stages: number of UNets.
        num_groups: pairs of multi-axis gMLP and channel attention in each block.
        num_bottleneck_blocks: blocks of the bottleneck.
        num_supervision_scales: number of finest levels that take and restore images, 1 to `depth`.
        high_res_stages: number of finest levels that use `block_size_hr` and `grid_size_hr`.
        block_size_hr, grid_size_hr: block and grid size of these levels in tokens, (height, width) or one number.
        block_size_lr: block and grid size of the other levels and the bottleneck.
        input_proj_factor, block_gmlp_factor, grid_gmlp_factor: options of the mixer; see `metamix.mixers.Maxim`.
            In the decoder, `input_proj_factor` is always 2.
        channels_reduction: number of channels divided by the hidden width of channel attention.
    """

    def __init__(
        self,
        in_chans: int = 3,
        *,
        features: int = 32,
        depth: int = 3,
        num_stages: int = 1,
        num_groups: int = 2,
        num_bottleneck_blocks: int = 2,
        num_supervision_scales: int = 3,
        high_res_stages: int = 2,
        block_size_hr: int | tuple[int, int] = 16,
        grid_size_hr: int | tuple[int, int] = 16,
        block_size_lr: int | tuple[int, int] = 8,
        input_proj_factor: int = 2,
        block_gmlp_factor: int = 2,
        grid_gmlp_factor: int = 2,
        channels_reduction: int = 4,
    ):
        super().__init__()
        check_counts(
            1, in_chans=in_chans, features=features, depth=depth, num_stages=num_stages, num_groups=num_groups,
            num_bottleneck_blocks=num_bottleneck_blocks, num_supervision_scales=num_supervision_scales,
            channels_reduction=channels_reduction,
        )  # fmt: skip
        check_counts(0, high_res_stages=high_res_stages)
        if num_supervision_scales > depth:
            raise ValueError(f"num_supervision_scales is {num_supervision_scales}: give 1 to {depth}, the depth.")
        if channels_reduction > features:
            raise ValueError(f"channels_reduction is {channels_reduction}: give at most {features}, the features.")
        high = parse_size("block_size_hr", block_size_hr), parse_size("grid_size_hr", grid_size_hr)
        low = (parse_size("block_size_lr", block_size_lr),) * 2
        levels = [Level(2**i * features, *(high if i < high_res_stages else low)) for i in range(depth)]
        bottleneck = Level(levels[-1].dim, *low)
        decoder = partial(  # the authors' decoder takes no input_proj_factor
            Blocks,
            num_groups=num_groups,
            attention=Rcab,
            reduction=channels_reduction,
            block_gmlp_factor=block_gmlp_factor,
            grid_gmlp_factor=grid_gmlp_factor,
        )
        encoder = partial(decoder, input_proj_factor=input_proj_factor)
        self.in_chans = in_chans
        self.scale = 1
        self.num_scales = num_supervision_scales
        self.multiple = multiple_of([*levels, bottleneck], 0), multiple_of([*levels, bottleneck], 1)
        self.stages = nn.ModuleList()
        for i in range(num_stages):
            blocks = [encoder(bottleneck.dim, bottleneck, attention=Rdcab) for _ in range(num_bottleneck_blocks)]
            first, last = i == 0, i == num_stages - 1
            stage = UNet(levels, in_chans, num_supervision_scales, encoder, blocks, decoder, first=first, last=last)
            self.stages.append(stage)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        if self.training:
            return [restored for stage in self.forward_stages(images) for restored in stage]
        if is_exporting():  # torch.export cannot prove that a padded size fits the levels
            return self.forward_stages(images)[-1][-1]
        return run_padded(lambda x: self.forward_stages(x)[-1][-1], images, self.multiple)

    def forward_stages(self, images: Tensor) -> list[list[Tensor]]:
        """Restore images whose sides are multiples of `multiple`; return each stage's images, coarsest scale first."""
        check_multiples(images, self.multiple, self)
        scales = [shrink_image(images, 2**i) for i in range(self.num_scales)]  # (B, in_chans, H / 2^i, W / 2^i)
        outputs, carried = [], None
        for stage in self.stages:
            restored, carried = stage(scales, carried)
            outputs.append(restored[::-1])
        return outputs

    def set_local_pooling(self, size: int | tuple[int, int] | None) -> None:
        """Let channel attention average over windows of `size` pixels; None restores means over the whole image.

        Give the size of the training crops: means over a whole image differ from means over crops (arXiv 2112.04491).
        """
        window = parse_size("size", size) if size is not None else None
        stages: list[Any] = list(self.stages)
        for stage in stages:
            down = [*stage.encoder.blocks, stage.bottleneck]
            for i, part in [*enumerate(down), *enumerate(stage.decoder.blocks)]:
                for module in part.modules():
                    if isinstance(module, ChannelAttention):
                        module.window = window and (max(window[0] >> i, 1), max(window[1] >> i, 1))


class UNet(nn.Module):
    """One stage. `encoder` and `decoder` build `Blocks`. Lists of images and maps start with the finest level.

    The modules `inputs`, `encoder`, `skips` and `decoder` only hold layers, so that the layers' names show their role.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        in_chans: int,
        scales: int,
        encoder: Callable[..., nn.Module],
        bottleneck: Sequence[nn.Module],
        decoder: Callable[..., nn.Module],
        *,
        first: bool,
        last: bool,
    ):
        super().__init__()
        dims = [level.dim for level in levels]
        above, below = [dims[0], *dims[:-1]], [*dims[1:], dims[-1]]  # channels of maps from the finer and coarser level
        gated = [] if first else levels  # levels that are gated by the previous stage
        self.inputs: Any = nn.ModuleDict()
        self.inputs.convs = nn.ModuleList(Conv3x3(in_chans, dim) for dim in dims[:scales])
        self.inputs.fuse = nn.ModuleList(CrossGating(level.dim, level.dim, level) for level in gated[:scales])
        self.encoder: Any = nn.ModuleDict()
        self.encoder.blocks = nn.ModuleList(
            encoder(before + (level.dim if i < scales else 0), level)
            for i, (before, level) in enumerate(zip(above, levels))
        )
        self.encoder.gates = nn.ModuleList(CrossGating(level.dim, level.dim, level) for level in gated)
        self.encoder.downs = nn.ModuleList(Down(dim, dim) for dim in dims)
        self.bottleneck = nn.Sequential(*bottleneck)
        self.skips: Any = nn.ModuleDict()
        self.skips.fuse = nn.ModuleList(FuseLevels(dims, i) for i in range(len(dims)))
        self.skips.gates = nn.ModuleList(
            CrossGating(len(dims) * level.dim, deeper, level, upsample_y=True) for level, deeper in zip(levels, below)
        )
        self.decoder: Any = nn.ModuleDict()
        self.decoder.ups = nn.ModuleList(Up(deeper, dim) for deeper, dim in zip(below, dims))
        self.decoder.fuse = nn.ModuleList(FuseLevels(dims, i, coarsest_first=True) for i in range(len(dims)))
        self.decoder.blocks = nn.ModuleList(decoder((1 + len(dims)) * level.dim, level) for level in levels)
        output = OutputConv if last else Sam
        self.outputs = nn.ModuleList(output(dim, in_chans) for dim in dims[:scales])

    def forward(self, images: list[Tensor], carried: Carried | None) -> tuple[list[Tensor], Carried]:
        inputs = [conv(image) for conv, image in zip(self.inputs.convs, images)]  # (B, 2^i f, H / 2^i, W / 2^i)
        if carried is not None:
            inputs = [fuse(x, sam)[0] for fuse, x, sam in zip(self.inputs.fuse, inputs, carried.sams)]
        x, encoded = inputs[0], []
        for i, (blocks, down) in enumerate(zip(self.encoder.blocks, self.encoder.downs)):
            e = blocks(x, *inputs[i : i + 1])  # (B, 2^i f, H / 2^i, W / 2^i)
            if carried is not None:
                e, _ = self.encoder.gates[i](e, carried.encoded[i] + carried.decoded[i])
            encoded.append(e)
            x = down(e)  # (B, 2^i f, H / 2^(i+1), W / 2^(i+1))
        x = z = self.bottleneck(x)  # (B, 2^(depth-1) f, H / 2^depth, W / 2^depth)
        skips: list[Tensor] = []
        for fuse, gate in zip(reversed(self.skips.fuse), reversed(self.skips.gates)):
            skip, z = gate(fuse(encoded), z)  # (B, 2^i f, H / 2^i, W / 2^i) each
            skips.insert(0, skip)
        del z  # a map of the image's size, which the decoder does not need
        decoded: list[Tensor] = []
        ups, fuses, decoders = self.decoder.ups, self.decoder.fuse, self.decoder.blocks
        for up, fuse, blocks in zip(reversed(ups), reversed(fuses), reversed(decoders)):
            x = blocks(up(x), fuse(skips))  # (B, 2^i f, H / 2^i, W / 2^i)
            decoded.insert(0, x)
        sams, restored = zip(*(out(y, image) for out, y, image in zip(self.outputs, decoded, images)))
        return list(restored), Carried(list(sams), encoded, decoded)


class Blocks(nn.Module):
    """Groups of multi-axis gMLP and channel attention, with a residual around them: (B, C, H, W) -> (B, dim, H, W).

    The input is one map, or several maps that are concatenated to `in_dim` channels.
    """

    def __init__(
        self,
        in_dim: int,
        level: Level,
        *,
        num_groups: int,
        reduction: int,
        attention: Callable[[int, int], nn.Module],
        **factors: int,
    ):
        super().__init__()
        self.proj = Conv1x1(in_dim, level.dim)
        self.grad_checkpointing = False
        self.groups = nn.Sequential()
        for _ in range(num_groups):
            parts = OrderedDict(gmlp=MultiAxisGmlp(level, **factors), attention=attention(level.dim, reduction))
            self.groups.append(nn.Sequential(parts))

    def forward(self, *maps: Tensor) -> Tensor:
        x = y = self.proj(torch.cat(maps, dim=1))
        for group in self.groups:
            y = checkpointed(group, group, y) if self.grad_checkpointing else group(y)
        return x + y


class MultiAxisGmlp(nn.Module):
    """x + mixer(norm(x)), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, level: Level, **factors: int):
        super().__init__()
        self.norm = Norm(level.dim)
        sizes: dict[str, Any] = dict(block_size=level.block_size, grid_size=level.grid_size)
        self.mixer = Maxim(level.dim, size=level.block_size, **sizes, **factors)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class Rcab(nn.Module):
    """Residual channel attention block, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        self.norm = Norm(dim)
        self.conv1 = Conv3x3(dim, dim)
        self.act = nn.LeakyReLU(0.2)
        self.conv2 = Conv3x3(dim, dim)
        self.attention = ChannelAttention(dim, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.conv2(self.act(self.conv1(self.norm(x)))))


class Rdcab(nn.Module):
    """Residual dense channel attention block, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        self.norm = Norm(dim)
        self.mlp = Mlp(dim, dim, act_layer=GELUTanh)  # flax's form of GELU
        self.attention = ChannelAttention(dim, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.mlp(self.norm(x)))


class ChannelAttention(nn.Module):
    """x * sigmoid(MLP(mean(x))), (B, C, H, W) -> (B, C, H, W).

    The mean is over the map, or over `window` = (height, width) around each pixel.
    """

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        self.window: tuple[int, int] | None = None
        self.fc1 = Conv1x1(dim, dim // reduction)
        self.act = nn.ReLU()
        self.fc2 = Conv1x1(dim // reduction, dim)

    def forward(self, x: Tensor) -> Tensor:
        mean = local_mean(x, self.window) if self.window else x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.act(self.fc1(mean))).sigmoid()


def local_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Average each pixel's neighbourhood: (B, C, H, W) -> (B, C, H, W).

    A window larger than the map is reduced to the map's size. A pixel near the border takes the mean of the nearest
    window that lies inside the map, as in "Test-time Local Converter" (arXiv 2112.04491).
    """
    for dim, side in ((-2, window[0]), (-1, window[1])):
        length = x.shape[dim]
        side = min(side, length)
        sums = x.cumsum(dim, dtype=torch.promote_types(x.dtype, torch.float32))
        first = sums.narrow(dim, side - 1, 1)
        later = sums.narrow(dim, side, length - side) - sums.narrow(dim, 0, length - side)
        means = torch.cat([first, later], dim) / side  # length - side + 1 means
        place = torch.arange(length, device=x.device) - (side - 1) // 2
        x = means.index_select(dim, place.clamp(0, length - side)).to(x.dtype)
    return x


class CrossGating(nn.Module):
    """Let x gate y and y gate x: (B, x_dim, H, W), (B, y_dim, H, W) -> two maps (B, level.dim, H, W).

    With `upsample_y`, y has half the height and width of x.
    """

    def __init__(self, x_dim: int, y_dim: int, level: Level, *, upsample_y: bool = False):
        super().__init__()
        dim = level.dim
        self.up_y = Up(y_dim, dim) if upsample_y else nn.Identity()
        self.proj_x, self.proj_y = Conv1x1(x_dim, dim), Conv1x1(dim if upsample_y else y_dim, dim)
        self.norm_x, self.norm_y = Norm(dim), Norm(dim)
        self.fc1_x, self.fc1_y = Conv1x1(dim, dim), Conv1x1(dim, dim)
        self.act = GELUTanh()
        self.gate_x, self.gate_y = SpatialGate(level), SpatialGate(level)
        self.fc2_x, self.fc2_y = Conv1x1(dim, dim), Conv1x1(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.proj_x(x), self.proj_y(self.up_y(y))  # (B, dim, H, W)
        u = self.act(self.fc1_x(self.norm_x(x)))  # (B, dim, H, W)
        v = self.act(self.fc1_y(self.norm_y(y)))
        y = y + self.fc2_y(v * self.gate_x(u))
        x = x + y + self.fc2_x(u * self.gate_y(v))
        return x, y


class SpatialGate(nn.Module):
    """Compute the weights of a cross gate, fc2(concat(S_grid(u), S_block(v))) with u, v = split(gelu(fc1(norm(x)))).

    S is a linear map over the tokens of a set, as in the mixer. (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, level: Level):
        super().__init__()
        self.level = level
        self.norm = Norm(level.dim)
        self.fc1 = Conv1x1(level.dim, 2 * level.dim)
        self.act = GELUTanh()
        self.grid, self.block = (
            Conv1x1(math.prod(size), math.prod(size)) for size in (level.grid_size, level.block_size)
        )
        self.fc2 = Conv1x1(2 * level.dim, level.dim)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.act(self.fc1(self.norm(x))).chunk(2, dim=1)  # (B, C, H, W) each
        u = mix_sets(u, self.grid, self.level.grid_size, GRID)
        v = mix_sets(v, self.block, self.level.block_size, BLOCK)
        return self.fc2(torch.cat([u, v], dim=1))


class Sam(nn.Module):
    """Supervised attention module: (B, C, H, W) and images -> features for the next stage, restored images."""

    def __init__(self, dim: int, in_chans: int):
        super().__init__()
        self.features = Conv3x3(dim, dim)
        self.residual = Conv3x3(dim, in_chans)
        self.attention = Conv3x3(in_chans, dim)

    def forward(self, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        restored = images + self.residual(x)
        return x + self.features(x) * self.attention(restored).sigmoid(), restored


class OutputConv(nn.Module):
    """Output of the last stage: (B, C, H, W) and images -> the unchanged features, restored images."""

    def __init__(self, dim: int, in_chans: int):
        super().__init__()
        self.conv = Conv3x3(dim, in_chans)

    def forward(self, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        return x, images + self.conv(x)


class FuseLevels(nn.Module):
    """Rescale the maps of all levels to level i and concatenate them to (B, depth 2^i f, H / 2^i, W / 2^i)."""

    def __init__(self, dims: Sequence[int], i: int, *, coarsest_first: bool = False):
        super().__init__()
        self.rescales = nn.ModuleList(Rescale(dim, dims[i], 2.0 ** (j - i)) for j, dim in enumerate(dims))
        self.order = range(len(dims))[::-1] if coarsest_first else range(len(dims))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([self.rescales[j](maps[j]) for j in self.order], dim=1)


class Rescale(nn.Module):
    """Resize a map bilinearly, then convolve 1x1: (B, in_dim, H, W) -> (B, dim, ratio H, ratio W)."""

    def __init__(self, in_dim: int, dim: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = Conv1x1(in_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # The weights of a bilinear interpolation sum to 1, so it commutes with the convolution. The smaller map is
        # convolved, which takes less time.
        return resize_map(self.conv(x), self.ratio) if self.ratio > 1 else self.conv(resize_map(x, self.ratio))


def resize_map(x: Tensor, ratio: float) -> Tensor:
    """Resize bilinearly, with antialiasing if the map shrinks: (B, C, H, W) -> (B, C, ratio H, ratio W)."""
    (h, w), times = x.shape[-2:], round(max(ratio, 1 / ratio))
    if ratio == 1:
        return x
    size = (h * times, w * times) if ratio > 1 else (h // times, w // times)
    return resize_to(x, size, "bilinear", antialias=ratio < 1)


def init_weights(model: nn.Module) -> None:
    """Initialize as the authors do, except for zeros in the convolutions whose output is added to an image.

    The authors draw weights from LeCun's normal distribution. In gMLPs, MLPs and the token-mixing layers of the
    spatial gates, the standard deviation is 0.02. Biases are 1 in these token-mixing layers, and 0 elsewhere.
    """
    if next(model.parameters()).is_meta:  # there is nothing to fill, but `normal_` takes milliseconds for each tensor
        return
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # 0.8796 is the standard deviation of a standard normal distribution that is truncated at -2 and 2.
            std = (module.in_channels * math.prod(module.kernel_size)) ** -0.5 / 0.87962566103423978
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, (Maxim, Mlp)):
            for linear in module.modules():
                if isinstance(linear, nn.Conv2d):
                    nn.init.normal_(linear.weight, std=0.02)
        elif isinstance(module, OutputConv):
            nn.init.zeros_(module.conv.weight)
        elif isinstance(module, Sam):
            nn.init.zeros_(module.residual.weight)
        elif isinstance(module, SpatialGate):
            spatial: Any
            for spatial in (module.grid, module.block):
                nn.init.normal_(spatial.weight, std=0.02)
                nn.init.ones_(spatial.bias)
