"""Find the weights of the zoo, and adapt and check a checkpoint for a model.

`weights_dir()` holds trained weights as NAME.TAG.safetensors, each with a card NAME.TAG.json. The `pretrained_cfg` of
a card becomes the entry of that tag in timm, so that `timm.create_model("NAME.TAG", pretrained=True)` finds the file.

timm calls `checkpoint_filter` on every pretrained checkpoint. timm ignores missing tensors as soon as the number of
classes differs, so the filter itself refuses a checkpoint that is not whole. For `checkpoint_path` timm calls
`load_checkpoint_path`, which also sets the model's `pretrained_cfg` from the file's metadata.
"""

import json
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, is_model_pretrained
from torch import Tensor, nn

from metamix.layers import resize_to
from metamix.utils.files import shipped_folder
from metamix.utils.text import did_you_mean
from metamix.utils.timm_checkpoint_path import load_checkpoint_path_with
from metamix.weights.files import ARTIFACT, load_metadata, load_weights, refuse_old_nano, unwrap
from metamix.weights.metadata import ModelMetadata

from .formats import Format, format_of
from .metaformer import Block, MetaFormer, Stage
from .same_function import check_same_function

# Files and cards


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], ModelMetadata]:
    """Read the tensors and the metadata of a weight file, a run folder, or shipped weights by name.

    Raises:
        ValueError: the file holds no weights that this version reads, or its metadata are refused.
        FileNotFoundError: there is no such file.
    """
    tensors, metadata = load_weights(find_weights(path))
    return tensors, ModelMetadata.from_dict(metadata, path)


def cfg_of_file(path: str | Path) -> dict[str, Any]:
    """Return entries of timm's `PretrainedCfg` for a weight file: those of its card, or else of its metadata."""
    path = Path(path)
    for tags in local_weights().values():
        for entries in tags.values():
            if Path(entries["file"]) == path.resolve():
                return entries
    if not path.is_file():
        return {}
    return ModelMetadata.from_dict(load_metadata(path), path).pretrained_cfg()


def weights_dir() -> Path:
    """Return the folder of trained weights."""
    return shipped_folder("weights")


@cache
def local_cards() -> dict[str, dict[str, dict]]:
    """Read the cards in `weights_dir()` that have weights beside them.

    Returns:
        Cards by model name and tag. Their `pretrained_cfg` has entries of timm's `PretrainedCfg`; "file" is the path
        of the weights.

    Raises:
        ValueError: a card cannot be read, or has entries that `PretrainedCfg` does not know.
    """
    found: dict[str, dict[str, dict]] = {}
    for card in sorted(weights_dir().glob("*.json")):
        name, _, tag = card.stem.partition(".")
        weights = card.with_suffix(".safetensors")
        if not weights.is_file():
            continue  # a clone without large files has only cards
        try:
            content = json.loads(card.read_text())
            entries: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in content["pretrained_cfg"].items()
            }
            entries["file"] = str(weights)
            PretrainedCfg(**entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{card} is not a card of weights: {error!r}. It needs pretrained_cfg with entries of timm's "
                f"PretrainedCfg."
            ) from error
        found.setdefault(name, {})[tag] = content | {"pretrained_cfg": entries}
    return found


def local_weights() -> dict[str, dict[str, dict]]:
    """Return the entries of timm's `PretrainedCfg` for each weight in `weights_dir()`, by model name and tag."""
    return {name: {tag: card["pretrained_cfg"] for tag, card in tags.items()} for name, tags in local_cards().items()}


def find_weights(checkpoint: str | Path) -> Path:
    """Find a checkpoint: an existing path stays as it is, a name of shipped weights (NAME.digits) becomes its file.

    Raises:
        FileNotFoundError: there is neither; the message suggests a close name, or how to take published weights.
        ValueError: it is a file of an exported model.
    """
    path = Path(checkpoint)
    if path.suffix in (".onnx", ".xml", ".bin", ".pt2") and path.with_name(ARTIFACT).is_file():
        raise ValueError(
            f"{path} is a file of an exported model: metamix predict --model {path.parent} runs it. To train or eval, "
            f"give the weights that it was exported from"
        )
    if path.exists():
        return path
    shipped = {f"{name}.{tag}": cfg["file"] for name, tags in local_weights().items() for tag, cfg in tags.items()}
    if str(checkpoint) not in shipped:
        if "." in str(checkpoint) and is_model_pretrained(str(checkpoint)):
            raise FileNotFoundError(
                f"{checkpoint} names published weights that metamix does not ship, and there is no such file. "
                f"{advice_for_published(str(checkpoint))}"
            )
        if "." not in str(checkpoint) and timm.is_model(str(checkpoint)):
            tags = timm.list_models(f"{checkpoint}.*", pretrained=True)
            own = [tag for tag in tags if tag in shipped]
            known = "none are published: train it first"
            if own:
                known = f"give those of a tag: {', '.join(own)}"
            elif tags:
                known = f"its tags are {', '.join(tags)}. {advice_for_published(tags[0])}"
            raise FileNotFoundError(f"{checkpoint} is a model and not its weights; {known}")
        beside = sorted(map(str, path.parent.glob("*"))) if len(path.parts) > 1 else shipped
        raise FileNotFoundError(f"there is no file {path}{did_you_mean(path, beside)}")
    return Path(shipped[str(checkpoint)])


def advice_for_published(name: str) -> str:
    """Say how to use weights NAME.TAG that metamix does not ship."""
    return (
        f"To train or eval, give --model {name} --pretrained. To predict, write metamix export {name} --output NEW, "
        f"then give --model NEW"
    )


def nothing_published(name: str) -> ValueError:
    """Return the error for weights of a model that has none."""
    return ValueError(f"No weights are published for {name}: leave pretrained out, or give a checkpoint.")


# Adapting


def checkpoint_filter(state: Mapping, model: MetaFormer) -> dict[str, Tensor]:
    """Adapt a checkpoint to `model`: unwrap it, use our names, resample spatial weights to the model's image size.

    Takes files of ours and those in a format of `formats.PUBLISHED`. The head may be missing or of other classes, and
    the first convolution may have other channels: timm adapts both.

    Raises:
        ValueError: another tensor is missing, unknown or of a wrong shape; or the file is damaged or holds weights of
            another function.
    """
    cfg, metadata = model.pretrained_cfg, ModelMetadata()
    if cfg.get("file") and not cfg.get("source") and cfg.get("state_dict") is None:
        state, metadata = read_weights(cfg["file"])  # timm reads it without a look at checksums and metadata
    given = adapt_tensors(unwrap(state), model)
    check_pretrained_source(model, metadata)
    return given


def adapt_tensors(state: Mapping[str, Tensor], model: MetaFormer) -> dict[str, Tensor]:
    """Adapt tensors as `checkpoint_filter` does, but do not check their source."""
    given, unknown, layout = translate(state, model)
    head = {layout.name("head.weight"), layout.name("head.bias")}
    check_all_but_head(given, model, unknown - head, layout.name)
    return given


def translate(state: Mapping[str, Tensor], model: MetaFormer) -> tuple[dict[str, Tensor], set[str], Format]:
    """Rename tensors to our names, and resample spatial weights to the sizes of the model.

    Returns:
        The tensors, the names of those in the file that the model does not have, and the file's format.

    Raises:
        ValueError: the state dict says that it is of another mixer, or a mixer's shapes belong to no image size.
    """
    noted = getattr(state, "_metadata", None)
    for name, stage in model.named_modules():
        metadata = noted.get(name) if isinstance(noted, dict) and isinstance(stage, Stage) else None
        if isinstance(metadata, dict) and (problem := stage.mixer_mismatch(name, metadata)):
            raise ValueError(problem)
    layout = format_of(state, model.state_dict())
    given, unknown = layout.translate(full_precision(state), model)
    return resample_spatial_weights(given, model), unknown, layout


def check_pretrained_source(model: MetaFormer, metadata: ModelMetadata) -> None:
    """Compare a model with the one whose weights timm loads into it, as `model.pretrained_cfg` names them.

    Args:
        model: the model.
        metadata: of the file; empty if it has none.

    Raises:
        ValueError: a file that the user named holds weights of another function. For weights that are registered for
            the model's name there is only a warning, since the user chose another mixer on purpose.
    """
    cfg = model.pretrained_cfg
    name, file = cfg["architecture"], cfg.get("file")
    if cfg.get("state_dict") is not None:  # a caller that passes tensors compares the metadata itself
        return
    own_files = [Path(tag["file"]) for tag in local_weights().get(name, {}).values()]
    registered = not file or cfg.get("source") or Path(file) in own_files
    if registered and metadata.model is None:
        metadata = ModelMetadata(model=name, model_args=model.pretrained_model_args)
    check_same_function(model, metadata, file or f"The checkpoint of {name}", refuse=not registered)


def adapt_checkpoint(
    model: nn.Module, state: Mapping[str, Tensor], source: object, metadata: ModelMetadata | None = None
) -> dict[str, Tensor]:
    """Adapt the tensors of a file to a model of the zoo or of timm.

    Args:
        model: the model; timm's own models use the filter of their family.
        state: tensors by the file's names.
        source: the file's name, for messages.
        metadata: the file's metadata; a model of the zoo must compute what they describe.

    Raises:
        ValueError: the filter refuses the tensors, or the metadata describe another function.
    """
    try:
        if not isinstance(model, MetaFormer):
            adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
            return adapt(state, model)
        given = adapt_tensors(state, model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    check_same_function(model, metadata or ModelMetadata(), source)
    return given


def load_checkpoint_path(model: MetaFormer, path: str | Path) -> Any:
    """Load a file into a model, for timm's `checkpoint_path`: the whole state, head included.

    Spatial weights are resampled to the model's image size. A file of ours also sets the model's `pretrained_cfg`, and
    with it how images are prepared.

    Raises:
        ValueError: a tensor is missing, unknown or of a wrong shape; or the metadata describe another function.
    """
    state, metadata = read_weights(path)
    try:
        given, unknown, layout = translate(state, model)
        check_state(given, model.state_dict(), unknown, model.pretrained_cfg["architecture"], layout.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_same_function(model, metadata, path)
    if metadata.model is not None:
        for key in ("tag", "hf_hub_id"):  # of the published weights
            model.pretrained_cfg.pop(key, None)
        model.pretrained_cfg |= metadata.pretrained_cfg() | cfg_of_file(path) | {"file": str(path)}
    return model.load_state_dict(given)


load_checkpoint_path_with(load_checkpoint_path, MetaFormer)


def full_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors of 16 bits, such as those of shipped weights, to float32, in which they are adapted."""
    return {
        name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for name, tensor in state.items()
    }


def resample_spatial_weights(state: Mapping[str, Tensor], model: MetaFormer) -> dict[str, Tensor]:
    """Resample spatial weights and position embeddings to the image size of `model`.

    Raises:
        ValueError: the shapes in a mixer belong to no image size.
    """
    state = dict(state)
    if model.pos_embed is not None and "pos_embed" in state and state["pos_embed"].ndim == 4:
        state["pos_embed"] = resize_to(state["pos_embed"], model.pos_embed.shape[-2:])
    for name, block in model.named_modules():
        if isinstance(block, Block):
            prefix = f"{name}.mixer."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if own.keys() != block.mixer.state_dict().keys():
                continue  # check_state names what is missing
            try:
                adapted = block.mixer.adapt_state(own)
            except (RuntimeError, IndexError, ValueError) as error:
                shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in own.items())
                raise ValueError(
                    f"The checkpoint does not fit: no image size explains the shapes in {prefix}: {shapes}."
                ) from error
            state |= {prefix + k: v for k, v in adapted.items()}
    return state


# Checking


def check_all_but_head(
    given: Mapping[str, Tensor],
    model: Any,
    unknown: Collection[str] = (),
    file_name: Callable[[str], str] = str,
) -> None:
    """Check a checkpoint, except for what timm adapts itself: the head, and the channels of the first convolutions.

    Args:
        given: the checkpoint's tensors by our names.
        model: the model that they are for.
        unknown: names of tensors in the file that the model does not have.
        file_name: our name of a tensor -> the file's, for messages.

    Raises:
        ValueError: a tensor is missing, unknown or of a wrong shape.
    """
    cfg = model.pretrained_cfg
    head = tuple(f"{layer}." for layer in layer_names(cfg, "classifier"))
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(head)}
    checked = {key: given[key] for key in own.keys() & given.keys()}
    for key in (f"{conv}.weight" for conv in layer_names(cfg, "first_conv")):
        mine, theirs = (tensors[key].shape if key in tensors else () for tensors in (own, checked))
        if theirs and mine[:1] + mine[2:] == theirs[:1] + theirs[2:]:
            del checked[key], own[key]
    check_state(checked, own, unknown, cfg["architecture"], file_name)


def check_state(
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    unknown: Collection[str],
    model: str,
    file_name: Callable[[str], str] = str,
) -> None:
    """Check that a checkpoint has exactly the tensors of a model.

    Args:
        given: the checkpoint's tensors by our names.
        own: the model's tensors.
        unknown: names of tensors in the file that the model does not have.
        model: the model's name, for messages.
        file_name: our name of a tensor -> the file's, for messages.

    Raises:
        ValueError: a tensor is missing, unknown or of a wrong shape.
    """
    refuse_old_nano(model, unknown, "The checkpoint")
    problems = []
    missing = {file_name(key) for key in own.keys() - given.keys()}
    for what, keys in (("lacks", missing), ("has tensors that the model lacks:", unknown)):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            problems.append(f"{what} {some}")
    for key in sorted(own.keys() & given.keys()):
        mine, theirs = own[key].shape, given[key].shape
        if mine != theirs:
            problems.append(f"has {file_name(key)} of shape {tuple(theirs)} where the model has {tuple(mine)}")
    if len(problems) > 6:
        problems[6:] = [f"has {len(problems) - 6} more such tensors"]
    if problems:
        raise ValueError(
            f"The checkpoint does not fit {model}: it {'; it '.join(problems)}. "
            f"Load it into the model that it was saved from, with the same num_classes; reset_classifier(N) then gives "
            f"it a new head."
        )


def layer_names(cfg: Mapping, key: str) -> tuple[str, ...]:
    """Return the layers that `cfg[key]` names: one, several or none."""
    names = cfg.get(key)
    return (names,) if isinstance(names, str) else tuple(names or ())
