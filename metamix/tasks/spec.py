"""Define `TaskSpec`, with which the commands find the parts of a task, and `Trained`, a loaded model."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import nn

from metamix.weights.metadata import ModelMetadata


@dataclass(frozen=True)
class TaskSpec:
    """The name of a task, and the places of its parts.

    Each part is given as "module:name" and is imported when it is used, since tasks need different extras.

    Attributes:
        name: name of the task, such as "segmentation", for --task, and for `task` in recipes and weight files.
        about: what the task's models do, for --help, such as "label each pixel".
        task: class that assembles training and evaluation, a `metamix.training.task.TaskClass`.
        load: function that takes `checkpoint`, a run folder or a weight file, and returns a `Trained`. If `takes_names`
            is true, it is also called with `model`, `model_args` and `pretrained`.
        predict: dataclass of the options of `metamix predict`, derived from `PredictOptions`, which predicts images.
        verify: dataclass of the options of `metamix verify`, derived from `VerifyOptions`, which checks a data set.
        export: function that takes an `ExportOptions`, opens the model to export, and returns an `Exportable`.
        exported: function that turns an exported model into a `Trained`.
        publish: function that takes a `Trained`, a folder with its weights and a `PublishOptions`, writes the
            config.json of timm's hub format, and returns code that loads the model with timm; "" if timm has no such
            models.
        explain: function that takes a `Trained`, the path of an image, and a label or None, and returns an
            `Explanation`; "" if predictions cannot be explained.
        pipeline: name of the task on the Hugging Face Hub, such as "image-segmentation".
        convert: dict from the name of a format to its `metamix.tasks.convert.Reader`; "" if the task has no readers.
        less_memory: advice for the error message when scoring or prediction runs out of memory.
        takes_names: whether `load` takes the name of a model, which chooses published weights, or says which model the
            weights in a file belong to.
        models: function that returns the names of models that only this task trains; "" if there are none.
        suffixes: suffixes of weight files that only this task reads.
        folders: groups of names. A data set belongs to the task if its folder, or the folder of one of its
            splits, contains all names of a group.
        data_sets: names of data sets that only this task reads.
    """

    name: str
    about: str
    task: str
    load: str
    predict: str
    verify: str
    export: str
    exported: str
    publish: str = ""
    explain: str = ""
    pipeline: str = ""
    less_memory: str = "give smaller images"
    takes_names: bool = False
    models: str = ""
    convert: str = ""
    suffixes: tuple[str, ...] = ()
    folders: tuple[frozenset[str], ...] = ()
    data_sets: tuple[str, ...] = ()

    def part(self, role: str) -> Any:
        """Import the part of a role, such as "load"."""
        return import_part(getattr(self, role))


def import_part(place: str) -> Any:
    """Import the object at "module:name". Unlike `pkgutil.resolve_name`, accept hyphens, as in my-task."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class Trained(Protocol):
    """A trained model, ready to use.

    Attributes:
        model: the model in evaluation mode.
        spec: arguments that rebuild the model, or settings for preparing its images.
        metadata: entries of the weight file; entries that only the task knows are in `metadata.extra`.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def spec(self) -> Any: ...

    @property
    def metadata(self) -> ModelMetadata: ...

    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[Any]:
        """Return the prediction for each image; images are files or PIL images."""
