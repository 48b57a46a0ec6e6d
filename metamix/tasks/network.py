"""Build a whole network, such as a detector, from the metadata of its weights: `NetworkSpec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from metamix.data.options import train_command
from metamix.models.checkpoint import check_described_size
from metamix.tasks.metadata import check_task, to_lists
from metamix.utils.rules import check_entries, rules_of
from metamix.weights.files import load_weights
from metamix.weights.find import find_weights
from metamix.weights.fit import load_into
from metamix.weights.metadata import ModelMetadata, to_tuples

COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none
Spec = TypeVar("Spec", bound="NetworkSpec")


@dataclass(frozen=True)
class NetworkSpec:
    """The arguments that build a network again, as the metadata of its weights hold them.

    Attributes:
        task: name of the task that trains such networks.
        network: what the task trains, for messages, such as "detector".
        added_later: values of the entries that older files do not have.
    """

    task: ClassVar[str]
    network: ClassVar[str]
    added_later: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_dict(cls: type[Spec], raw: Mapping[str, Any], source: object) -> Spec:
        """Check the metadata of a file, which is untrusted; ValueError if they do not describe such a network."""
        metadata = ModelMetadata.from_dict(raw, source)
        check_task(metadata, source, cls.task, f"a {cls.network}")
        if metadata.task is None:
            raise ValueError(
                f"{source} holds {metadata.model or 'weights without a description'}, not a {cls.network} that metamix "
                f"trained: give a run folder of metamix train --task {cls.task}"
            )
        values = {**cls.added_later, **{field.name: raw[field.name] for field in fields(cls) if field.name in raw}}
        check_entries(values, rules_of(cls), source)
        return cls(**{name: to_tuples(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of the metadata, as plain values."""
        return {"task": self.task} | {key: to_lists(value) for key, value in asdict(self).items()}

    def build(self, **weights: Any) -> Any:
        """Build the network; `pretrained` or `checkpoint` load weights of the backbone."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[Spec], checkpoint: str | Path) -> tuple[Any, Spec, dict[str, Any]]:
        """Build the network of a run folder or a weight file; return it with its spec and its metadata."""
        tensors, metadata = load_weights(find_weights(checkpoint))
        spec = cls.from_dict(metadata, checkpoint)
        backbone = replace(ModelMetadata.from_dict(metadata, checkpoint), img_size=None)  # img_size is the network's
        check_described_size(backbone, tensors, checkpoint)
        model = spec.build()
        load_into(model, tensors, str(checkpoint))
        return model.eval(), spec, metadata


def load_initial_weights(model: nn.Module, path: str | Path, classes: Sequence[str], head: Sequence[str]) -> list[str]:
    """Load the weights of a network of the same build, to fine-tune it.

    Batch norms may be frozen only in the file or only in the model; their counters are not loaded then. The layers in
    `head`, which depend on the classes, keep their new weights if the file has other classes.

    Returns:
        The names of the weights that were not loaded.
    """
    tensors, metadata = load_weights(find_weights(path))
    if metadata.get("classes", [*classes]) != [*classes]:  # their number may be the same
        inside_head = tuple(f"{layer}." for layer in head)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(inside_head)}
    counters = {name: value for name, value in model.state_dict().items() if name.endswith(COUNTER)}
    tensors = {name: tensor for name, tensor in tensors.items() if name in counters or not name.endswith(COUNTER)}
    return load_into(model, counters | tensors, str(path), head=head)


def check_data(task: Any, spec: Any, options: Any, *flags: str) -> None:
    """Check that a task scores a network on data of its classes, and note if the network was trained on them.

    Args:
        task: to evaluate; its title gets the name of the split, if the options choose one.
        spec: the `NetworkSpec` of the weights.
        options: of `metamix eval`.
        flags: of the command that trains the weights further on these data.
    """
    data = task.data
    if data.test_split in spec.train_on:
        task.model.notes.append(f"the {spec.network} was trained on the split {data.test_split}")
    if options.test_on:
        task.title += f"-{options.test_on}"
    if data.classes != spec.classes:
        command = train_command(options.checkpoint, "--task", spec.task, *flags)
        raise ValueError(
            f"{options.checkpoint} has {len(spec.classes)} classes ({', '.join(spec.classes)}), and "
            f"{options.data_dir} has {len(data.classes)} ({', '.join(data.classes)}); give other --data-dir, or "
            f"fine-tune first: {command}"
        )
