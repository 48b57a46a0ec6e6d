"""Provide the building blocks that mixers, models and heads share.

Workarounds for bugs and slow code in libraries live here too. The docstring of a workaround says why it is needed,
which test reproduces the problem, and when to remove the workaround.
"""

from .attention import attention
from .channels_last import GELU, GlobalPool, is_channels_last, to_channels_last
from .checkpointing import GradCheckpointing, checkpointed
from .conv import Conv2d, ConvWeights
from .dropout import Dropout, dropout
from .graph import fx_leaf, is_exporting, may_vary, rearrange
from .mlp import Mlp
from .norm import Float32LayerNorm2d, GroupNorm1
from .partition import BLOCK, GRID, mix_sets
from .spatial import average_to, crop_to, pad_to, reflect_to, resize_to, round_up

__all__ = [
    "BLOCK", "GELU", "GRID", "Conv2d", "ConvWeights", "Dropout", "Float32LayerNorm2d",
    "GlobalPool", "GradCheckpointing", "GroupNorm1", "Mlp", "attention", "average_to", "checkpointed", "crop_to",
    "dropout", "fx_leaf", "is_channels_last", "is_exporting", "may_vary", "mix_sets", "pad_to", "rearrange",
    "reflect_to", "resize_to", "round_up", "to_channels_last",
]  # fmt: skip
