"""Storage formats of data sets, one module each.

Every module has a function that opens a data set and returns its training and test splits. A split is an `ImageSplit`.
"""

from .base import TEST_SPLITS, ImageSplit
from .digits import open_digits
from .folder import open_folder
from .huggingface import open_huggingface
from .torchvision_sets import TORCHVISION_SETS, open_torchvision
from .webdataset_shards import open_webdataset

__all__ = [
    "TEST_SPLITS",
    "TORCHVISION_SETS",
    "ImageSplit",
    "open_digits",
    "open_folder",
    "open_huggingface",
    "open_torchvision",
    "open_webdataset",
]
