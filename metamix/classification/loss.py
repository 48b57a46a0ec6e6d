"""The loss of classification: cross-entropy or binary cross-entropy, with label smoothing and distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metamix.data.loader import Batch

from .model import ClassificationModel
from .options import ClassificationOptions


class ClassificationLoss:
    """Called with a model and an augmented batch, returns the loss and the values to log."""

    def __init__(self, options: ClassificationOptions, model: ClassificationModel):
        self.options, self.model = options, model

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, target = model(batch["image"]), batch["target"]  # (n, classes); (n,) labels or (n, classes) shares
        loss = self.supervised(logits.float(), target)
        share = self.options.distill
        for teacher in self.model.frozen_helpers:
            loss = (1 - share) * loss + share * self.distillation(logits.float(), teacher(batch["image"]))
        labels = target if target.ndim == 1 else target.argmax(1)
        return loss, {"top1": 100 * (logits.argmax(1) == labels).float().mean()}

    def supervised(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compare (n, classes) logits with labels (n,) or shares (n, classes)."""
        smoothing = self.options.smoothing
        if self.options.loss == "ce":
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        shares = F.one_hot(target, logits.shape[1]).to(logits) if target.ndim == 1 else target
        shares = shares * (1 - smoothing) + smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits, shares)

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL divergence of (n, classes) logits at temperature T, times T^2 (Hinton et al., arXiv:1503.02531)."""
        t = self.options.temperature
        return t**2 * F.kl_div(
            (student / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="batchmean", log_target=True
        )
