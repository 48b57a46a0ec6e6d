"""Entries of weight files that tasks share, and the check that a file is of the task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, GetPydanticSchema
from torch import Tensor

from metamix.utils.rules import where
from metamix.weights.metadata import MAX_LENGTH, ModelMetadata

SplitNames = Annotated[tuple[str, ...], Field(max_length=MAX_LENGTH)]


def check_task(metadata: ModelMetadata, source: object, task: str, network: str) -> None:
    """Check that the weights of a file are not of another task.

    Args:
        metadata: of the file; it may name no task.
        source: the file's name, for messages.
        task: such as "detection".
        network: what the task trains, such as "a detector".

    Raises:
        ValueError: the file is of another task.
    """
    if metadata.task not in (None, task):
        raise ValueError(
            f"{source} has weights of {metadata.task}, not of {network}: give --task {metadata.task}, or take "
            f"metamix.load in Python"
        )


def check_trained_for(raw: Mapping[str, Any], source: object, task: str, network: str) -> None:
    """Check the metadata of a file as `ModelMetadata` does, and that `metamix train` wrote it for a task.

    Args:
        raw: the entries.
        source, task, network: as for `check_task`.

    Raises:
        ValueError: an entry cannot be used, or the file is of another task or of none.
    """
    metadata = ModelMetadata.from_dict(raw, source)
    check_task(metadata, source, task, network)
    if metadata.task is None:
        raise ValueError(
            f"{source} holds {metadata.model or 'weights without a description'}, not {network} that metamix trained: "
            f"give a run folder of metamix train --task {task}"
        )


def check_trained_with(option: str, trained: str, chosen: str, source: object) -> None:
    """Check that a file has the detector or the head of the run, so that the error names the option and not tensors.

    Raises:
        ValueError: it has another one.
    """
    if trained != chosen:
        raise ValueError(f"{source} was trained with the {option} {trained}, not {chosen}: give --{option} {trained}")


def arguments_without(names: Collection[str]) -> GetPydanticSchema:
    """Limit a mapping of arguments to those without these names."""
    accepted = f"a mapping of arguments without {', '.join(sorted(names))}"
    return where(lambda arguments: arguments.keys().isdisjoint(names), accepted)


def without_head(
    tensors: dict[str, Tensor], metadata: Mapping[str, Any], classes: list[str], head: Collection[str]
) -> dict[str, Tensor]:
    """Drop the weights of the layers in `head` where the file has other classes; their number may be the same."""
    if metadata.get("classes", classes) == classes:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(f"{part}." for part in head))}


def to_lists(value: Any) -> Any:
    """Turn a tuple, and the tuples in it, into lists, as a file has them."""
    return [to_lists(item) for item in value] if isinstance(value, tuple) else value
