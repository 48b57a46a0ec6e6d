"""Define stems and downsampling layers: modules that turn an image or a map into a smaller map.

Any module can serve as a stem or downsampling layer if its constructor is `embed(in_chans, dim)`, and if it has the
attribute `reduction`, its stride as an int, and the method `out_size((H, W)) -> (H', W')`.
"""

import math
import operator
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from timm.models import register_notrace_module
from torch import nn

from metamix.layers import Conv2d

Embed = Callable[[int, int], nn.Module]  # (in_chans, dim) -> a stem or downsampling layer


@register_notrace_module
class ConvEmbed(Conv2d):
    """A convolution as a stem or downsampling layer: (B, in, H, W) -> (B, out, H', W').

    H' = floor((H + 2 p - d (k - 1) - 1) / s) + 1 for a kernel k, stride s, padding p and dilation d. The constructor
    takes the arguments of `nn.Conv2d`.
    """

    @property
    def reduction(self) -> int:
        """Return the stride; raise ValueError if height and width have different strides."""
        height, width = self.stride
        if height != width:
            raise ValueError(f"stride is {self.stride}: give a stem or downsampling layer one stride for both sides.")
        return height

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H', W') of the output for an input of `size` = (H, W)."""
        if self.padding == "same":
            return size
        padding: Any = (0, 0) if self.padding == "valid" else self.padding
        axes = zip(size, self.kernel_size, self.stride, padding, self.dilation)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width


class SequentialEmbed(nn.Sequential):
    """A sequence of layers: (B, in, H, W) -> (B, out, H', W').

    Layers that change the map's size must have `reduction` and `out_size`, like `ConvEmbed`.
    """

    @property
    def reduction(self) -> int:
        """Return the product of the strides."""
        return math.prod(getattr(layer, "reduction", 1) for layer in self)

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H', W') of the output for an input of `size` = (H, W)."""
        layer: Any
        for layer in self:
            size = layer.out_size(size) if hasattr(layer, "out_size") else size
        return size


STEM = partial(ConvEmbed, kernel_size=7, stride=4, padding=2)
DOWNSAMPLE = partial(ConvEmbed, kernel_size=3, stride=2, padding=1)


def limit_stride(stem: Any, downsamples: Sequence[Any], output_stride: int) -> None:
    """Set the strides of the last downsampling layers to 1, in place, so that the last maps have `output_stride`.

    Convolutions that then read a finer map are dilated, so that they reach as far in the image as before.

    Raises:
        ValueError: no stage has this stride, or a layer whose stride must change is not a convolution with an odd
            kernel. With stride 1 and an even kernel, no padding keeps the size of a map.
    """
    strides = [*accumulate((embed.reduction for embed in (stem, *downsamples)), operator.mul)]  # of the stages' maps
    if output_stride not in strides:
        accepted = ", ".join(map(str, dict.fromkeys(strides)))
        raise ValueError(f"output_stride is {output_stride!r}: give a stride of this model's maps, {accepted}.")
    dilation = 1
    for embed in downsamples[bisect(strides, output_stride) - 1 :]:  # after the last stage with this stride
        layers: Any = [layer for layer in embed.modules() if hasattr(layer, "reduction")]
        for layer in (layer for layer in layers if not isinstance(layer, SequentialEmbed)):
            if not isinstance(layer, ConvEmbed) or not all(k % 2 for k in layer.kernel_size):
                raise ValueError(
                    f"output_stride is {output_stride!r}, but this model has a downsampling layer that is not a "
                    f"convolution with an odd kernel: leave output_stride out, or take a model such as "
                    f"metaformer_raft_s12."
                )
            reduction, layer.stride, layer.dilation = layer.reduction, (1, 1), (dilation, dilation)
            layer.padding = tuple(dilation * (k // 2) for k in layer.kernel_size)
            dilation *= reduction
