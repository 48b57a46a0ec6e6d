"""Average losses over all ranks, and measure the time that steps take."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .processes import ProcessGroup


class LossMeter:
    """Average the losses of each step over all ranks.

    The losses of a step stay on the device until the next `reduce`, so a step does not wait for the GPU.
    """

    def __init__(self) -> None:
        self.epoch_sums: dict[str, float] = {}  # of each loss over the steps of this epoch
        self.pending: list[Tensor] = []  # (losses,) for each step since the last `reduce`
        self._names: list[str] = []

    def add(self, names: list[str], losses: Tensor) -> None:
        """Add the losses of one step; all steps have the same names."""
        self._names = names
        self.pending.append(losses)

    def reduce(self, group: ProcessGroup, flags: Sequence[float]) -> tuple[list[dict[str, float]], list[float]]:
        """Combine the ranks' losses since the last call and any flags, in a single all-reduce.

        Returns:
            The mean losses of each step, by name, and the sum of each flag over the ranks; the same on all ranks.
        """
        losses, width = torch.stack(self.pending), len(self._names)  # (steps, losses)
        self.pending.clear()
        values = group.all_reduce(torch.cat([losses.flatten(), losses.new_tensor(list(flags))])).tolist()
        count = losses.numel()
        steps = [
            {name: total / group.world_size for name, total in zip(self._names, values[i : i + width])}
            for i in range(0, count, width)
        ]
        return steps, values[count:]

    def add_to_epoch(self, step: dict[str, float]) -> None:
        """Add the mean losses of one step to the sums of the epoch."""
        for name, value in step.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value


class Stopwatch:
    """Measure the training time of an epoch. Time for evaluation and between two runs does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = time.monotonic()

    def start(self) -> None:
        """Count from now on."""
        self._since = time.monotonic()

    def lap(self) -> float:
        """Add the time since the last call of `start` or `lap`; return the total in seconds."""
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        return self.seconds
