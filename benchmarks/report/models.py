"""Make the tables of registered models and shipped weights, from `metamix.list_models` and the cards in weights/."""

import re

import timm

from benchmarks.markdown import table
from benchmarks.weight_cards import load_cards, model_of
from metamix import list_image_models, list_mixers, list_models
from metamix.models.metaformer_family import SIZES
from metamix.utils.text import short_count

IMAGE_ARXIV = {"maxim": "2201.02973", "wavemixsr": "2307.00430", "wavemix": "2205.14375"}
# Accuracy in % of PoolFormer's weights on ImageNet, from its paper, table 1.
POOLFORMER = {
    f"metaformer_pooling_{size}.sail_in1k": top1
    for size, top1 in {"s12": 77.2, "s24": 80.3, "s36": 81.4, "m36": 82.1, "m48": 82.5}.items()
}
# Name pattern, arXiv number, other image sizes that the models take ("resized": mixers resize their maps to the grid
# that they were built for), and what tests compare the models with.
FAMILIES = (
    ("raftmlp_*", "2108.04384", "resized", "authors' tensors and counts"),
    ("wavemix_*", "2205.14375", "any", "authors' tensors and counts"),
    ("wavemixlite_*", "2205.14375", "any", "published counts"),
    ("ninformer_*", "2403.02411", "resized", "author's tensors and count"),
    ("minattn_*", "2410.13732", "any", "a third party's tensors and counts"),
)


def family() -> str:
    """Make the table of `metaformer_<mixer>_<size>`."""
    names = [f"metaformer_{mixer}_{size}" for mixer in list_mixers() for size in SIZES]
    return table(
        ["name", "parameters", "MACs", "input", "weights"], [[*size_cells(name), tags(name)] for name in names]
    )


def papers() -> str:
    """Make the table of the models that the papers define."""
    rows = [
        [*size_cells(name), other_sizes, arxiv_link(arxiv), tested, tags(name)]
        for pattern, arxiv, other_sizes, tested in FAMILIES
        for name in timm.list_models(pattern)
    ]
    header = ["name", "parameters", "MACs", "input", "other sizes", "paper", "tested against", "weights"]
    return table(header, rows)


def image_models() -> str:
    """Make the table of the image restoration models."""
    rows = []
    for model in list_image_models():
        scores = [f" {w.psnr:.2f} dB on {w.test_data}" if w.psnr is not None else "" for w in model.weights]
        size = short_count(model.parameters), short_count(model.macs_per_pixel), model.in_chans
        weights = ", ".join(f"`{w.tag}`{score}" for w, score in zip(model.weights, scores))
        factor = f"x{model.scale}" if model.scale > 1 else "same"
        rows.append([f"`{model.name}`", *size, factor, arxiv_link(image_arxiv_of(model.name)), weights])
    return table(["name", "parameters", "MACs per pixel", "channels", "size", "paper", "weights"], rows)


def weights() -> str:
    """Make the table of the classifiers in weights/."""
    rows = []
    for card in load_cards():
        size = card["recipe"]["epochs"], short_count(card["parameters"])
        rows.append([f"`{card['name']}`", card["data"], f"{card['top1']:.2f}", *size])
    return table(["name", "data", "test accuracy, %", "epochs", "parameters"], rows)


def size_cells(name: str) -> list[str]:
    (model,) = list_models(name)
    return [f"`{name}`", short_count(model.parameters), short_count(model.macs), "x".join(map(str, model.input_size))]


def tags(name: str) -> str:
    """List the tags of a model's weights, with the accuracy that we measured or that the authors published."""
    measured = {card["name"]: f" {card['top1']:.1f} %" for card in load_cards() if model_of(card) == name}
    names = timm.list_pretrained(f"{name}.*")
    return ", ".join(f"`{tagged.partition('.')[2]}`{measured.get(tagged) or published(tagged)}" for tagged in names)


def published(tagged: str) -> str:
    """Format the accuracy that the authors report for their weights. WaveMix's file names contain it."""
    named = re.search(r"(\d\d\.\d\d)\.pth$", timm.get_pretrained_cfg(tagged).url or "")
    accuracy = float(named[1]) if named else POOLFORMER.get(tagged)
    return "" if accuracy is None else f" {accuracy:.1f} % (published)"


def arxiv_link(arxiv: str) -> str:
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})"


def arxiv_of(model: str) -> str:
    """Return the arXiv number of the paper that defines a model. Models of the comparison family have no such paper."""
    return next(arxiv for pattern, arxiv, *_ in FAMILIES if re.match(pattern.replace("*", r"\w+"), model))


def image_arxiv_of(model: str) -> str:
    """Return the arXiv number of the paper of an image model."""
    return IMAGE_ARXIV[model.split("_")[0]]
