"""Models: the skeleton, one file for each family of registered names, weights, and backbones with pyramids."""

from . import metaformer_family, minattn, ninformer, raftmlp, wavemix
from .macs import count_macs
from .metaformer import MetaFormer
from .official import load_official
from .raftmlp import ShortcutClassifier

__all__ = [
    "MetaFormer", "ShortcutClassifier", "count_macs", "load_official",
    "metaformer_family", "minattn", "ninformer", "raftmlp", "wavemix",
]  # fmt: skip
