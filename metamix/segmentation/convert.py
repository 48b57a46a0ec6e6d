"""Name the formats of masks that `metamix convert` reads."""

from .labelme import read_labelme
from .masks import read_masks
from .polygons import read_polygons

FORMATS = {"masks": read_masks, "labelme": read_labelme, "polygons": read_polygons}
