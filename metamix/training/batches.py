"""Move, count and split the samples of a batch: a dict of tensors and lists of one length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .task import Batch


def num_samples(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return len(next(iter(batch.values())))


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Split a batch into the fewest parts of at most `size` samples; 0 keeps it whole.

    The parts differ by one sample at most, since a batch norm needs more than a few.
    """
    count = num_samples(batch)
    parts = -(-count // size) if size else 1
    for i in range(parts):
        start, stop = i * count // parts, (i + 1) * count // parts
        yield {key: value[start:stop] for key, value in batch.items()}


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format that the option `channels_last` asks for."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_device(value: Any, device: torch.device, memory_format: torch.memory_format | None = None) -> Any:
    """Move all tensors in nested dicts, lists and tuples to a device.

    Args:
        value: a tensor, a container of tensors, or anything else, which is returned as it is.
        device: target device.
        memory_format: format for tensors of four dimensions. If it is given, copying does not block the CPU; None
            copies synchronously and keeps the format.
    """
    if isinstance(value, Tensor):
        if memory_format is not None and value.ndim == 4:
            return value.to(device, non_blocking=True, memory_format=memory_format)
        return value.to(device, non_blocking=memory_format is not None)
    if isinstance(value, dict):
        return {key: to_device(item, device, memory_format) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device, memory_format) for item in value)
    return value
