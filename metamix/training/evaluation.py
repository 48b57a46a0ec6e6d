"""Score a model over a loader, on one process or many."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .batches import to_device
from .precision import autocast
from .processes import ProcessGroup
from .task import Batch, Metric, State


@torch.no_grad()
def evaluate(
    metric: Metric,
    model: nn.Module,
    loader: Iterable[Batch],
    group: ProcessGroup,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format,
) -> tuple[dict[str, float], list[State]]:
    """Score a model over this rank's loader.

    Args:
        metric: turns predictions into scores.
        model: the model; it is left in evaluation mode.
        loader: yields this rank's batches; the loaders of all ranks together yield every sample once.
        group: the processes whose scores are combined.
        dtype: dtype of autocast; None for float32.
        memory_format: memory format of the images.

    Returns:
        The scores by name, the same on all ranks, and the states of all ranks, on the CPU.
    """
    model.eval()
    state = to_device(metric.start(), group.device)
    for batch in loader:
        batch = to_device(batch, group.device, memory_format)
        with autocast(group.device, dtype):
            metric.update(state, metric.predict(model, batch), batch)
    states = group.all_gather(to_device(state, torch.device("cpu")))
    return metric.result(states), states
