"""Load trained classifiers, with their preprocessing, from a file, a run folder or a published name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from timm.models import get_model_input_config
from torch import Tensor, nn

from metamix.data import decode_file, normalize
from metamix.data.files import check_several
from metamix.layers.image_inference import check_evaluation
from metamix.models.backbone import per_channel
from metamix.models.checkpoint import adapt_checkpoint, check_described_size, check_same_function, layer_names
from metamix.models.metaformer import MetaFormer
from metamix.models.registry import check_model, create_model, known_name, published_name, timm_config
from metamix.utils.checks import check_counts, check_finite, check_one_source, check_rates
from metamix.utils.text import plural
from metamix.weights.find import read_weights
from metamix.weights.fit import load_into
from metamix.weights.metadata import ModelMetadata, Threshold

Labels = list[tuple[str, float]]  # labels of an image with their probabilities
BATCH_SIZE = 64  # images per forward pass


def load_classifier(
    checkpoint: str | Path | None,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> "Classifier":
    """Load a trained classifier with its preprocessing and class names.

        classifier = metamix.load_classifier("runs/digits-metaformer_pooling_nano-seed0")
        print(classifier.predict(["digit.png"]))

        image = classifier.transform("digit.png")
        probabilities = classifier.model(image[None]).softmax(1)[0]

    This is the simplest way to use trained weights. With `timm.create_model(..., checkpoint_path=...)`, you must give
    the arguments of the model yourself, and prepare images with `timm.data.resolve_model_data_config`.

    Args:
        checkpoint: a run folder, a weight file, hf-hub:USER/NAME, or the name of weights that ship with metamix, such
            as "metaformer_pooling_nano.digits"; None with `pretrained`.
        model: name of the model; needed with `pretrained`, and for a file that does not name its model.
        model_args: arguments of the model that replace the arguments in the file.
        pretrained: take the model's published weights instead of a checkpoint.

    Raises:
        ValueError: the file holds no classifier or does not name its model, the weights do not fit, or the arguments
            do not give exactly one source of weights: `checkpoint`, or `pretrained` with `model`.
        FileNotFoundError: there is no such file.
    """
    check_one_source(pretrained, checkpoint)
    arguments = dict(model_args or {})
    if model:
        check_model(model)
    if checkpoint:
        name, net, metadata = _load_file(checkpoint, model, arguments)
    elif pretrained and model:
        name, net = model, create_model(model, **{"pretrained": True} | arguments)
        names = tuple(timm_config(net).get("label_names") or ())
        metadata = ModelMetadata(model=published_name(net), classes=names if len(names) == net.num_classes else None)
    else:
        raise ValueError("there are no weights to evaluate: give --checkpoint FILE, or --model NAME --pretrained")
    return Classifier(name, net.eval(), complete_metadata(metadata, net, metadata.model_args | arguments))


@dataclass(frozen=True)
class Classifier:
    """A trained classifier and its preprocessing."""

    name: str  # name of the model, from the caller or else from the weight file
    # The model in evaluation mode. It takes images (n, C, H, W) float32 and returns (n, classes): logits,
    # or probabilities if `has_sigmoid`.
    model: nn.Module
    metadata: ModelMetadata  # entries of the weight file; timm's configuration fills in what the file lacks
    has_sigmoid: bool = False  # whether the model returns probabilities, as exported models for several labels do

    def __post_init__(self) -> None:
        threshold, count = self.metadata.threshold, self.metadata.num_classes or 0
        if isinstance(threshold, tuple) and len(threshold) != count:
            has = f"{self.name} has {plural(len(threshold), 'threshold')} for {plural(count, 'class')}"
            raise ValueError(f"{has}: its weight file must have one for each class, or one number for all")

    def __repr__(self) -> str:
        return f"Classifier({self.name}, {plural(len(self.classes), 'class')})"

    @cached_property
    def transform(self) -> "EvalTransform":
        """Return the function that turns an image file or a PIL image into a tensor (C, H, W) float32."""
        return EvalTransform(self.metadata)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the logits; their numbers if the file has no names."""
        return self.metadata.classes or tuple(map(str, range(self.metadata.num_classes or 0)))

    @property
    def spec(self) -> ModelMetadata:
        """Return the metadata, which say how images are prepared."""
        return self.metadata

    def predict(
        self, images: Sequence[str | Path | Image.Image], top: int | None = None, threshold: float | None = None
    ) -> list[Labels]:
        """Return the most probable labels of each image with their probabilities, in descending order.

        Args:
            images: files or PIL images.
            top: number of labels; by default 5, or all that reach `threshold` if images may have several labels.
            threshold: lowest probability of a label if images may have several labels; by default the threshold in the
                weight file or, if `top` is given, 0.

        Raises:
            CorruptImage: an image cannot be read.
            TypeError: `images` is a single image, or an item is neither a path nor a PIL image.
            ValueError: `top` or `threshold` is out of range, `threshold` is given although each image has one class, or
                the model returns NaN or infinity.
        """
        check_several(images)
        images = list(images)
        labels: list[Labels] = []
        for start in range(0, len(images), BATCH_SIZE):  # prepare one batch at a time to limit memory use
            part = [self.transform(image) for image in images[start:][:BATCH_SIZE]]
            labels += self.label(torch.stack(part), top, threshold)
        return labels

    @torch.inference_mode()
    def label(self, images: Tensor, top: int | None = None, threshold: float | None = None) -> list[Labels]:
        """Label prepared images (n, C, H, W); see `predict` for the other arguments and the result."""
        # A wrapper such as DataParallel may be in training mode although its model is not, so its children are checked.
        if any(layer.training for layer in self.model.children()):
            check_evaluation(self.model)
        several = self.metadata.threshold is not None
        if threshold is not None:
            check_rates(threshold=threshold)
            if not several:
                raise ValueError(f"threshold is {threshold:g}, but {self.name} is not multi-label: leave it out")
        least: Threshold | None = threshold
        if top is None:
            top = len(self.classes) if several else 5
            least = self.metadata.threshold if threshold is None else threshold
        else:
            check_counts(1, top=top)
        like = next(self.model.parameters())
        outputs = check_finite(self.model(images.to(like.device, like.dtype))).float().cpu()
        scores = (outputs if self.has_sigmoid else outputs.sigmoid()) if several else outputs.softmax(1)
        best = scores.where(scores >= torch.tensor(least or 0.0), -1).topk(min(top, len(self.classes)))  # (n, top)
        return [
            [(self.classes[i], value) for i, value in zip(indices, values) if value >= 0]
            for values, indices in zip(best.values.tolist(), best.indices.tolist())
        ]


def describe_threshold(threshold: Threshold | None) -> str:
    """Say which probability a label must reach to be predicted; return "" if each image has one class."""
    if threshold is None:
        return ""
    values = sorted({*threshold} if isinstance(threshold, tuple) else {threshold})
    least = f"labels are predicted if their probability is at least {values[0]:g}"
    return least if len(values) == 1 else f"{least} to {values[-1]:g}, depending on the label"


class EvalTransform:
    """Prepare single images as in evaluation: resize, crop, normalise.

    Args:
        metadata: `img_size`, `in_chans`, `mean` and `std` must be known; `interpolation`, `crop_pct` and `crop_mode`
            are optional.
    """

    def __init__(self, metadata: ModelMetadata):
        assert metadata.mean and metadata.std and metadata.img_size
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        if metadata.in_chans not in modes:
            raise ValueError(f"the model takes images of {metadata.in_chans} channels; image files have 1, 3 or 4")
        self.mode = modes[metadata.in_chans]
        self.resize = transforms_imagenet_eval(
            metadata.img_size,
            crop_pct=metadata.crop_pct,
            crop_mode=metadata.crop_mode,
            mean=metadata.mean,  # colour of the border if crop_mode is "border"
            interpolation=metadata.interpolation or "bicubic",
            normalize=False,
        )
        self.mean, self.std = metadata.mean, metadata.std

    def __call__(self, image: str | Path | Image.Image) -> Tensor:
        """Turn an image file or a PIL image into a (C, H, W) float32 tensor; raise the errors of `decode_file`."""
        pixels = self.resize(decode_file(image, self.mode))  # (C, H, W) uint8
        return normalize(pixels[None], self.mean, self.std)[0]


def _load_file(
    path: str | Path, model: str | None, model_args: Mapping[str, Any]
) -> tuple[str, nn.Module, ModelMetadata]:
    tensors, metadata = read_weights(path)
    metadata.check_task("classification", "a classifier", path)
    if model and metadata.architecture and metadata.architecture != model.partition(".")[0]:
        raise ValueError(f"{path} holds the weights of {metadata.model}, not of {model}: name the model that it holds")
    name = model or (metadata.model and known_name(metadata.model))
    if not name:
        raise ValueError(f"{path} does not name its model; give model=NAME, or --model NAME on the command line")
    if metadata.img_size and "img_size" in model_args:
        raise ValueError(
            f"model_args has img_size, but {path} records the image size that {name} was built for: leave it out. "
            f"To score images of a different size, give --img-size"
        )
    arguments = metadata.shape | metadata.model_args | dict(model_args)
    check_described_size(metadata, tensors, path)
    net = create_model(name, **arguments)
    if not metadata.shape:  # a file of tensors without metadata, perhaps with the authors' tensor names
        sizes = {tensor.numel() for tensor in tensors.values()}
        tensors = adapt_checkpoint(net, tensors, path)
        if other := next((key for key, tensor in tensors.items() if tensor.numel() not in sizes), None):
            raise ValueError(
                f"{path} and {name} are for images of different sizes ({other} has a different shape); give the "
                f"image size of the file: --model-args '{{img_size: N}}', or in Python model_args={{'img_size': N}}"
            )
        head = layer_names(timm_config(net), "classifier")  # timm's distilled models have two heads
        if not (weights := [tensors[key] for layer in head if (key := f"{layer}.weight") in tensors]):
            raise ValueError(f"{path} lacks the head of {name} ({', '.join(head)}): is it a file of another model?")
        net = create_model(name, **{"num_classes": len(weights[0])} | arguments)
    elif isinstance(net, MetaFormer):
        check_same_function(net, metadata, path)
    load_into(net, tensors, str(path))
    return name, net, metadata


def complete_metadata(metadata: ModelMetadata, model: nn.Module, model_args: Mapping[str, Any]) -> ModelMetadata:
    """Fill in missing metadata from the model, its arguments and its timm configuration; replace `model_args`."""
    config = timm.data.resolve_model_data_config(model)
    num_classes: Any = model.num_classes
    in_chans, height, width = get_model_input_config(model)["input_size"]
    size = metadata.img_size or model_args.get("img_size", height if height == width else (height, width))
    channels = metadata.in_chans or model_args.get("in_chans", in_chans)
    return replace(
        metadata,
        model_args=dict(model_args),
        num_classes=num_classes,
        img_size=size,
        in_chans=channels,
        mean=per_channel(metadata.mean or config["mean"], channels),
        std=per_channel(metadata.std or config["std"], channels),
        interpolation=metadata.interpolation or config["interpolation"],
        crop_pct=metadata.crop_pct or config["crop_pct"],
        crop_mode=metadata.crop_mode or ("center" if metadata.crop_pct else config["crop_mode"]),
    )
