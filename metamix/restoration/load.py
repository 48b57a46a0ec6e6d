"""Choose the arguments of image models for the data, and load trained models from files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field
from torch import nn

from metamix.data.files import check_several
from metamix.layers.image_inference import JPEG_BLOCK, PadAndCrop, check_tiles, tiles
from metamix.models.image_models import arguments_of, create_image_model, published_weights
from metamix.utils.checks import check_one_source
from metamix.utils.rules import check_entries, one_of, rules_of, where
from metamix.utils.text import plural
from metamix.weights.find import find_weights, read_weights
from metamix.weights.metadata import ModelMetadata

from .degradations import PAIRS, parse_degradations
from .files import read_picture, to_image
from .inference import Restorer, check_local_pooling, restore_picture

CHANNELS = {"rgb": 3, "grey": 1, "y": 1}


@dataclass(frozen=True)
class RestorationSpec:
    """How to prepare images for a model, as recorded in its weight file."""

    channels: Annotated[str, one_of(CHANNELS)]  # "rgb", "grey" or "y"
    enlarge: Annotated[int, Field(ge=1, le=16)]  # factor by which images are enlarged (bicubic) before the model
    # Degradation of the training images; "pairs" if the images were pairs or if the degradation is not known.
    degradation: Annotated[
        str,
        Field(max_length=1000),
        where(parse_degradations, "pairs, or a chain of degradations of at most 1,000 characters, such as noise:25"),
    ]

    @classmethod
    def from_metadata(cls, metadata: ModelMetadata, source: object) -> "RestorationSpec":
        """Read the entries of an untrusted file; raise ValueError if one is missing or out of range."""
        rules = rules_of(cls)
        check_entries(metadata.extra, rules, source)
        return cls(**{name: metadata.extra[name] for name in rules})


@dataclass(frozen=True)
class TrainedRestorer:
    """A trained or exported image model, and how to prepare images for it."""

    name: str  # name of the model; for published weights also their tag, such as maxim_s3.sidd
    # The model in evaluation mode. It takes images (n, C, H, W) with values from 0 to 1 and restores them.
    model: nn.Module
    spec: RestorationSpec
    metadata: ModelMetadata
    # (height, width) that an exported graph is fixed to; None for every other model.
    graph_size: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"TrainedRestorer({self.name})"

    def predict(
        self, images: Sequence[str | Path | Image.Image], *, tile: int = 512, overlap: int = 32, ensemble: bool = False
    ) -> list[Image.Image]:
        """Restore images.

        Args:
            images: files or PIL images.
            tile: side of the tiles in pixels; 0 restores whole images at once.
            overlap: smallest overlap of tiles in pixels. An exported model ignores `tile` and `overlap`.
            ensemble: average over eight orientations, which takes eight times as long.

        Returns:
            PIL images of 8 bits per channel with the alpha channels and colour profiles of `images`. `metamix predict`
            keeps 16 bits in the files that it writes.

        Raises:
            CorruptImage: an image cannot be read.
            DoesNotFit: an image is in colour, but the model takes grey images.
            TypeError: `images` is a single image, or an item is neither a path nor a PIL image.
            ValueError: `tile` or `overlap` is out of range, or the model returns NaN or infinity.
        """
        check_several(images)
        restorer = self.restorer(tile, overlap, ensemble)
        pictures = map(read_picture, images)
        return [to_image(restore_picture(self.model, each, self.spec.channels, restorer)) for each in pictures]

    def restorer(self, tile: int, overlap: int, ensemble: bool, pooling: int = 0) -> Restorer:
        """Return a `Restorer` for the model. If it is exported, its graph determines `tile` and `overlap`."""
        check_local_pooling(self.model, self.name, pooling)
        whole = self.graph_size
        if isinstance(self.model, PadAndCrop):
            tile, overlap = tiles(whole)
            if ensemble and whole:  # turned tiles, padded to multiples of JPEG_BLOCK, must fit the graph too
                tile, whole = tile // JPEG_BLOCK * JPEG_BLOCK or tile, None
        check_tiles(tile, overlap)
        return Restorer(self.spec.enlarge, tile, overlap, ensemble, pooling, whole)


def fit_arguments(name: str, model_args: Mapping[str, Any], in_chans: int, scale: int) -> tuple[dict[str, Any], int]:
    """Choose the arguments of an image model for inputs of `in_chans` channels and targets `scale` times as large.

    If the model takes a scale, and neither its name nor `model_args` fixes it, the model is built for `scale`. If the
    model keeps the size of images, they are enlarged before it, by the factor that is returned with the arguments.

    Raises:
        ValueError: the name or an argument is unknown, or the model does not fit the number of channels or the scale.
    """
    arguments, (accepted, preset) = dict(model_args), arguments_of(name)
    arguments |= {"in_chans": in_chans} if "in_chans" in accepted else {}
    arguments |= {"scale": scale} if "scale" in accepted - preset - arguments.keys() else {}
    with torch.device("meta"):  # without weights, since only the attributes are needed
        model: Any = create_image_model(name, **arguments)
    check_channels(name, model.in_chans, in_chans)
    if model.scale not in (1, scale):
        size = f"are {scale} times as large as the inputs" if scale > 1 else "have the size of the inputs"
        raise ValueError(
            f"{name} enlarges images {model.scale} times, and the targets {size}: "
            f"give --degradation downscale:{model.scale}, pairs of that scale, or another model"
        )
    return arguments, scale // model.scale


def check_channels(name: str, of_model: int, of_data: int) -> None:
    """Raise ValueError unless a model, or its weights, take as many channels as the images have."""
    if of_model != of_data:
        advice = "--channels y (the luminance) or grey" if of_model == 1 else "--channels rgb"
        channels = plural(of_model, "channel")
        raise ValueError(f"{name} takes images of {channels}, and the data have {of_data}: give {advice}")


def load_restorer(
    checkpoint: str | Path | None,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> TrainedRestorer:
    """Load a trained image model.

        restorer = metamix.load_restorer("runs/restoration-noise")
        restorer.predict(["noisy.png"])[0].save("restored.png")

    Args:
        checkpoint: a run folder of `metamix train --task restoration`, a weight file, the name of weights that ship
            with metamix, or a file that the authors of the model published.
        model: name of the model; needed with `pretrained`, and for a file that does not name its model.
        model_args: arguments of the model that replace the arguments in the file.
        pretrained: take the model's published weights.

    Raises:
        ValueError: there are no weights, they belong to another model or task, or the file does not name its model.
        OSError: there is no such file, or the published weights cannot be downloaded.
    """
    check_one_source(pretrained, checkpoint)
    arguments = dict(model_args or {})
    if checkpoint:
        path = find_weights(checkpoint)
    elif pretrained and model:
        model, path = published_weights(model)
    else:
        raise ValueError("there are no weights: give --checkpoint FILE or --model NAME --pretrained")
    metadata = read_weights(path)[1]
    metadata.check_task("restoration", "an image model", path)
    name = model or metadata.model
    if name is None:
        raise ValueError(f"{path} does not name its model; give model=NAME, or --model NAME on the command line")
    net = create_image_model(model or metadata.architecture or "", checkpoint=path, **arguments)
    if "channels" in metadata.extra:
        spec = RestorationSpec.from_metadata(metadata, path)
    else:
        spec = RestorationSpec("rgb" if net.in_chans == 3 else "y", 1, PAIRS)
    if CHANNELS[spec.channels] != net.in_chans:
        raise ValueError(f"{path}: the model takes {net.in_chans} channels, but channels is {spec.channels!r}")
    metadata = replace(metadata, task="restoration", model=name, model_args=metadata.model_args | arguments)
    return TrainedRestorer(name, net.eval(), spec, metadata)
