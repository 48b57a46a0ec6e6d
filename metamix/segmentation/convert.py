"""Map the segmentation formats of `metamix convert` to the functions that read them."""

from .labelme import read_labelme
from .masks import read_masks
from .polygons import read_polygons

FORMATS = {"masks": read_masks, "labelme": read_labelme, "polygons": read_polygons}
