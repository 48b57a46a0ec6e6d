"""Models: the skeleton, one file for each family of registered names, weights, and backbones with pyramids."""

from . import metaformer_family, minattn, ninformer, raftmlp, wavemix
from .listing import ModelInfo, WeightsInfo, list_models
from .macs import count_macs
from .metaformer import MetaFormer
from .official import load_official
from .raftmlp import ShortcutClassifier

__all__ = [
    "MetaFormer", "ModelInfo", "ShortcutClassifier", "WeightsInfo", "count_macs", "list_models", "load_official",
    "metaformer_family", "minattn", "ninformer", "raftmlp", "wavemix",
]  # fmt: skip
