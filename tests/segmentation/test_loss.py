"""Test that losses equal literal formulas, and that wrong options are refused."""

import math
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from metamix.segmentation.loss import LOSSES, SegmentationLoss, class_weights, parse_loss, smp_losses
from metamix.segmentation.options import SegmentationOptions

IGNORED = 255


@pytest.fixture
def batch():
    """Make logits (3, 4, 5, 6) and labels (3, 5, 6); a quarter of the pixels and the whole last image are ignored."""
    torch.manual_seed(0)
    target = torch.randint(0, 4, (3, 5, 6))
    target[torch.rand(target.shape) < 0.25] = IGNORED
    target[2] = IGNORED
    return 2 * torch.randn(3, 4, 5, 6), target


def pixels(logits, target):
    """Yield the probabilities and the label of each pixel that is not ignored."""
    shares = logits.softmax(0)
    for y, x in (target != IGNORED).nonzero().tolist():
        yield shares[:, y, x].tolist(), int(target[y, x])


def literal_ce(logits, target, weights):
    return sum(-weights[label] * math.log(shares[label]) for shares, label in pixels(logits, target)) / target.numel()


def literal_ohem(logits, target, weights):
    losses = sorted(
        ((-math.log(shares[label]), weights[label]) for shares, label in pixels(logits, target)), reverse=True
    )
    kept = max(1, target.numel() // 16)
    hard = [(loss, weight) for i, (loss, weight) in enumerate(losses) if i < kept or loss >= -math.log(0.7)]
    return sum(loss * weight for loss, weight in hard) / max(1, len(hard))


def literal_focal(logits, target, weights):
    total, labelled = 0.0, (target != IGNORED).nonzero().tolist()
    for k in range(len(logits)):
        for y, x in labelled:
            p = 1 / (1 + math.exp(-float(logits[k, y, x])))
            p = p if int(target[y, x]) == k else 1 - p
            total += -((1 - p) ** 2) * math.log(p)
    return total / len(logits) / target.numel()


def literal_dice(logits, target, weights):
    scored = list(pixels(logits, target))
    terms = []
    for k in range(len(logits)):
        shared = sum(shares[k] for shares, label in scored if label == k)
        size = sum(shares[k] for shares, _ in scored) + sum(label == k for _, label in scored)
        terms.append(1 - 2 * shared / size if any(label == k for _, label in scored) else 0.0)
    return sum(terms) / len(terms)


def literal_lovasz(logits, target, weights):
    """Weight each class's sorted errors by the increase in Jaccard loss, sum them, and average over the classes."""
    scored, terms = list(pixels(logits, target)), []
    for k in {label for _, label in scored}:
        errors = sorted(((abs((label == k) - shares[k]), label == k) for shares, label in scored), reverse=True)
        total, before, value = sum(real for _, real in errors), 0.0, 0.0
        for i in range(len(errors)):
            right = total - sum(real for _, real in errors[: i + 1])
            loss = 1 - right / (total + sum(not real for _, real in errors[: i + 1]))
            value, before = value + errors[i][0] * (loss - before), loss
        terms.append(value)
    return sum(terms) / len(terms) if terms else 0.0


LITERAL = {
    "ce": literal_ce,
    "ohem": literal_ohem,
    "focal": literal_focal,
    "dice": literal_dice,
    "lovasz": literal_lovasz,
}


@pytest.fixture(params=LOSSES)
def name(request):
    if request.param not in ("ce", "ohem"):
        pytest.importorskip("segmentation_models_pytorch", reason="the loss needs the extra `segmentation`")
    return request.param


def test_losses_equal_their_formulas(name, batch):
    logits, target = batch
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0]) if name in ("ce", "ohem") else None
    logits.requires_grad_()
    loss = LOSSES[name](logits, target, weights)
    factors = weights.tolist() if weights is not None else None
    wanted = sum(LITERAL[name](one, mask, factors) for one, mask in zip(logits.detach(), target)) / 3
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[2].any() and logits.grad[0].any()


def test_ohem_keeps_a_sixteenth_of_easy_pixels():
    logits = torch.zeros(1, 2, 8, 16)
    logits[:, 0] = torch.linspace(2, 6, 128).view(8, 16)  # the probability of class 0 is above 0.7 everywhere
    target = torch.zeros(1, 8, 16, dtype=torch.long)
    wanted = nn.functional.cross_entropy(logits, target, reduction="none").flatten()[:8].mean()
    torch.testing.assert_close(LOSSES["ohem"](logits, target, None), wanted)


def test_the_loss_of_a_batch_is_the_mean_over_its_images(name, batch):
    logits, target = batch
    parts = [LOSSES[name](logits[i : i + 1], target[i : i + 1], None) for i in range(3)]
    torch.testing.assert_close(LOSSES[name](logits, target, None), torch.stack(parts).mean())


class Outputs(nn.Module):
    def __init__(self, *outputs):
        super().__init__()
        self.outputs = list(outputs)

    def forward(self, x):
        return self.outputs


def test_losses_and_auxiliary_outputs_are_summed_with_their_weights(batch):
    pytest.importorskip("segmentation_models_pytorch")
    logits, target = batch
    small = torch.randn(3, 4, 3, 3)
    loss = SegmentationLoss("ce+0.5*dice", aux_weight=0.2)
    total, logged = loss(Outputs(logits, small), {"image": logits, "target": target})
    large = nn.functional.interpolate(small, (5, 6), mode="bilinear")
    ce, dice = (LOSSES[name](logits, target, None) for name in ("ce", "dice"))
    extra = LOSSES["ce"](large, target, None) + 0.5 * LOSSES["dice"](large, target, None)
    torch.testing.assert_close(total, ce + 0.5 * dice + 0.2 * extra)
    assert list(logged) == ["ce_loss", "dice_loss", "pixel_accuracy"] and logged["ce_loss"] == ce
    right = [(logits[i].argmax(0) == target[i])[target[i] != IGNORED].float().mean() for i in range(2)]
    torch.testing.assert_close(logged["pixel_accuracy"], 100 * (right[0] + right[1]) / 3)


def test_class_weights_apply_to_every_output(batch):
    logits, target = batch
    small, weights = torch.randn(3, 4, 3, 3), torch.tensor([0.5, 1.0, 2.0, 3.0])
    loss = SegmentationLoss("ce", aux_weight=0.2, weights=lambda: weights)
    total, _ = loss(Outputs(logits, small), {"image": logits, "target": target})
    large = nn.functional.interpolate(small, (5, 6), mode="bilinear")
    main, auxiliary = (LOSSES["ce"](each, target, weights) for each in (logits, large))
    torch.testing.assert_close(total, main + 0.2 * auxiliary)


def test_class_weights_have_a_mean_of_1_over_pixels():
    counts = torch.tensor([700, 200, 0, 100])
    median, log = class_weights("median", counts), class_weights("log", counts)
    torch.testing.assert_close(median / median[0], torch.tensor([1.0, 3.5, 0.0, 7.0]))
    torch.testing.assert_close(log[3] / log[0], torch.tensor(math.log(1.72) / math.log(1.12)))
    for weights in median, log:
        assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1) and weights[2] == 0


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    smp_losses.cache_clear()
    missing = ModuleNotFoundError(name="segmentation_models_pytorch")
    monkeypatch.setattr("metamix.utils.extras.import_module", Mock(side_effect=missing))
    with pytest.raises(ValueError, match="lovasz need a library: segmentation-models-pytorch is missing: pip install"):
        parse_loss("ce+dice")
    assert parse_loss("0.5*ohem") == {"ohem": 0.5}
    smp_losses.cache_clear()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"crop": (0,)}, r"crop is \(0,\), but it must be a side in pixels, or height,width"),
        ({"scales": (2.0, 0.5)}, "two factors above 0 and below 16, the smaller first, such as 0.5,2"),
        ({"scales": (0.5, 100.0)}, "two factors above 0 and below 16"),
        ({"tile": -1}, "tile is -1: give a whole number of at least 0"),
        ({"crop_share": 0.0}, "crop_share is 0.0, but it must be a number above 0 and at most 1"),
        ({"ignore_index": 256}, "ignore_index is 256, but it must be a whole number from 0 to 255, or none"),
        ({"min_size": 64, "max_size": 32}, "max_size is 32, less than min_size, which is 64"),
        ({"class_weights": (1.0, -1.0)}, "a list .* of finite numbers of at least 0, or one of none, median, log"),
        ({"loss": "dice", "class_weights": "log"}, r"class_weights needs ce or ohem in the loss, such as ce\+dice"),
        ({"loss": "focal+lovasz", "class_weights": (1.0, 2.0)}, "class_weights needs ce or ohem"),
        ({"test_scales": ()}, "test_scales is"),
        ({"mask_name": "mask"}, "mask_name is 'mask', but it must be a string that holds {name}"),
        ({"class_weights": (0.0, 0.0)}, "but at least one weight must be above 0"),
        ({"model_args": {"in_chans": 1}}, "model_args has in_chans, which comes from the images"),
        ({"mean": (0.5,), "std": (0.5,)}, "a list of 3 numbers from 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    if "loss" in options:
        pytest.importorskip("segmentation_models_pytorch", reason="pip install 'metamix[segmentation]'")
    with pytest.raises(ValueError, match=words):
        SegmentationOptions(**{"data_dir": "x"} | options)


@pytest.mark.parametrize("loss", ["ohem", "ce+0.5*dice"])
def test_class_weights_are_accepted_for_a_sum_with_cross_entropy(loss):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install 'metamix[segmentation]'")
    assert SegmentationOptions(data_dir="x", loss=loss, class_weights="log").loss == loss
