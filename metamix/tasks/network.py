"""Load weights into models, and build a whole network, such as a detector, from its metadata: `NetworkSpec`."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import timm
from pydantic import Field, GetPydanticSchema
from timm.models import adapt_input_conv
from torch import Tensor, nn

from metamix.data.formats.base import class_name
from metamix.data.options import train_command
from metamix.models.checkpoint import adapt_checkpoint, check_described_size, layer_names
from metamix.models.registry import known_name, timm_config
from metamix.utils.rules import check_entries, rules_of, where
from metamix.weights.files import load_metadata, load_weights
from metamix.weights.find import find_weights
from metamix.weights.fit import limited_size, load_into
from metamix.weights.metadata import MAX_LENGTH, ModelMetadata, to_tuples

from .options import BackboneOptions

COUNTER = "num_batches_tracked"  # name of the counter of a batch norm; frozen batch norms have none
SplitNames = Annotated[tuple[str, ...], Field(max_length=MAX_LENGTH)]
Spec = TypeVar("Spec", bound="NetworkSpec")


def check_trained_with(option: str, trained: str, chosen: str, source: object) -> None:
    """Raise ValueError if a file has the detector or head `trained`, but the run uses `chosen`.

    Without this check, loading would fail with a list of tensors that do not fit.
    """
    if trained != chosen:
        raise ValueError(f"{source} was trained with the {option} {trained}, not {chosen}: give --{option} {trained}")


def arguments_without(names: Collection[str]) -> GetPydanticSchema:
    """Return a rule that accepts a mapping of arguments only if it has none of these names."""
    accepted = f"a mapping of arguments without {', '.join(sorted(names))}"
    return where(lambda arguments: arguments.keys().isdisjoint(names), accepted)


@dataclass(frozen=True)
class NetworkSpec:
    """The arguments that rebuild a network. They are stored in the metadata of its weights."""

    task: ClassVar[str]  # name of the task that trains such networks
    network: ClassVar[str]  # noun for such a network in messages, such as "detector"
    added_later: ClassVar[Mapping[str, Any]] = {}  # default values of entries that older files lack

    @classmethod
    def from_dict(cls: type[Spec], raw: Mapping[str, Any], source: object) -> Spec:
        """Read a spec from the metadata of an untrusted file; raise ValueError if they describe no such network."""
        metadata = ModelMetadata.from_dict(raw, source)
        metadata.check_task(cls.task, f"a {cls.network}", source)
        if metadata.task is None:
            raise ValueError(
                f"{source} holds {metadata.model or 'weights without a description'}, not a {cls.network} that metamix "
                f"trained: give a run folder of metamix train --task {cls.task}"
            )
        values = {**cls.added_later, **{field.name: raw[field.name] for field in fields(cls) if field.name in raw}}
        check_entries(values, rules_of(cls), source)
        values["model"] = known_name(values["model"])
        return cls(**{name: to_tuples(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for the metadata of a weight file, as plain JSON values: tuples become lists."""
        return {"task": self.task} | json.loads(json.dumps(asdict(self)))

    def build(self, **weights: Any) -> Any:
        """Build the network; pass `pretrained` or `checkpoint` to load weights of the backbone."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[Spec], checkpoint: str | Path) -> tuple[Any, Spec, ModelMetadata]:
        """Build the network of a run folder or a weight file; return it with its spec and its metadata."""
        tensors, raw = load_weights(find_weights(checkpoint))
        spec, metadata = cls.from_dict(raw, checkpoint), ModelMetadata.from_dict(raw, checkpoint)
        # The metadata's img_size is the image size of the whole network, not of its backbone.
        check_described_size(replace(metadata, img_size=None), tensors, checkpoint)
        with limited_size(checkpoint):
            model = spec.build()
        load_into(model, tensors, str(checkpoint))
        return model.eval(), spec, metadata


def describe_initial_weights(options: BackboneOptions) -> ModelMetadata | None:
    """Return metadata of the initial weights, such as the image size, mean and std that they were trained with.

    Return None if there are no weights, or if they cannot be read: they are rejected later, when they are loaded.
    """
    if options.pretrained:
        cfg = timm.models.get_pretrained_cfg(options.model)
        return ModelMetadata(img_size=cfg.input_size[1:], mean=cfg.mean, std=cfg.std) if cfg else None
    with suppress(OSError, ValueError):  # a run that is resumed does not need the file
        if options.checkpoint:
            metadata = load_metadata(find_weights(options.checkpoint))
            return ModelMetadata.from_dict(metadata, options.checkpoint)
    return None


def load_initial_weights(
    model: nn.Module, source: str, tensors: Mapping[str, Tensor], metadata: ModelMetadata, classes: Sequence[str]
) -> str:
    """Load weights into a model of the zoo or of timm, to fine-tune them; return a note for the user.

    Only the head, the first convolution and the image size may differ. If the metadata have other classes, the head
    keeps its initial weights; if they have the same classes in another order, the rows of the head are reordered. The
    first convolution is adapted to the number of image channels, and spatial weights to the image size.
    """
    tensors = adapt_checkpoint(model, tensors, source, metadata)
    head = layer_names(timm_config(model), "classifier")
    theirs = [class_name(name) for name in metadata.classes or ()]
    if theirs and theirs != [*classes]:  # otherwise a head for other classes might be loaded
        of_head = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] in head}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in of_head}
        if sorted(theirs) == sorted(classes):
            order = [theirs.index(name) for name in classes]
            tensors |= {name: tensor[order] for name, tensor in of_head.items()}
    tensors, adapted = adapt_channels(model, tensors)
    return weights_note(f"weights from {source}", load_into(model, tensors, source, head=head), adapted)


def adapt_channels(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt the weights of the first convolutions to a model's image channels, and describe each adapted weight."""
    of_model, adapted, notes = model.state_dict(), dict(tensors), []
    for key in (f"{layer}.weight" for layer in layer_names(timm_config(model), "first_conv")):
        if key not in of_model or key not in tensors:
            continue
        mine, theirs = of_model[key].shape, tensors[key].shape
        if len(mine) == len(theirs) == 4 and mine[1] != theirs[1] and mine[2:] == theirs[2:]:
            adapted[key] = adapt_input_conv(mine[1], tensors[key].float(), base_chans=theirs[1])
            notes.append(f"{key} from {theirs[1]} to {mine[1]} channels")
    return adapted, notes


def load_initial_network(model: Any, path: str | Path, classes: Sequence[str]) -> str:
    """Load weights of the same architecture into a network, to fine-tune them; return a note for the user.

    A batch norm may be frozen in the file but not in the model, or the other way round; its counter is then not loaded.
    If the file has other classes, the layers in `model.classifier` keep their initial values.
    """
    tensors, metadata = load_weights(find_weights(path))
    if metadata.get("classes", [*classes]) != [*classes]:  # a head for other classes may have the same shape
        inside_head = tuple(f"{layer}." for layer in model.classifier)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(inside_head)}
    counters = {name: value for name, value in model.state_dict().items() if name.endswith(COUNTER)}
    tensors = {name: tensor for name, tensor in tensors.items() if name in counters or not name.endswith(COUNTER)}
    return weights_note(f"weights from {path}", load_into(model, counters | tensors, str(path), head=model.classifier))


def weights_note(source: str, new: Sequence[str], adapted: Sequence[str] = ()) -> str:
    """Say which weights were loaded, that the weights `new` keep their initial values, and which were adapted."""
    changes = {"new": new, "adapted": adapted}
    return "; ".join([source, *(f"{what}: {', '.join(names)}" for what, names in changes.items() if names)])


def check_data(task: Any, spec: Any, options: Any, *flags: str) -> None:
    """Check that the data have the classes of the network; add a note if the network was trained on the split to score.

    `spec` is the `NetworkSpec` of the weights. `options` are the options of `metamix eval`; if they choose a split, its
    name is added to the task's title.

    Raises:
        ValueError: the classes differ. The message gives the command that fine-tunes the weights, with `flags`.
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
            f"{options.data_dir} has {len(data.classes)} ({', '.join(data.classes)}); give another --data-dir, or "
            f"fine-tune first: {command}"
        )
