"""Explain a label of an image by the feature map before the head, weighted by the gradient of the label's logit."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metamix.data import decode_file
from metamix.tasks.explain import Explanation, activation_map, watched_mixers
from metamix.utils.checks import check_choice

from .load import Classifier


class MapAndHead(nn.Module):
    """A timm model whose last feature map, (B, C, h, w), passes through the module `map`."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.map = model, nn.Identity()
        self.nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        x = self.model.forward_features(images)
        if getattr(x, "ndim", 0) != 4:  # CrossViT returns a list
            raise ValueError(
                f"{type(self.model).__name__} has tokens but no feature map before its head: metamix explain takes "
                f"models of metamix and convolutional networks"
            )
        x = self.map(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.nhwc else self.map(x)
        return self.model.forward_head(x)


def explain_label(classifier: Classifier, path: Path, label: str | None) -> Explanation:
    """Explain a label of an image, by default the most probable one."""
    model, classes = classifier.model, classifier.classes
    if label is not None:
        check_choice("label", label, classes)
    pixels = decode_file(path, classifier.transform.mode)
    image = classifier.transform(pixels).to(next(model.parameters()).device)
    scores = classifier.label(image[None], len(classes))[0]
    name = scores[0][0] if label is None else label
    net = MapAndHead(model)
    with watched_mixers(model) as inputs:
        activation = activation_map(net, [net.map], image, lambda logits: logits[classes.index(name)])
    explained = [label for label, _ in scores].index(name)
    return Explanation(classifier.transform.resize(pixels), activation, scores, explained, inputs)
