"""Entries of weight files that tasks share, and the check that a file is of the task."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import Field, GetPydanticSchema

from metamix.utils.rules import where
from metamix.weights.metadata import MAX_LENGTH, ModelMetadata

SplitNames = Annotated[tuple[str, ...], Field(max_length=MAX_LENGTH)]


def check_task(metadata: ModelMetadata, source: object, task: str, network: str) -> None:
    """Raise ValueError if weights are of another task than `task`, which trains a `network`, such as "a detector"."""
    if metadata.task not in (None, task):
        raise ValueError(
            f"{source} has weights of {metadata.task}, not of {network}: give --task {metadata.task}, or take "
            f"metamix.load in Python"
        )


def check_trained_with(option: str, trained: str, chosen: str, source: object) -> None:
    """Raise ValueError if a file has another detector or head than the run, so that the error names no tensors."""
    if trained != chosen:
        raise ValueError(f"{source} was trained with the {option} {trained}, not {chosen}: give --{option} {trained}")


def arguments_without(names: Collection[str]) -> GetPydanticSchema:
    """Limit a mapping of arguments to those without these names."""
    accepted = f"a mapping of arguments without {', '.join(sorted(names))}"
    return where(lambda arguments: arguments.keys().isdisjoint(names), accepted)


def to_lists(value: Any) -> Any:
    """Turn a tuple, and the tuples in it, into lists, as a file has them."""
    return [to_lists(item) for item in value] if isinstance(value, tuple) else value
