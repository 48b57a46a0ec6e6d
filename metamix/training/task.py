"""Define the task protocol: everything that the engine knows about a task.

A batch is a dict of tensors and lists, all of the same length: the number of samples. The engine moves a batch to the
device, has the task augment it, splits it into micro-batches and passes it to the loss or the metric. What a batch
holds is up to the task. A task needs to know nothing about devices or optimizers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from metamix.weights.metadata import ModelMetadata

Batch = dict[str, Any]
State = dict[str, Any]


class TrainLoader(Sized, Protocol):
    """Yield training batches; `len()` is the number of steps in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's share of every global batch of an epoch, from step `start` on.

        The batches depend only on the loader's arguments and the epoch. The shares of ranks 0, 1, ... are consecutive.
        """


class TaskData(Protocol):
    """Load and augment the data."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return plain values that must be the same when a run is resumed, such as class names and sample counts.

        The entry "digest" is `metamix.weights.checksums.digest` of the relative paths, labels and file sizes of the
        samples, or a dict of such digests by split. The entry "content" is `metamix.data.files.content_digest` of their
        files, in the same form. A task that is made only for evaluation may leave out "content".
        """

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int) -> TrainLoader:
        """Make the training loader; `batch_size` counts the samples of all ranks together."""

    def eval_loaders(self, batch_size: int, rank: int, world_size: int) -> Mapping[str, Iterable[Batch]]:
        """Make the loader of each split that can be scored: "test", and "holdout" if a split is held out.

        The loaders of all ranks together yield every sample once. A batch may have the entry "index", (n,) int64. An
        index of -1 marks a sample that could not be read; such samples are counted, but not scored.
        """

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Prepare this rank's batch, already on the device, for the loss.

        The result depends only on the arguments and the seed. `step` counts over all epochs.
        """


class TaskModel(Protocol):
    """Build and describe the model."""

    frozen_helpers: Sequence[nn.Module] = ()  # modules that the loss uses but that are not trained, such as a teacher

    def build(self, metadata: Mapping[str, Any] | None = None) -> nn.Module:
        """Build the model and load the initial weights; called once, before any other method.

        Args:
            metadata: metadata of a checkpoint, as `describe` returned it. The engine loads the checkpoint's weights
                next, so `build` need not load any. If `metadata` is None, `build` loads the initial weights.
        """

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return plain values for the summary and for the metadata of a weight file.

        They must include the entries model, data, samples (a dict), parameters and macs, all entries of the data's
        identity, and everything that is needed to rebuild the model. If the split "test" has another name in the data
        set, such as val, the entry "test_split" is that name.
        """


class Loss(Protocol):
    """Compute the loss of a model on a batch."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the scalar to minimise, and scalars to log under names that never change.

        All are means over the batch's samples; the engine weights them by the number of samples.
        """


class Metric(Protocol):
    """Score a model over batches.

    A metric may have one more method, `choose(states)`: at the end of training it gets the states of the held-out split
    and returns entries for the weight file, such as a threshold.

    Attributes:
        lower_is_better: whether the first score is an error, for which lower values are better.
    """

    lower_is_better: bool = False

    def start(self) -> State:
        """Return an empty state, on the CPU. Scoring adds an entry: "unreadable", the number of samples left out."""

    def predict(self, model: nn.Module, batch: Batch) -> Iterable[Any]:
        """Return the model's output for each image of a batch.

        The batch comes from an eval loader and is already on the device. If `predict` is a generator, the model runs
        inside `update`, so that only one large output is in memory at a time.
        """

    def update(self, state: State, outputs: Any, batch: Batch) -> None:
        """Add the outputs for a batch to the state. They come from `predict`, or from an exported model."""

    def result(self, states: list[State]) -> dict[str, float]:
        """Compute the scores from the states of all ranks, on the CPU; the most important score comes first."""

    def by_class(self, states: list[State]) -> Mapping[str, Mapping[str, float | None]]:
        """Compute the scores of each class, by its name; by default there are no classes."""
        return {}


class Pictures(Protocol):
    """Draw and report the metric's states."""

    def draw(self, states: list[State], folder: Path) -> list[Path]:
        """Draw the states of all ranks into the folder and return the files; by default there are none."""
        return []

    def details(self, states: list[State]) -> list[str]:
        """Return lines that explain the scores or add to them; by default there are none."""
        return []

    def advice(self, states: list[State]) -> str:
        """Say what to do about bad scores; by default there is no advice."""
        return ""

    def report(self, states: list[State]) -> str:
        """Return what commands print in addition to the scores: details and advice."""
        return "\n".join(filter(None, [*self.details(states), self.advice(states)]))


class Task(Protocol):
    """Hold the data, the model, the loss, the metric and the pictures that the options define.

    `TaskClass` says how a task is made.
    """

    title: str  # data and model, such as "digits-metaformer_pooling_nano"; names the run folder
    same_image_shape: bool  # whether all batches have images of one shape; cuDNN then searches for fast convolutions

    # Properties, so that a task may declare its own classes for them.
    @property
    def data(self) -> TaskData: ...
    @property
    def model(self) -> TaskModel: ...
    @property
    def loss(self) -> Loss: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def pictures(self) -> Pictures: ...

    @property
    def notes(self) -> Sequence[str]:
        """Return notes for the user about how the data and the model were made."""


class TaskClass(Protocol):
    """Define the parts of a task's class that the command line uses.

    Attributes:
        Options: dataclass of the options of `metamix train`. It has the fields `model`, `pretrained` and `checkpoint`,
            and may have `engine_defaults`; see `metamix.training.recipe.RecipeReader`.
        EvalOptions: dataclass of the options of `metamix eval`. It has the field `checkpoint`.
    """

    @property
    def Options(self) -> type: ...
    @property
    def EvalOptions(self) -> type: ...

    def __call__(self, options: Any, seed: int = 0) -> Task:
        """Open the data and assemble the task; raise ValueError if the options do not fit together."""

    def check_model(self, name: str, pretrained: bool) -> None:
        """Raise ValueError if the model cannot be trained or, with `pretrained`, has no pretrained weights."""

    def for_evaluation(self, options: Any) -> tuple[Task, nn.Module, ModelMetadata]:
        """Make the task, the trained model and the metadata of its weights from `EvalOptions`."""
