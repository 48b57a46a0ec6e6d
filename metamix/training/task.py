"""What a task tells the engine. The engine knows a task by this and by nothing else.

A batch is a dict whose values are tensors or lists, all of one length: the number of samples. The engine moves it to
the device, lets the task augment it, cuts it into micro-batches, and hands it to `loss` or `update`; what is in it is
the task's own business. A task does arithmetic on what it is given; it knows no device, no process and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

Batch = dict[str, Any]
State = dict[str, Any]


class TrainLoader(Sized, Protocol):
    """`len()` is the number of steps in an epoch; what an epoch yields is a function of its number alone."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's share, contiguous in the global batch, of every step from `start` on."""


class Task(Protocol):
    Options: type  # dataclass of the task's options; has a field `model`
    EvalOptions: type  # dataclass of what eval.py takes; has a field `model` too
    one_shape: bool  # whether all images have one shape, for which the fastest convolution is worth a search
    title: str  # "<data>-<model>", the name of the run folder
    data: dict[str, Any]  # those entries of `describe` that tell the data from others: a run goes on with the same
    notes: list[str]  # what a person should know of how the model was made
    companions: tuple[nn.Module, ...]  # models that the loss uses and nobody trains: a teacher

    def __init__(self, options: Any, seed: int = 0) -> None:
        """Opens the data; ValueError where the options do not fit together."""

    def build(self, about: dict[str, Any] | None = None) -> nn.Module:
        """The model to train, its weights made or loaded; called once, before anything else.

        `about` is what `describe` said of the model of a checkpoint whose weights come in afterwards: then there is no
        need of weights to begin from.
        """

    def train_loader(self, batch_size: int, rank: int, world: int, seed: int) -> TrainLoader:
        """Training batches; `batch_size` is that of all ranks together."""

    def eval_loaders(self, batch_size: int, rank: int, world: int) -> Mapping[str, Iterable[Batch]]:
        """What can be scored: "test", and "holdout" where a slice of train is held out.

        Over all ranks, every sample comes once.
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

    def report(self, states: list[State]) -> str:
        """What eval.py prints of the states beside the scores; empty where there is no more to say."""

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Plain values, for the summary and for the metadata of weights.

        At least model, data, samples (a dict), parameters and macs, and all that is needed to build the model again.
        """

    @classmethod
    def trained(cls, options: Any) -> tuple[Task, nn.Module, dict[str, Any]]:
        """The task, the model and what its file says of it, for eval.py, from `EvalOptions`."""
