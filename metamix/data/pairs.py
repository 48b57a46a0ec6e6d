"""Make batches of samples that are pairs of images, such as an image and its mask."""

from __future__ import annotations

from typing import Any

import torch

from .loader import Batch


def collate_pairs(samples: list[Any]) -> Batch:
    """Make a batch of (name, image, target) samples, with lists of images and targets."""
    names, images, targets = (list(column) for column in zip(*samples))
    return {"image": images, "target": targets, "name": names}


def collate_crops(samples: list[Any]) -> Batch:
    """Make a batch with tensors of images and targets, which are all of one size."""
    batch = collate_pairs(samples)
    return batch | {key: torch.stack(batch[key]) for key in ("image", "target")}
