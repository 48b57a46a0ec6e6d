"""Register image restoration models, and build them by name: `metamix.create_image_model(name)`.

These models have their own registry because timm's registry is for classifiers. timm's tools and this package's tests
expect every model in timm's registry to have a head of `num_classes` outputs, global pooling, and weights for images
that are normalized by a mean and std.

An image model has three attributes: `in_chans`, `scale` (output height divided by input height) and `multiple`, a pair
(height, width) that must divide the image size in training. In evaluation the model turns images (B, in_chans, H, W) of
any size, with values from 0 to 1, into images. In training it returns a list of images for the loss; the last image is
the result.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metamix.mixers.registry import comparable
from metamix.utils.checks import check_known, check_one_source
from metamix.utils.text import did_you_mean, message
from metamix.weights.download import download
from metamix.weights.find import check_tag, local_weights, nothing_published, read_weights
from metamix.weights.fit import check_size, limited_size, load_into
from metamix.weights.layout import OURS, Layout

from .maxim import MaximUNet
from .maxim_layout import MAXIM_VARIANTS, maxim_layout
from .wavemix import wavemix_layout
from .wavemix_restoration import SISR_NAMES, WAVEMIXSR, WaveMixSisr, WaveMixSR

_MODELS: dict[str, "partial[nn.Module]"] = {}  # classes with their preset arguments, by name
_TAGS: dict[str, dict[str, str]] = {}  # URLs of weights, by name and tag


def register_image_model(
    name: str, build: Callable[..., nn.Module], *, tags: Mapping[str, str] | None = None, **preset: Any
) -> None:
    """Register a new name: `create_image_model(name)` then returns `build(**preset)`.

    `tags` holds the URLs of published weights by tag. Raise ValueError if the name is taken or contains a dot.
    """
    if "." in name:
        raise ValueError(f"An image model cannot be named {name!r}: the part after a dot is the tag of weights.")
    if name in _MODELS:
        raise ValueError(f"An image model named {name!r} is already registered: choose another name.")
    _MODELS[name], _TAGS[name] = partial(build, **preset), dict(tags or {})


def image_model_names() -> list[str]:
    """Return the names of the registered image models, in the order of registration."""
    return list(_MODELS)


def create_image_model(
    name: str, pretrained: bool = False, *, checkpoint: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """Build an image model in training mode, in which it returns a list of images, one for each stage and scale.

    The last image is the result. After `eval()` the model returns only the result.

    Args:
        name: a registered name, or NAME.TAG to choose weights.
        pretrained: load the published or shipped weights of the tag, or of the first tag if the name has no tag.
        checkpoint: run folder, or weight file from metamix or the authors: safetensors, PyTorch or, for MAXIM, .npz.
            Model arguments in the file's metadata become the defaults. None loads no file.
        kwargs: arguments of the model's class; they override presets and metadata.

    Raises:
        ValueError: the name, the tag or an argument is unknown, no weights are published, both `pretrained` and
            `checkpoint` are given, or the file does not fit.
        OSError: the weights cannot be downloaded or read.
    """
    base, _ = split_name(name)
    build = _MODELS[base]
    parameters = inspect.signature(build.func).parameters
    check_known(base, kwargs, parameters)
    check_one_source(pretrained, checkpoint)
    if pretrained:
        _, checkpoint = published_weights(name)
    if checkpoint is None:
        return build(**kwargs)
    tensors, metadata = read_weights(checkpoint)
    if metadata.architecture not in (None, base):
        raise ValueError(f"{checkpoint} has weights of {metadata.model}, not of {base}: use {metadata.architecture}.")
    saved = metadata.model_args | ({} if metadata.in_chans is None else {"in_chans": metadata.in_chans})
    trained = build.keywords | {k: v for k, v in saved.items() if k in parameters}
    if pretrained or metadata.architecture:
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        warn_of_changes(kwargs, defaults | trained, checkpoint)
    arguments = trained | kwargs
    if metadata.model_args:
        with torch.device("meta"), limited_size(checkpoint):
            check_size(build(**arguments), tensors, base, checkpoint)
    model = build(**arguments)
    name, layout = f"the {base} with these arguments", image_layout(model, tensors)
    load_into(model, tensors, checkpoint, name=name, layout=layout)
    return model


def warn_of_changes(arguments: Mapping[str, Any], trained: Mapping[str, Any], source: object) -> None:
    """Warn if the weights were trained with other values of `arguments`, even if the tensors fit."""
    changed = [
        f"{name}={value!r} (the weights were trained with {trained[name]!r})"
        for name, value in arguments.items()
        if comparable(value) != comparable(trained[name]) and "drop" not in name  # dropout matters only in training
    ]
    if changed:
        warnings.warn(message(f"{source}: the model computes a different function: {', '.join(changed)}"), stacklevel=3)


def split_name(name: str) -> tuple[str, str]:
    """Split NAME or NAME.TAG into the name and the tag, or "" for no tag; reject unknown names and tags."""
    base, _, tag = name.partition(".")
    if base not in _MODELS:
        raise ValueError(f"There is no image model {base!r}{did_you_mean(base, _MODELS)} See list_image_models().")
    check_tag(base, tag, weights_of(base))
    return base, tag


def arguments_of(name: str) -> tuple[set[str], set[str]]:
    """Return the arguments that a model takes, and the arguments that are preset for its name; reject unknown names."""
    build = _MODELS[split_name(name)[0]]
    return set(inspect.signature(build.func).parameters), set(build.keywords)


# Weights


def weights_of(name: str) -> dict[str, str]:
    """Return the paths or URLs of a model's weights, by tag; weights shipped with the package come first."""
    shipped = {tag: str(cfg["file"]) for tag, cfg in local_weights().get(name, {}).items()}
    return shipped | _TAGS[name] | shipped


def published_weights(name: str) -> tuple[str, Path]:
    """Return NAME.TAG and the path of its weights; download them if needed. A name without a tag gets the first tag."""
    base, tag = split_name(name)
    sources = weights_of(base)
    if not sources:
        raise nothing_published(base)
    tag = tag or next(iter(sources))
    name, source = f"{base}.{tag}", sources[tag]
    return name, download(source, name) if "://" in source else Path(source)


def image_layout(model: nn.Module, state: Mapping[str, Tensor]) -> Layout:
    """Return the authors' layout if a tensor in `state` has a name that only the authors use, else our layout."""
    if isinstance(model, MaximUNet) and "stage_0_input_conv_0/kernel" in state:
        return maxim_layout(model, state)
    if isinstance(model, WaveMixSR) and "path1.1.weight" in state:
        return WAVEMIXSR
    if isinstance(model, WaveMixSisr) and "expand.0.weight" in state:
        return wavemix_layout(*SISR_NAMES, level=1 if "layers.0.feedforward.0.weight" in state else 2)
    return OURS


# The names

MAXIM_URL = "https://storage.googleapis.com/gresearch/maxim/ckpt/{}/checkpoint.npz"
MAXIM_FOLDERS = {
    "maxim_s3": {
        "sidd": "Denoising/SIDD",
        "gopro": "Deblurring/GoPro",
        "reds": "Deblurring/REDS",
        "realblur_r": "Deblurring/RealBlur_R",
        "realblur_j": "Deblurring/RealBlur_J",
    },
    "maxim_s2": {
        "rain13k": "Deraining/Rain13k",
        "raindrop": "Deraining/Raindrop",
        "sots_indoor": "Dehazing/SOTS-Indoor",
        "sots_outdoor": "Dehazing/SOTS-Outdoor",
        "lol": "Enhancement/LOL",
        "fivek": "Enhancement/FiveK",
    },
}

for variant, arguments in MAXIM_VARIANTS.items():
    name = f"maxim_{variant.replace('-', '').lower()}"
    tags = {tag: MAXIM_URL.format(folder) for tag, folder in MAXIM_FOLDERS.get(name, {}).items()}
    register_image_model(name, MaximUNet, tags=tags, **arguments)

# maxim_nano needs a seventh of maxim_s1's multiply-adds. With so few channels, linear maps over 16 x 16 tokens would
# cost more than the convolutions. Only the finest scale is supervised, since no second stage reads coarser features.
register_image_model(
    "maxim_nano",
    MaximUNet,
    features=16,
    num_groups=1,
    num_bottleneck_blocks=1,
    num_supervision_scales=1,
    block_size_hr=8,
    grid_size_hr=8,
)
register_image_model("wavemixsr_144_4", WaveMixSR)
register_image_model("wavemix_sisr_144_4", WaveMixSisr, scale=2)
register_image_model("wavemixsr_nano", WaveMixSR, dim=48, proj_drop=0.0, mode="bicubic", residual=True)
register_image_model("wavemix_restore_nano", WaveMixSisr, scale=1, dim=64, depth=4, level=2, residual=True)
