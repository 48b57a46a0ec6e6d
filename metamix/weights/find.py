"""Find the weights of the zoo by name, and say how to use weights that metamix does not ship.

`weights_dir()` holds trained weights as NAME.TAG.safetensors, each with a card NAME.TAG.json. The `pretrained_cfg` of
a card becomes the entry of that tag in timm, so that `timm.create_model("NAME.TAG", pretrained=True)` finds the file.
"""

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, is_model_pretrained
from torch import Tensor

from metamix.utils.files import shipped_folder
from metamix.utils.text import did_you_mean

from .download import from_hub
from .files import ARTIFACT, GRAPHS, load_metadata, load_weights
from .metadata import ModelMetadata, to_tuples


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], ModelMetadata]:
    """Read the tensors and the metadata of weights; `path` is a path or a name that `find_weights` accepts.

    Raise the errors of `find_weights`, `load_weights` and `ModelMetadata.from_dict`.
    """
    tensors, metadata = load_weights(find_weights(path))
    return tensors, ModelMetadata.from_dict(metadata, path)


def cfg_of_file(path: str | Path) -> dict[str, Any]:
    """Return entries of timm's `PretrainedCfg` for a weight file, from its card or metadata; {} if there is no file."""
    path = Path(path)
    for tags in local_weights().values():
        for entries in tags.values():
            if Path(entries["file"]) == path.resolve():
                return entries
    if not path.is_file():
        return {}
    return ModelMetadata.from_dict(load_metadata(path), path).pretrained_cfg()


def weights_dir() -> Path:
    """Return the folder of the weights that come with metamix."""
    return shipped_folder("weights")


@cache
def local_cards() -> dict[str, dict[str, dict]]:
    """Return the cards in `weights_dir()` that have weights next to them, by model name and tag.

    The `pretrained_cfg` of a card holds entries of timm's `PretrainedCfg`. Its entry "file" is the path of the weights.
    """
    cards: dict[str, dict[str, dict]] = {}
    for card in sorted(weights_dir().glob("*.json")):
        name, _, tag = card.stem.partition(".")
        weights = card.with_suffix(".safetensors")
        if not weights.is_file():
            continue  # a clone without large files has only cards
        try:
            content = json.loads(card.read_text())
            entries = {key: to_tuples(value) for key, value in content["pretrained_cfg"].items()}
            entries["file"] = str(weights)
            PretrainedCfg(**entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{card} is not a card of weights: {error!r}. It needs pretrained_cfg with entries of timm's "
                f"PretrainedCfg."
            ) from error
        cards.setdefault(name, {})[tag] = content | {"pretrained_cfg": entries}
    return cards


def local_weights() -> dict[str, dict[str, dict]]:
    """Return the entries of timm's `PretrainedCfg` for each weight file in `weights_dir()`, by model name and tag."""
    return {name: {tag: card["pretrained_cfg"] for tag, card in tags.items()} for name, tags in local_cards().items()}


def find_weights(checkpoint: str | Path) -> Path:
    """Return the path of the weights that `checkpoint` names; download them if they are on the hub.

    `checkpoint` is PATH, local-dir:PATH, the name of shipped weights, or hf-hub:USER/NAME[@REVISION].

    Raises:
        FileNotFoundError: there are no such weights. The message suggests a similar name or, if `checkpoint` names a
            model or published weights, says what to give instead.
        OSError: the hub cannot be reached, or does not have the weights.
        ValueError: the file belongs to an exported model.
    """
    if str(checkpoint).startswith("hf-hub:"):
        return from_hub(str(checkpoint).removeprefix("hf-hub:"))
    path = Path(str(checkpoint).removeprefix("local-dir:"))  # timm's prefix for folders
    if path.suffix in (*GRAPHS, ".json") and path.with_name(ARTIFACT).is_file():
        raise ValueError(
            f"{path} is a file of an exported model: metamix predict --model {path.parent} runs it, and metamix.load "
            f"and metamix benchmark take its folder. To train or eval, give the weights that it was exported from"
        )
    if path.exists():
        return path
    name = str(checkpoint)
    shipped = {f"{model}.{tag}": cfg["file"] for model, tags in local_weights().items() for tag, cfg in tags.items()}
    if name in shipped:
        return Path(shipped[name])
    if "." in name and is_model_pretrained(name):
        raise FileNotFoundError(
            f"{name} names published weights that metamix does not ship, and there is no such file. "
            f"Give --model {name} --pretrained instead"
        )
    if "." not in name and timm.is_model(name):
        tags = timm.list_models(f"{name}.*", pretrained=True)
        advice = "train it first, since it has no published weights"
        if shipped_tags := [tag for tag in tags if tag in shipped]:
            advice = f"give the weights of a tag: {', '.join(shipped_tags)}"
        elif tags:
            advice = f"its tags are {', '.join(tags)}. Give --model {tags[0]} --pretrained instead"
        raise FileNotFoundError(f"{name} is a model, not a weight file: {advice}")
    beside = [*sorted(map(str, path.parent.glob("*"))), *(shipped if len(path.parts) == 1 else ())]
    raise FileNotFoundError(f"there is no file {path}{did_you_mean(path, beside)}")


def nothing_published(name: str) -> ValueError:
    """Return the error for a model without published weights."""
    return ValueError(f"No weights are published for {name}: give a run or a weight file, or leave pretrained out.")


def check_tag(name: str, tag: str, tags: Collection[str]) -> None:
    """Raise ValueError if `tag` is not one of the model's `tags`; "" means no tag and is accepted."""
    if tag and tag not in tags:
        raise ValueError(f"{name} has no tag {tag!r}{did_you_mean(tag, tags)} It has {', '.join(tags) or 'none'}.")
