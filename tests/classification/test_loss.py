"""Test the classification loss."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from metamix.classification.loss import ClassificationLoss, balanced_weights
from metamix.classification.options import ClassificationOptions
from tests.helpers.classifiers import NO_TEACHER, small_task


def loss(labels=None, **options):
    labels = torch.arange(10) if labels is None else labels
    return ClassificationLoss(ClassificationOptions(**options), NO_TEACHER, labels, 10)


def fixed(logits):
    """Return a model that returns these logits."""
    return lambda image: logits


def test_cross_entropy_is_equal_for_labels_and_for_soft_targets():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 10), torch.arange(6)
    for smoothing in (0.0, 0.1):
        smoothed = loss(smoothing=smoothing)
        by_label, seen = smoothed(fixed(logits), {"image": None, "target": labels})
        by_soft_target, _ = smoothed(fixed(logits), {"image": None, "target": F.one_hot(labels, 10).float()})
        target = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
        assert torch.allclose(by_label, -(target * logits.log_softmax(1)).sum(1).mean())
        assert torch.allclose(by_soft_target, by_label)
        assert seen["top1"] == 100 * (logits.argmax(1) == labels).float().mean()


def test_binary_cross_entropy_equals_timms():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 10), torch.arange(6)
    value, _ = loss(loss="bce", smoothing=0.1)(fixed(logits), {"image": None, "target": labels})
    assert torch.allclose(value, BinaryCrossEntropy(smoothing=0.1)(logits, labels))


def test_balanced_weights_are_inversely_proportional_to_the_number_of_images():
    labels = torch.tensor([0] * 8 + [1] * 2)
    weights = balanced_weights(labels, 3)
    assert weights[:2].tolist() == [0.625, 2.5] and weights[labels].mean() == 1
    digits = small_task(class_weights="balanced")
    assert torch.equal(digits.loss.class_weights, balanced_weights(digits.data.splits.train.labels, 10))


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_balanced_classes_have_equal_weight(kind):
    """A rare class counts as much as a frequent one, with labels and with soft targets."""
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 10), torch.tensor([0] * 8 + [1] * 2)
    balanced, plain = (loss(labels, loss=kind, class_weights=weights) for weights in ("balanced", "none"))
    by_class = [plain.supervised(logits[labels == label], labels[labels == label]) for label in (0, 1)]
    expected = (by_class[0] + by_class[1]) / 2
    assert torch.allclose(balanced.supervised(logits, labels), expected)
    assert torch.allclose(balanced.supervised(logits, F.one_hot(labels, 10).float()), expected)
    assert not torch.allclose(plain.supervised(logits, labels), expected)
    mixed = F.one_hot(labels[:1], 10) * 0.25 + F.one_hot(labels[-1:], 10) * 0.75  # as mixup makes them
    weight = 0.25 * 0.625 + 0.75 * 2.5
    assert torch.allclose(balanced.supervised(logits[:1], mixed), weight * plain.supervised(logits[:1], mixed))


def test_the_weighted_loss_is_a_mean_over_samples():
    """With such a mean, the gradients of micro-batches add up to the gradient of the batch."""
    logits, labels = torch.randn(10, 10), torch.tensor([0] * 8 + [1] * 2)
    balanced = loss(labels, class_weights="balanced", smoothing=0.1)
    halves = [balanced.supervised(logits[part], labels[part]) for part in (slice(0, 5), slice(5, 10))]
    assert torch.allclose(balanced.supervised(logits, labels), (halves[0] + halves[1]) / 2)
