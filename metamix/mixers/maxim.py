"""Mix tokens with the multi-axis gated MLP of MAXIM.

"MAXIM: Multi-Axis MLP for Image Processing" (arXiv 2201.02973), section 3.2:

    u, v = split(gelu(fc1(x)))                           f C channels, split into two halves
    y    = fc2(concat(G_grid(u), G_block(v)))            back to C channels

    G(x) = x + fc2(a * (S(norm(b)) + 1)),   a, b = split(gelu(fc1(norm(x))))

S is one linear map over a set of tokens, the same for all channels. In the block branch a set is the fh x fw tokens of
one block, so S mixes neighbours. In the grid branch a set has one token from each of gh x gw cells, so S reaches across
the map. Block and grid sizes are fixed, so the parameters do not depend on the map size.

The map may have any size: it is padded with zeros to multiples of the block and grid sizes, and cropped afterwards. For
each value, S takes one multiply-add for each token in the set, so the cost is linear in the map's number of tokens.

As in the authors' flax code, GELU is the tanh approximation, and norms have eps 1e-6. Departures: the skeleton adds
the norm before the layer and the residual around it, and the authors' dropout at the end of each branch is left out.
"""

import math

import torch
from torch import Tensor, nn

from metamix.layers import BLOCK, GRID, Dropout, Float32LayerNorm2d, crop_to, mix_sets, pad_to
from metamix.utils.checks import check_counts, parse_size

from .registry import register_mixer


@register_mixer("maxim")
class Maxim(nn.Module):
    """Multi-axis gated MLP: (B, C, H, W) -> (B, C, H, W).

    Args:
        block_size: (fh, fw), height and width of a block in tokens, or one number for both.
        grid_size: (gh, gw), number of cells down and across, or one number for both.
        input_proj_factor: f, width of both branches together as a multiple of C.
        block_gmlp_factor: width inside the gated MLP of the block branch, as a multiple of its input's width.
        grid_gmlp_factor: width inside the gated MLP of the grid branch, as a multiple of its input's width.
        proj_drop: dropout rate of the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        block_size: int | tuple[int, int] = 8,
        grid_size: int | tuple[int, int] = 8,
        input_proj_factor: int = 2,
        block_gmlp_factor: int = 2,
        grid_gmlp_factor: int = 2,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        check_counts(1, input_proj_factor=input_proj_factor)
        check_counts(1, block_gmlp_factor=block_gmlp_factor, grid_gmlp_factor=grid_gmlp_factor)
        half = dim * input_proj_factor // 2
        for factor in (block_gmlp_factor, grid_gmlp_factor):
            if dim * input_proj_factor % 2 or half * factor % 2:
                raise ValueError(
                    f"dim {dim}, input_proj_factor {input_proj_factor} and a gmlp factor {factor} give an odd width "
                    f"before a split into halves: choose a multiple of 4 for dim, or even factors."
                )
        block_size, grid_size = parse_size("block_size", block_size), parse_size("grid_size", grid_size)
        self.multiple = tuple(math.lcm(b, g) for b, g in zip(block_size, grid_size))
        self.fc1 = nn.Conv2d(dim, 2 * half, 1)
        self.act = nn.GELU(approximate="tanh")
        self.grid = GatedMlp(half, grid_size, grid_gmlp_factor, GRID)
        self.block = GatedMlp(half, block_size, block_gmlp_factor, BLOCK)
        self.fc2 = nn.Conv2d(2 * half, dim, 1)
        self.drop = Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        u, v = self.act(self.fc1(pad_to(x, self.multiple))).chunk(2, dim=1)  # (B, f C / 2, H', W') each, padded
        y = self.fc2(torch.cat([self.grid(u), self.block(v)], dim=1))
        return self.drop(crop_to(y, size))


class GatedMlp(nn.Module):
    """Compute G above: (B, C, H, W) -> (B, C, H, W), with H and W multiples of `set_size` = (kh, kw).

    `layout` is GRID or BLOCK.
    """

    def __init__(self, dim: int, set_size: tuple[int, int], factor: int, layout: str):
        super().__init__()
        hidden = dim * factor // 2
        self.set_size = tuple(set_size)
        self.layout = layout
        self.norm = Float32LayerNorm2d(dim, eps=1e-6)
        self.fc1 = nn.Conv2d(dim, 2 * hidden, 1)
        self.act = nn.GELU(approximate="tanh")
        self.gate_norm = Float32LayerNorm2d(hidden, eps=1e-6)
        self.spatial = nn.Conv2d(math.prod(set_size), math.prod(set_size), 1)
        nn.init.normal_(self.spatial.weight, std=2e-2)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.act(self.fc1(self.norm(x))).chunk(2, dim=1)  # (B, hidden, H, W) each
        s = mix_sets(self.gate_norm(b), self.spatial, self.set_size, self.layout)  # (B, hidden, H, W)
        return x + self.fc2(a * (s + 1))
