"""Efficient token-mixing vision backbones: one MetaFormer skeleton, swappable mixers, registered with timm.

Importing this package registers every model of the zoo: `timm.list_models("metaformer_*")` lists the first family.
"""

from . import models
from .mixers import list_mixers, register_mixer
from .version import __version__

__all__ = ["__version__", "list_mixers", "models", "register_mixer"]
