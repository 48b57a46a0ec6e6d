"""Read and write the cards in weights/: the JSON file beside each weight file, with its recipe and its results."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

import metamix
from benchmarks.paths import read_json, write_json
from metamix.utils.files import write_text
from metamix.weights.checksums import sha256
from metamix.weights.files import save_weights
from metamix.weights.find import weights_dir

SUMS = "SHA256SUMS"  # hashes of the files in its folder, in the format of `sha256sum`


def load_cards(tag: str = "*", task: str = "classification") -> list[dict]:
    """Load the cards of a task, with any tag or with one tag."""
    cards = [read_json(path) for path in sorted(weights_dir().glob(f"*.{tag}.json"))]
    return [card for card in cards if card["task"] == task]


def load_tag(tag: str | None) -> list[dict]:
    """Load the cards of one tag; raise ValueError if no card has the tag."""
    if not (cards := load_cards(tag or "")):
        raise ValueError(f"--tag is {tag!r}, but the classifiers have the tags {', '.join(tags())}: give one of them")
    return cards


def load_family(tag: str | None) -> dict[str, dict]:
    """Load the cards of `metaformer_<mixer>_<size>` with one tag, by mixer; raise ValueError if there are none."""
    if not (family := by_mixer(load_tag(tag))):
        others = ", ".join(tag for tag in tags() if by_mixer(load_cards(tag)))
        raise ValueError(f"--tag is {tag!r}, but the metaformer_* models have the tags {others}: give one of them")
    return family


def half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the floating-point tensors of a model to float16, except tensors with values too large for float16."""
    halves = {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {**tensors, **{name: tensor for name, tensor in halves.items() if tensor.isfinite().all()}}


def write_weights(card: dict, tensors: Mapping[str, Tensor], about: dict) -> str:
    """Write a weight file, its line in SHA256SUMS and its card; `about` is the metadata of the weight file.

    Return a line with the name, the number format and the size of the weight file.
    """
    path = weights_dir() / f"{card['name']}.safetensors"
    save_weights(path, tensors, about)
    list_sha256(path)
    write_card(card)
    return f"{path.name}: {card['stored_as']}, {path.stat().st_size / 1e6:.2f} MB"


def list_sha256(path: Path) -> None:
    """Write the hash of a file into SHA256SUMS in its folder."""
    listed = (path.parent / SUMS).read_text() if (path.parent / SUMS).is_file() else ""
    sums = {name: value for value, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", listed, re.MULTILINE)}
    sums[path.name] = sha256(path)
    write_text(path.parent / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def write_card(card: dict) -> None:
    """Write a card into the folder of the weights."""
    write_json(weights_dir() / f"{card['name']}.json", card)


def tags() -> list[str]:
    """List the tags that have cards of classifiers, such as "cifar10"."""
    return sorted({card["name"].partition(".")[2] for card in load_cards()})


def by_mixer(cards: Sequence[dict]) -> dict[str, dict]:
    """Return the cards of `metaformer_<mixer>_<size>` by mixer, in the order of `list_mixers`."""
    mixers = {card["name"].split("_")[1]: card for card in cards if card["name"].startswith("metaformer_")}
    return {mixer: mixers[mixer] for mixer in metamix.list_mixers() if mixer in mixers}


def weights_digest(card: dict) -> str:
    """Return a hash of the card's weight file. It shows whether weights changed since they were measured."""
    return sha256(weights_dir() / f"{card['name']}.safetensors")[:16]


def model_of(card: dict) -> str:
    """Return the model's registered name, without the tag."""
    return card["name"].partition(".")[0]


def image_size(card: dict) -> str:
    """Return height and width of the images, such as "32x32"."""
    return "x".join(map(str, card["pretrained_cfg"]["input_size"][1:]))


def standard_error(top1: float, images: int) -> float:
    """Return the binomial standard error of an accuracy on `images` test images, both in percent."""
    p = top1 / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def commit_in_words(commit: str | None) -> str:
    """Describe the commit on a card, and whether files had changed since that commit."""
    if not commit:
        return "unknown"
    return f"{commit.rstrip('+')}{' with uncommitted changes' if commit.endswith('+') else ''}"
