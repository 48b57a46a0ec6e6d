"""Define the objects of an image. Masks are stored as run lengths, since many arrays would not fit in memory.

Run lengths have the format of pycocotools: {"size": [H, W], "counts": bytes}.
"""

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors

RunLengths = dict[str, Any]
# "boxes" (n, 4) as x1, y1, x2, y2, and "labels" (n,) from 1; detections also have "scores" (n,). Masks are
# "runs", a list of n run lengths, or "masks", a tensor: (n, H, W) in training, (n, 1, H, W) in detections.
Objects = dict[str, Any]


def encode(mask: np.ndarray) -> RunLengths:
    """Encode a mask, (H, W) bool, as run lengths."""
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def to_text(runs: RunLengths) -> RunLengths:
    """Convert run lengths to a form that JSON can hold and `decode` can read."""
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def decode(runs: RunLengths) -> np.ndarray:
    """Decode run lengths to a mask, (H, W) bool."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(runs).astype(bool)


def paste(masks: Tensor, boxes: Tensor, size: Sequence[int], resized: Sequence[int]) -> list[RunLengths]:
    """Draw the masks (n, 1, h, w) of boxes (n, 4) into an image of size (H, W), one at a time; return run lengths.

    Why not torchvision's function: it draws masks a pixel too large. It also ignores that training crops masks half a
    pixel too far right and down, measured in pixels of the `resized` image (H', W').
    """
    runs = []
    for mask, (x1, y1, x2, y2) in zip(masks.float().cpu(), boxes.tolist()):
        places, points = [], []
        for start, end, side, side_resized in zip((y1, x1), (y2, x2), size, resized):
            first = min(max(math.ceil(start - 0.5), 0), side - 1)  # the first pixel whose centre is inside the box
            pixels = torch.arange(first, min(max(math.ceil(end - 0.5), first + 1), side))
            places.append(pixels.numpy())
            points.append((pixels + 0.5 - 0.5 * side / side_resized - start) / (end - start) * 2 - 1)
        grid = torch.stack(torch.meshgrid(points, indexing="ij")[::-1], -1)
        soft = F.grid_sample(mask[None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        drawn = np.zeros(size, bool)
        drawn[np.ix_(*places)] = soft >= 0.5
        runs.append(encode(drawn))
    return runs


def select(objects: Objects, chosen: Tensor) -> Objects:
    """Return the objects for which `chosen`, (n,) bool, is true."""
    return {
        key: value[chosen] if isinstance(value, Tensor) else list(compress(value, chosen.tolist()))
        for key, value in objects.items()
    }


def drop_empty(objects: Objects) -> Objects:
    """Drop objects whose box has no area, such as a box outside of the image that was clipped to the edge."""
    return select(objects, (objects["boxes"][:, 2:] > objects["boxes"][:, :2]).all(1))


def pixel_maps(height: int, width: int) -> tuple[tv_tensors.Mask, tv_tensors.Mask]:
    """Return two maps (H, W), the row and the column of each pixel. A transform moves them as it would move masks."""
    rows = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32).expand(height, width)
    return tv_tensors.Mask(rows), tv_tensors.Mask(columns)


def draw_masks(runs: Sequence[RunLengths], rows: Tensor, columns: Tensor) -> Tensor:
    """Draw masks, (n, H, W) uint8, after a transform that turned `pixel_maps` into `rows` and `columns`."""
    masks = torch.zeros(len(runs), *rows.shape, dtype=torch.uint8)
    places = np.ix_(rows[:, 0].long().numpy(), columns[0].long().numpy())
    for mask, each in zip(masks, runs):
        mask.copy_(torch.from_numpy(decode(each)[places]))
    return masks
