"""Models: the skeleton, and one file for each family of registered names."""

from . import metaformer_family as comparison
from . import minattn, ninformer, raftmlp, wavemix
from .macs import count_macs
from .metaformer import MetaFormer
from .official import load_official
from .raftmlp import LevelHeads

__all__ = [
    "LevelHeads", "MetaFormer", "count_macs", "load_official",
    "comparison", "minattn", "ninformer", "raftmlp", "wavemix",
]  # fmt: skip
