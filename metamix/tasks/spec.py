"""Define what the commands know about a task: `TaskSpec`, and the types of the parts that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import nn


@dataclass(frozen=True)
class TaskSpec:
    """A task: its name, and where its parts are.

    A part is named "module:name" and imported on use, since tasks need different extras.

    Attributes:
        name: such as "segmentation"; the value of --task, and `task` in recipes and weight files.
        about: what the task's models do, for --help, such as "label each pixel".
        task: class that assembles training and evaluation, a `metamix.training.task.TaskClass`.
        load: function that loads a `Trained` from a run folder or a weight file, the argument `checkpoint`. If the task
            `takes_names`, it also gets `model`, `model_args` and `pretrained`.
        predict: dataclass of the options of `metamix predict`, derived from `PredictOptions`, which predicts images.
        verify: dataclass of the options of `metamix verify`, derived from `VerifyOptions`, which checks a data set.
        export: function that opens a model to export, from an `ExportOptions` to an `Exportable`.
        exported: function that makes a `Trained` of an exported model.
        less_memory: what needs less memory when scoring or prediction runs out of it.
        takes_names: whether weights may be published ones of a model, or lie in a file that does not name its model.
        models: function that returns the names of models that only this task trains; "" for none.
        suffixes: of weight files that only this task reads.
        folders: names in the folder of a data set by which it is recognised; any of the groups will do.
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
    less_memory: str = "give smaller images"
    takes_names: bool = False
    models: str = ""
    suffixes: tuple[str, ...] = ()
    folders: tuple[frozenset[str], ...] = ()
    data_sets: tuple[str, ...] = ()

    def part(self, role: str) -> Any:
        """Import the part of a role, such as "load"."""
        return import_part(getattr(self, role))

    def model_names(self) -> Sequence[str]:
        """Return the names of the models that only this task trains."""
        return self.part("models")() if self.models else ()


def import_part(place: str) -> Any:
    """Import what "module:name" names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class Trained(Protocol):
    """A trained model, ready to use.

    Attributes:
        model: in evaluation mode.
        spec: what builds the model again, or how images go into it.
        metadata: entries of its weight file.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def spec(self) -> Any: ...

    @property
    def metadata(self) -> Any: ...

    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[Any]:
        """Predict images: files, or images of Pillow."""
