"""Models: the skeleton, and one file for each family of registered names."""

from . import comparison
from .macs import count_macs
from .metaformer import MetaFormer

__all__ = ["MetaFormer", "comparison", "count_macs"]
