"""Building blocks that mixers, models and heads share."""

from .activation import GELU
from .dropout import Dropout
from .memory_format import is_channels_last
from .mlp import Mlp
from .norm import GroupNorm1
from .spatial import crop_to, pad_to, resize_to, sides

__all__ = ["GELU", "Dropout", "GroupNorm1", "Mlp", "crop_to", "is_channels_last", "pad_to", "resize_to", "sides"]
