"""Efficient token-mixing vision backbones: one MetaFormer skeleton, swappable mixers, registered with timm.

Importing this package registers every model of the zoo: `timm.list_models("metaformer_*")` lists the first family.
"""

from typing import TYPE_CHECKING, Any

from . import models
from .mixers import list_mixers, register_mixer
from .version import __version__

if TYPE_CHECKING:
    from .classification.load import load_classifier

__all__ = ["__version__", "list_mixers", "load_classifier", "models", "register_mixer"]


def __getattr__(name: str) -> Any:
    """Import what belongs to a task on first use, so that `import metamix` imports models alone."""
    if name == "load_classifier":
        from .classification.load import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
