"""Compute class scores from a backbone's feature maps of several strides.

All heads take a list of feature maps (B, C_i, H_i, W_i), the finest first, and return scores (B, num_classes, H, W).
The scores have the size of the first map, with two exceptions: the scores of `FCNHead` have the size of the map that
it reads, and `DeconvHead` enlarges the last map.

The heads take these arguments:

    in_channels     channels of each map; for `DeconvHead`, of the last map
    num_classes     number of classes
    channels        width of the convolutions
    dropout         share of channels dropped before the classifier; `DeconvHead` does not take it
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from metamix.layers import Conv2d, average_to, resize_to


class ConvBnRelu(nn.Sequential):
    """Convolution, BatchNorm, ReLU: (B, in_chans, H, W) -> (B, dim, H, W)."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int):
        conv = Conv2d(in_chans, dim, kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(dim), nn.ReLU())


class SemanticFPNHead(nn.Module):
    """The head of Semantic FPN (Kirillov et al., arXiv 1901.02446) as PoolFormer uses it.

    Level i has i convolutions, each followed by upsampling to the next finer level, which has twice the height and
    width. Level 0 has one convolution and no upsampling. The outputs of all levels are summed.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int = 128, dropout: float = 0.1):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(ConvBnRelu(dim if k == 0 else channels, channels, 3) for k in range(max(1, i))))
            for i, dim in enumerate(in_channels)
        )
        self.drop = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        sizes = [x.shape[-2:] for x in maps]
        total = self.branches[0](maps[0])  # (B, channels, H_0, W_0)
        for i in range(1, len(maps)):
            x = maps[i]
            convs: Any = self.branches[i]
            for conv, finer in zip(convs, sizes[:i][::-1]):
                x = resize_to(conv(x), finer, "bilinear")
            total = total + x
        return self.classifier(self.drop(total))


class UPerHead(nn.Module):
    """The head of UPerNet (Xiao et al., arXiv 1807.10221), with the layers that mmsegmentation uses."""

    pool_sizes = (1, 2, 3, 6)  # sides of the grids to which the coarsest level is pooled

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512, dropout: float = 0.1):
        super().__init__()
        *finer, last = in_channels
        self.pools = nn.ModuleList(ConvBnRelu(last, channels, 1) for _ in self.pool_sizes)
        self.bottleneck = ConvBnRelu(last + len(self.pool_sizes) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvBnRelu(dim, channels, 1) for dim in finer)
        self.outputs = nn.ModuleList(ConvBnRelu(channels, channels, 3) for _ in finer)
        self.fuse = ConvBnRelu(len(in_channels) * channels, channels, 3)
        self.drop = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, last = maps
        top = self.pool(last)
        results = [top]
        for lateral, output, x in reversed(list(zip(self.laterals, self.outputs, finer))):
            top = lateral(x) + resize_to(top, x.shape[-2:], "bilinear")
            results.append(output(top))
        finest, *coarser = results[::-1]
        parts = [finest, *(resize_to(x, finest.shape[-2:], "bilinear") for x in coarser)]
        return self.classifier(self.drop(self.fuse(torch.cat(parts, dim=1))))

    def pool(self, x: Tensor) -> Tensor:
        """Combine a feature map with its averages over grids: (B, C, H, W) -> (B, channels, H, W)."""
        parts = [x]
        for n, conv in zip(self.pool_sizes, self.pools):
            parts.append(resize_to(conv(average_to(x, (n, n))), x.shape[-2:], "bilinear"))
        return self.bottleneck(torch.cat(parts, dim=1))


class FCNHead(nn.Module):
    """A convolution and a classifier on the feature map with the index `level`."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, level: int, channels: int = 256, dropout: float = 0.1
    ):
        super().__init__()
        self.level = level
        self.conv = ConvBnRelu(in_channels[level], channels, 3)
        self.drop = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.drop(self.conv(maps[self.level])))


class DeconvHead(nn.Sequential):
    """The head of WaveMix: transposed convolutions on the last feature map, without activations, and a 1x1 convolution.

    `channels` lists the widths after the transposed convolutions, each of which doubles height and width.
    """

    def __init__(self, in_channels: int, num_classes: int, *, channels: Sequence[int]):
        widths = [in_channels, *channels]
        super().__init__(
            *(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)),
            nn.Conv2d(widths[-1], num_classes, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward(maps[-1])
