"""Explain one object: weight the backbone's feature maps by the gradient of the logit of the object's score."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from metamix.data.files import read_pixels
from metamix.tasks.explain import Explanation, activation_map, watched_mixers
from metamix.utils.checks import DoesNotFit, check_choice

from .load import TrainedDetector

DRAWN = 0.5  # lowest score of the objects to draw; the explained object is always drawn


class TappedPyramid(nn.Module):
    """A feature pyramid whose input maps pass through the modules `taps`."""

    def __init__(self, pyramid: nn.Module, maps: int):
        super().__init__()
        self.pyramid, self.taps = pyramid, nn.ModuleList(nn.Identity() for _ in range(maps))

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        maps = [tap(x) for tap, x in zip(self.taps, maps)]
        nothing = sum(0 * x.sum() for x in maps)  # gives each tap a gradient, which grad-cam expects
        return OrderedDict((name, level + nothing) for name, level in self.pyramid(maps).items())


def explain_object(detector: TrainedDetector, path: Path, label: str | None) -> Explanation:
    """Explain the object with the highest score. If `label` is given, only objects with this label count.

    Raises:
        DoesNotFit: the detector finds no such object.
        ValueError: `label` is unknown.
        CorruptImage: the image cannot be read.
    """
    model: Any = detector.model
    if label is not None:
        check_choice("label", label, detector.classes)
    pixels = read_pixels(path)
    image = pixels.to(next(model.parameters()).device) / 255
    objects: dict[str, Tensor] = {}
    chosen = 0

    def logit_of_score(prediction: dict[str, Tensor]) -> Tensor:
        nonlocal chosen
        objects.update(prediction)
        labels = prediction["labels"]  # 0 is background
        wanted = labels > 0 if label is None else labels == detector.classes.index(label) + 1
        if not wanted.any():
            raise DoesNotFit(f"{path}: the detector finds no {label or 'object'}, so there is nothing to explain")
        chosen = int(prediction["scores"].masked_fill(~wanted, -1).argmax())
        return prediction["scores"][chosen].logit(eps=1e-7)  # the gradient of a score near 1 would be nearly 0

    backbone, pyramid = model.backbone, model.backbone.pyramid
    tapped = backbone.pyramid = TappedPyramid(pyramid, len(backbone.body.feature_info.channels()))
    try:
        with watched_mixers(model) as inputs:
            activation = activation_map(model, list(tapped.taps), image, logit_of_score)
    finally:
        backbone.pyramid = pyramid
    batch, _ = model.transform([image])
    covers = tuple(inside / padded for inside, padded in zip(batch.image_sizes[0], batch.tensors.shape[-2:]))
    sure = (objects["scores"] >= DRAWN) & (objects["labels"] > 0)  # 0 is background
    shown = [i for i, is_sure in enumerate(sure.tolist()) if is_sure or i == chosen]
    labels, scores, boxes = (objects[key][shown].tolist() for key in ("labels", "scores", "boxes"))
    return Explanation(
        image=pixels,
        activation=without_padding(activation, covers),
        scores=[(detector.classes[label - 1], score) for label, score in zip(labels, scores)],
        explained=shown.index(chosen),
        blocks=inputs,
        covers=covers,
        boxes=boxes,
    )


def without_padding(activation: Tensor, covers: tuple[float, ...]) -> Tensor:
    """Cut off the part of a map (H, W) that lies on padding, and stretch the rest to (H, W).

    `covers` holds the shares of H and W that are not padding.
    """
    inside = [max(1, round(side * share)) for side, share in zip(activation.shape, covers)]
    cut = activation[None, None, : inside[0], : inside[1]]
    return interpolate(cut, activation.shape, mode="bilinear")[0, 0]
