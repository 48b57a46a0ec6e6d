"""Compute the loss for one class or several labels per image, with smoothing, class weights and distillation."""

import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn

from metamix.training.task import Batch

from .model import ClassificationModel
from .options import ClassificationOptions


class ClassificationLoss:
    """Compute the loss of a model on an augmented batch, and the values to log.

    `model.frozen_helpers` holds the teacher if there is one. `labels` are the labels of the training split: (N,) int64,
    or (N, classes) float32 if images have several labels.
    """

    def __init__(self, options: ClassificationOptions, model: ClassificationModel, labels: Tensor, classes: int):
        self.options, self.model, self.several = options, model, labels.ndim == 2
        if self.several and options.loss == "ce":
            options.loss = "bce"  # set in the options, so that the recipe and the log show it
        if not self.several and options.loss == "asymmetric":
            raise ValueError("loss is asymmetric, but each image has one class: leave --loss out, or give bce")
        self.class_weights = balanced_weights(labels, classes) if options.class_weights == "balanced" else None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, target = model(batch["image"]), batch["target"]  # (n, classes); (n,) or, for soft targets, (n, classes)
        loss = self.supervised(logits.float(), target)
        share = self.options.distill
        for teacher in self.model.frozen_helpers:
            loss = (1 - share) * loss + share * self.distillation(logits.float(), teacher(batch["image"]))
        if self.several:
            return loss, {}
        labels = target if target.ndim == 1 else target.argmax(1)
        return loss, {"top1": 100 * (logits.argmax(1) == labels).float().mean()}

    def supervised(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of (n, classes) logits against labels (n,) or soft targets (n, classes).

        If images have several labels, the target is (n, classes), from 0 to 1.
        """
        smoothing, classes = self.options.smoothing, logits.shape[1]
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.several:
            target = target * (1 - smoothing) + smoothing / 2
            if self.options.loss == "asymmetric":
                return AsymmetricLossMultiLabel(pos_weight=weights, reduction="mean")(logits, target)
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
        reduction = "mean" if weights is None else "none"
        if self.options.loss == "ce":
            loss = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction=reduction)
        else:
            soft = F.one_hot(target, classes).to(logits) if target.ndim == 1 else target
            soft = soft * (1 - smoothing) + smoothing / classes
            loss = F.binary_cross_entropy_with_logits(logits, soft, reduction=reduction)
        if weights is None:
            return loss
        weights = weights[target] if target.ndim == 1 else target @ weights  # (n,)
        return (weights * loss.view(len(logits), -1).mean(1)).mean()

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the distillation loss of (n, classes) logits at temperature T (Hinton et al., arXiv 1503.02531).

        It is T^2 times the KL divergence, or T^2 times the binary cross-entropy if images have several labels.
        """
        t = self.options.temperature
        if self.several:
            return t**2 * F.binary_cross_entropy_with_logits(student / t, (teacher / t).sigmoid())
        return t**2 * F.kl_div(
            (student / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="batchmean", log_target=True
        )


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Compute weights (classes,), inversely proportional to the number of images of each class.

    Their mean over all images is 1. If images have several labels, the weights are for the positive targets: the number
    of images without the label, divided by the number of images with it.
    """
    if labels.ndim == 2:
        counts = labels.sum(0)
        return (len(labels) - counts) / counts.clamp(min=1)
    counts = labels.bincount(minlength=classes)
    return len(labels) / ((counts > 0).sum() * counts.clamp(min=1)).float()
