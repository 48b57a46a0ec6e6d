"""Sets of images, in memory or streamed, and what is done to a batch of them."""

from .augment import Augment, Normalize
from .loader import eval_loader, train_loader
from .memory import channel_statistics, image_size
from .options import DataOptions, SourceOptions
from .sources import CorruptImage, Source, Splits, open_data

__all__ = [
    "Augment",
    "CorruptImage",
    "DataOptions",
    "Normalize",
    "Source",
    "SourceOptions",
    "Splits",
    "eval_loader",
    "image_size",
    "open_data",
    "channel_statistics",
    "train_loader",
]
