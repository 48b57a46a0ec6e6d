"""Compute segmentation losses and weighted sums of them: `SegmentationLoss("ce+0.5*dice")`.

segmentation_models_pytorch computes focal, dice and lovasz. Every loss is computed for each image and averaged over
images, so that it does not depend on how a batch is divided. Cross-entropy and focal loss divide by the number of all
pixels; the loss of an ignored pixel is 0.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import resize_to
from metamix.training.task import Batch
from metamix.utils.checks import parse_weighted_sum
from metamix.utils.extras import need

from .labels import IGNORED

HARD, KEPT = 0.7, 1 / 16  # ohem: probability below which a pixel is hard, and smallest share of pixels to keep

Weights = Tensor | None  # (classes,)


# All losses take logits (n, classes, H, W) and labels (n, H, W).


def cross_entropy(logits: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Compute the mean cross-entropy over all pixels."""
    return F.cross_entropy(logits, target, weights, ignore_index=IGNORED, reduction="sum") / target.numel()


def ohem_loss(logits: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Compute the mean cross-entropy over the hard pixels of each image, and average it over images.

    If the share of hard pixels is below KEPT, the pixels with the largest losses are taken up to that share.
    """
    with torch.no_grad():
        losses = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none").flatten(1)  # (n, H W)
        kept = max(1, int(KEPT * losses.shape[1]))
        least = losses.kthvalue(losses.shape[1] - kept + 1, dim=1, keepdim=True).values.clamp(max=-math.log(HARD))
        hard = (losses >= least) & (target.flatten(1) != IGNORED)
    pixels = F.cross_entropy(logits, target, weights, ignore_index=IGNORED, reduction="none").flatten(1)
    return ((pixels * hard).sum(1) / hard.sum(1).clamp(min=1)).mean()


def focal_loss(logits: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Compute the mean over all pixels and classes of the focal loss with a sigmoid; `weights` are not used."""
    loss = smp_losses().FocalLoss("multiclass", ignore_index=IGNORED, reduction="sum")
    return loss(logits, target) / target.numel()


def dice_loss(logits: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Compute the Dice loss of each image, and average it over images; `weights` are not used."""
    loss = smp_losses().DiceLoss("multiclass", ignore_index=IGNORED)
    return torch.stack([loss(one[None], mask[None]) for one, mask in zip(logits, target)]).mean()


def lovasz_loss(logits: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Compute the Lovasz softmax loss of each image, and average it over images; `weights` are not used."""
    loss = smp_losses().LovaszLoss("multiclass", ignore_index=IGNORED)
    labelled = [(one[None], mask[None]) for one, mask in zip(logits, target) if (mask != IGNORED).any()]
    return sum((loss(one, mask) for one, mask in labelled), logits.sum() * 0) / len(logits)


WEIGHTED = ("ce", "ohem")  # the losses that take class weights

LOSSES: dict[str, Callable[[Tensor, Tensor, Weights], Tensor]] = {
    "ce": cross_entropy,
    "ohem": ohem_loss,
    "focal": focal_loss,
    "dice": dice_loss,
    "lovasz": lovasz_loss,
}


@cache
def smp_losses() -> Any:
    """Import the losses of segmentation_models_pytorch; raise ValueError if it is not installed."""
    try:
        return need("segmentation_models_pytorch.losses", "segmentation", "segmentation-models-pytorch")
    except ImportError as error:
        raise ValueError(f"the losses focal, dice and lovasz need a library: {error}") from None


def parse_loss(text: str) -> dict[str, float]:
    """Parse a weighted sum such as "ce+0.5*dice", and return the weight of each loss; see `parse_weighted_sum`."""
    weights = parse_weighted_sum(text, LOSSES)
    if weights.keys() & {"focal", "dice", "lovasz"}:
        smp_losses()
    return weights


def class_weights(rule: str, counts: Tensor) -> Tensor:
    """Compute class weights (classes,) float32 from pixel counts, such that their mean over labelled pixels is 1.

    Args:
        rule: "median" for 1 / frequency, or "log" for 1 / log(1.02 + frequency), as in ENet. Median frequency balancing
            also multiplies by the median, but scaling the mean to 1 would cancel this factor.
        counts: number of pixels of each class, (classes,) int64. A class without pixels gets the weight 0.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    seen = counts > 0
    weights = 1 / share if rule == "median" else 1 / (1.02 + share).log()
    weights = torch.where(seen, weights, 0.0)
    return (weights / (weights * share).sum()).float()


class SegmentationLoss:
    """Sum weighted losses of the main output and of the auxiliary outputs.

    Args:
        text: the weighted sum; see `parse_loss`.
        aux_weight: weight of each auxiliary output.
        weights: function that returns the weights of the classes, (classes,), or None for equal weights. It is called
            at the first batch, since it may read all masks.
    """

    def __init__(self, text: str, aux_weight: float = 0.4, weights: Callable[[], Weights] = lambda: None):
        self.terms, self.aux_weight, self.class_weights = parse_loss(text), aux_weight, cache(weights)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch in float32, and return it with values to log.

        The values are the pixel accuracy of the main output in percent and, if the loss has several terms or outputs,
        the terms of the main output.
        """
        outputs, target = model(batch["image"]), batch["target"]
        main, *auxiliary = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        with torch.autocast(target.device.type, enabled=False):
            terms = self.compute(main.float(), target)
            total = self.total(terms)
            for output in auxiliary:
                total = total + self.aux_weight * self.total(self.compute(output.float(), target))
        logged = {f"{name}_loss": value for name, value in terms.items()} if len(terms) > 1 or auxiliary else {}
        labelled = (target != IGNORED).flatten(1)
        right = (main.argmax(1) == target).flatten(1)  # false at ignored pixels, since no class is IGNORED
        accuracy = (right.sum(1) / labelled.sum(1).clamp(min=1)).mean()  # mean over the images
        return total, logged | {"pixel_accuracy": 100 * accuracy}

    def compute(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute each term of the loss of logits (n, classes, h, w), which are resized to the target (n, H, W)."""
        logits = resize_to(logits, target.shape[-2:], "bilinear")
        weights = self.class_weights()
        weights = None if weights is None else weights.to(logits.device)
        return {name: LOSSES[name](logits, target, weights) for name in self.terms}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Sum the terms with their weights."""
        return torch.stack([self.terms[name] * value for name, value in terms.items()]).sum()
