"""Models: the skeleton, and one file for each family of registered names."""

from . import comparison, minattn, ninformer, raftmlp, wavemix
from .macs import count_macs
from .metaformer import MetaFormer
from .raftmlp import LevelHeads

__all__ = ["LevelHeads", "MetaFormer", "comparison", "count_macs", "minattn", "ninformer", "raftmlp", "wavemix"]
