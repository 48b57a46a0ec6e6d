"""Open, decode, cache, batch and augment data sets of labelled images."""

from .augment import Augment, normalize
from .files import CorruptImage, decode_file, read_image_file
from .loader import eval_loader, train_loader
from .memory import channel_statistics, image_size
from .options import DataOptions, LocationOptions, ReadingOptions, SourceOptions
from .sources import Source, Splits, open_data, scarce_classes

__all__ = [
    "Augment", "CorruptImage", "DataOptions", "LocationOptions", "ReadingOptions", "Source", "SourceOptions", "Splits",
    "channel_statistics", "decode_file", "eval_loader", "image_size", "normalize", "open_data", "read_image_file",
    "scarce_classes", "train_loader",
]  # fmt: skip
