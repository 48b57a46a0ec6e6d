"""Provide the models: the skeleton, one file for each model family, image models, and backbones with pyramids."""

from . import metaformer_family, minattn, ninformer, poolformer, raftmlp, wavemix
from .image_models import create_image_model
from .listing import (
    ImageModelInfo,
    ImageWeightsInfo,
    ModelInfo,
    WeightsInfo,
    count_macs,
    list_all_models,
    list_image_models,
    list_models,
)
from .metaformer import MetaFormer
from .official import load_official
from .raftmlp import ShortcutClassifier

__all__ = [
    "ImageModelInfo", "ImageWeightsInfo", "MetaFormer", "ModelInfo", "ShortcutClassifier", "WeightsInfo", "count_macs",
    "create_image_model", "list_all_models", "list_image_models", "list_models", "load_official",
    "metaformer_family", "minattn", "ninformer", "poolformer", "raftmlp", "wavemix",
]  # fmt: skip
