"""Check entries of weight files that all tasks have, such as the task that trained the weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import Field, GetPydanticSchema

from metamix.utils.rules import where
from metamix.weights.metadata import MAX_LENGTH, ModelMetadata

SplitNames = Annotated[tuple[str, ...], Field(max_length=MAX_LENGTH)]


def check_task(metadata: ModelMetadata, source: object, task: str, network: str) -> None:
    """Raise ValueError if weights belong to another task than `task`, whose `network` is, say, "a detector"."""
    if metadata.task not in (None, task):
        raise ValueError(
            f"{source} has weights of {metadata.task}, not of {network}: give --task {metadata.task}, or take "
            f"metamix.load in Python"
        )


def check_trained_with(option: str, trained: str, chosen: str, source: object) -> None:
    """Raise ValueError if a file was trained with another detector or head than the run has chosen.

    Without this check, loading would fail with a list of tensors that do not fit.
    """
    if trained != chosen:
        raise ValueError(f"{source} was trained with the {option} {trained}, not {chosen}: give --{option} {trained}")


def arguments_without(names: Collection[str]) -> GetPydanticSchema:
    """Return a rule that accepts a mapping of arguments only if it has none of these names."""
    accepted = f"a mapping of arguments without {', '.join(sorted(names))}"
    return where(lambda arguments: arguments.keys().isdisjoint(names), accepted)


def to_lists(value: Any) -> Any:
    """Convert a tuple, and all tuples in it, into lists, as weight files store them."""
    return [to_lists(item) for item in value] if isinstance(value, tuple) else value
