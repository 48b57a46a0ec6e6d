"""The multi-axis gated MLP of MAXIM: "MAXIM: Multi-Axis MLP for Image Processing" (arXiv 2201.02973), section 3.2.

    u, v = split(gelu(Linear(x)))                      f C channels, two halves
    y    = Linear(concat(G_grid(u), G_block(v)))       back to C

    G(x) = x + Linear(a * (S(norm(b)) + 1)),  a, b = split(gelu(Linear(norm(x))))

S is one linear map over a set of tokens, the same for all channels. In the block branch a set is the fh x fw tokens of
one block, so it mixes neighbours; in the grid branch it is one token of each of the gh x gw cells, so it reaches across
the whole map. Both numbers are fixed, so the parameters do not depend on the resolution.

Any size: a map is padded with zeros to a multiple of block and grid, then cropped. Cost per token and channel: the
number of tokens in a set, so linear in the number of tokens.

As the authors, in flax: GELU in its tanh form, norms with eps 1e-6. Theirs holds the norm before and the residual
around; here both are the skeleton's.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metamix.layers import Dropout, crop_to, pad_to, parse_size

from .registry import register_mixer

# Where the kh x kw tokens of a set lie on the map: one in each cell of the grid, or side by side.
GRID = "(kh nh) (kw nw)"
BLOCK = "(nh kh) (nw kw)"


@register_mixer("maxim")
class Maxim(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Args:
        block_size: (fh, fw), height and width of a block in tokens, or one number for both.
        grid_size: (gh, gw), number of cells down and across, or one number for both.
        input_proj_factor: f, width of both branches together over C.
        block_gmlp_factor, grid_gmlp_factor: width inside a gMLP over the branch's own.
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
        half = dim * input_proj_factor // 2
        for factor in (block_gmlp_factor, grid_gmlp_factor):
            if dim * input_proj_factor % 2 or half * factor % 2:
                raise ValueError(
                    f"{dim} channels times input_proj_factor {input_proj_factor} and gmlp factor {factor} cannot be "
                    f"halved twice: choose an even width or larger factors."
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
        u, v = self.act(self.fc1(pad_to(x, self.multiple))).chunk(2, dim=1)
        y = self.fc2(torch.cat([self.grid(u), self.block(v)], dim=1))
        return self.drop(crop_to(y, size))


class WideNorm(LayerNorm2d):
    """A norm over channels, computed in float32 at least: a CPU's backward pass at 16 bits takes twice as long, which
    was a fifth of a training step."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = x.permute(0, 2, 3, 1).to(wide)
        y = F.layer_norm(rows, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return y.to(x.dtype).permute(0, 3, 1, 2)


class GatedMlp(nn.Module):
    """G above, for (B, C, H, W) that `set_size` = (kh, kw) divides; `layout` is GRID or BLOCK."""

    def __init__(self, dim: int, set_size: tuple[int, int], factor: int, layout: str):
        super().__init__()
        hidden = dim * factor // 2
        self.set_size = tuple(set_size)
        self.layout = layout
        self.norm = WideNorm(dim, eps=1e-6)
        self.fc1 = nn.Conv2d(dim, 2 * hidden, 1)
        self.act = nn.GELU(approximate="tanh")
        self.gate_norm = WideNorm(hidden, eps=1e-6)
        self.spatial = nn.Conv2d(math.prod(set_size), math.prod(set_size), 1)
        nn.init.normal_(self.spatial.weight, std=2e-2)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.act(self.fc1(self.norm(x))).chunk(2, dim=1)
        return x + self.fc2(a * (self.mix(self.gate_norm(b)) + 1))

    def mix(self, x: Tensor) -> Tensor:
        return self.mix_any_number(x) if torch.compiler.is_exporting() else self.mix_sets(x, self.layout)

    def mix_sets(self, x: Tensor, layout: str) -> Tensor:
        kh, kw = self.set_size
        n = dict(nh=x.shape[-2] // kh, nw=x.shape[-1] // kw)
        # The mixed axis goes where a 1x1 convolution wants it.
        x = rearrange(x, f"b c {layout} -> b (kh kw) (nh nw) c", kh=kh, kw=kw, **n)
        return rearrange(self.spatial(x), f"b (kh kw) (nh nw) c -> b c {layout}", kh=kh, kw=kw, **n)

    def mix_any_number(self, x: Tensor) -> Tensor:
        """The same for an exported graph, which would hold for a single set in height or width only, or for several
        only. So rows and columns are dealt into blocks, and a spare row and column of blocks makes them several
        always."""
        (kh, kw), (h, w) = self.set_size, x.shape[-2:]
        rows, columns = (torch.arange(n, device=x.device) for n in (h, w))
        if self.layout == GRID:
            x = x[:, :, deal(rows, kh)][..., deal(columns, kw)]
        x = crop_to(self.mix_sets(F.pad(x, (0, kw, 0, kh)), BLOCK), (h, w))
        if self.layout == GRID:
            x = x[:, :, deal(rows, h // kh)][..., deal(columns, w // kw)]
        return x


def deal(cards: Tensor, piles: int) -> Tensor:
    """Cut `cards` into `piles` of one height and take from each in turn: "(k n) -> (n k)" without a shape to ask."""
    height = cards.shape[0] // piles
    return cards % piles * height + cards // piles
