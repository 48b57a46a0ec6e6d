"""What a task tells the engine. The engine knows a task by this and by nothing else.

A batch is a dict whose values are tensors or lists, all of one length: the number of samples. The engine moves it to the
device, lets the task augment it, cuts it into micro-batches, and hands it to `loss` or `update`; what is in it is the
task's own business. A task does arithmetic on what it is given; it knows no device, no process and no optimizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Protocol, Sized

from torch import Tensor, nn

Batch = dict[str, Any]
State = dict[str, Any]


class TrainLoader(Sized, Protocol):
    """`len()` is the number of steps in an epoch; what an epoch yields is a function of its number alone."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's share, contiguous in the global batch, of every step from `start` on."""


class Task(Protocol):
    options: Any                            # the task's options dataclass, kept from the constructor
    title: str                              # "<data>-<model>", the name of the run folder
    companions: tuple[nn.Module, ...]       # models that the loss uses and nobody trains: a teacher

    def build(self) -> nn.Module:
        """The model to train, its weights made or loaded; called once, before anything else."""

    def loaders(self, batch_size: int, rank: int, world: int, seed: int
                ) -> tuple[TrainLoader, Mapping[str, Iterable[Batch]]]:
        """Training batches, and what can be scored: "test", and "holdout" where a slice of train is held out.

        `batch_size` is that of all ranks together; over all ranks, every scored sample comes exactly once.
        """

    def augment(self, batch: Batch, epoch: int, step: int, rank: int, world: int) -> Batch:
        """The batch as the loss takes it, images on their device; a function of the arguments and the seed alone."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and scalars to log, always the same names; all means over the batch's samples.

        The engine weights them by the number of samples, so accumulating over micro-batches changes nothing.
        """

    def start(self) -> State:
        """An empty score, on the CPU."""

    def update(self, state: State, model: nn.Module, batch: Batch) -> None:
        """Adds the model's answers on a batch as the eval loader gives it, moved to the device."""

    def result(self, states: list[State]) -> dict[str, float]:
        """Scores by name, the one that counts first, from the states of all ranks, on the CPU."""

    def pictures(self, states: list[State], folder: Path) -> list[Path]:
        """Draws what the states show into the folder."""

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Plain values, for the summary and for the metadata of weights.

        At least model, data, parameters and macs, and all that is needed to build the model again.
        """
