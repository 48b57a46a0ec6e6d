"""Building blocks that mixers, models and heads share."""

from .activation import GELU
from .attention import attention
from .conv import Conv2d
from .dropout import Dropout
from .memory_format import is_channels_last
from .mlp import Mlp
from .norm import GroupNorm1
from .pool import GlobalPool
from .spatial import crop_to, pad_to, parse_size, resize_to

__all__ = [
    "GELU", "Conv2d", "Dropout", "GlobalPool", "GroupNorm1", "Mlp",
    "attention", "crop_to", "is_channels_last", "pad_to", "parse_size", "resize_to",
]  # fmt: skip
