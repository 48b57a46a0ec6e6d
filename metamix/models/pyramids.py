"""Build feature pyramids for detection and segmentation: maps at strides s, 2 s, 4 s and so on.

`FeaturePyramid` takes the maps of several stages (Lin et al., arXiv 1612.03144). `SimplePyramid` makes all levels from
the last map of an isotropic model (ViTDet, Li et al., arXiv 2203.16527, section 3). Both take the list of a backbone's
maps, (B, C_i, H_i, W_i), and return an OrderedDict of levels, (B, out_channels, H_s, W_s), from fine to coarse.
`LastMap` is for heads that need no pyramid.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from metamix.layers import GroupNorm1


class FeaturePyramid(nn.Module):
    """Apply torchvision's feature pyramid to the maps of a multi-stage model.

    The maps of a MetaFormer come from its residual stream, without a norm. So each map first gets a GroupNorm of one
    group, as in PoolFormer's detectors.

    Args:
        dims: channels of each map, C_i.
        levels: for each level, its name, the index of its map, and how many times max pooling halves the map.
        out_channels: channels of all levels. None leaves out the top-down path, for heads that have their own lateral
            convolutions: a level has as many channels as its map.
        extra: module that adds coarser levels; None adds no level. It needs `out_channels`.
    """

    def __init__(
        self,
        dims: Sequence[int],
        levels: Sequence[tuple[str, int, int]],
        out_channels: int | None,
        extra: ExtraFPNBlock | None,
    ):
        super().__init__()
        self.levels = list(levels)
        self.norms = nn.ModuleList(GroupNorm1(dim) for dim in dims)
        self.fpn = None
        if out_channels is not None:
            self.fpn = FeaturePyramidNetwork([dims[i] for _, i, _ in levels], out_channels, extra)

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        maps = [norm(x) for norm, x in zip(self.norms, maps)]
        levels = OrderedDict((name, halve(maps[i], times)) for name, i, times in self.levels)
        return levels if self.fpn is None else self.fpn(levels)


class LastMap(nn.Module):
    """Return the last map unchanged, as the only level, "last"."""

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        return OrderedDict(last=maps[-1])


class SimplePyramid(nn.Module):
    """Make ViTDet's pyramid from the last map.

    Finer levels come from transposed convolutions, coarser levels from max pooling. Each level ends with a 1x1 and a
    3x3 convolution, each followed by LayerNorm.

    Args:
        dim: channels of the last map.
        halvings: for each level's name, how many times max pooling halves the map; a negative number counts doublings.
        out_channels: channels of all levels.
        extra: as for `FeaturePyramid`.
    """

    def __init__(self, dim: int, halvings: dict[str, int], out_channels: int, extra: ExtraFPNBlock | None):
        super().__init__()
        self.halvings = halvings
        self.levels = nn.ModuleDict(
            {name: simple_level(dim, max(0, -times), out_channels) for name, times in halvings.items()}
        )
        self.extra = extra

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        x = maps[-1]
        names = list(self.levels)
        results = [level(halve(x, self.halvings[name])) for name, level in self.levels.items()]
        if self.extra is not None:
            results, names = self.extra(results, [x], names)
        return OrderedDict(zip(names, results))


def halve(x: Tensor, times: int) -> Tensor:
    """Max-pool a map to 1 / 2^times of its size; sizes are rounded up. Return it unchanged if `times` <= 0."""
    return F.max_pool2d(x, 2**times, ceil_mode=True) if times > 0 else x


def simple_level(dim: int, doublings: int, out_channels: int) -> nn.Sequential:
    """Build a level of `SimplePyramid`: (B, dim, H, W) -> (B, out_channels, 2^doublings H, 2^doublings W).

    Each doubling of the size halves the number of channels.
    """
    layers: list[nn.Module] = []
    for i in range(doublings):
        layers += [LayerNorm2d(dim), nn.GELU()] if i else []
        layers += [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)]
        dim //= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(dim, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
