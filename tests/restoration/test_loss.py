"""Test losses against their formulas, on every stage and scale."""

import pytest
import torch
from torch import nn

from metamix.layers.image_inference import shrink_image
from metamix.restoration.loss import LOSSES, RestorationLoss, parse_loss
from metamix.restoration.metric import psnr

X, Y = torch.rand(2, 2, 3, 16, 24, generator=torch.Generator().manual_seed(0)).unbind()


class Stages(nn.Module):
    """Return images at two scales, as MAXIM does in training."""

    def forward(self, x):
        return [0.5 * shrink_image(x, 2), 0.9 * x]


def test_losses_equal_their_formulas():
    assert LOSSES["charbonnier"](X, Y) == pytest.approx(float(((X - Y) ** 2 + 1e-6).sqrt().mean()))
    assert LOSSES["l1"](X, Y) == pytest.approx(float((X - Y).abs().mean()))
    assert LOSSES["mse"](X, Y) == pytest.approx(float(((X - Y) ** 2).mean()))
    near = torch.stack([Y[0], (X[1] + 9 * Y[1]) / 10])  # the mean is over images, not over all pixels
    assert LOSSES["psnr"](near, X) == pytest.approx(-(psnr(near[0], X[0]) + psnr(near[1], X[1])) / 2, abs=1e-3)
    assert LOSSES["ssim"](X, X) == pytest.approx(0, abs=1e-5) and LOSSES["ssim"](X, Y) > 0.5
    spectrum = torch.fft.rfft2(X) / (16 * 24) ** 0.5 - torch.fft.rfft2(Y) / (16 * 24) ** 0.5
    expected = (spectrum.real.abs().mean() + spectrum.imag.abs().mean()) / 2
    assert LOSSES["fft"](X, Y) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_fall_towards_the_target_and_have_finite_gradients(name):
    x = (Y + 0.1 * X).requires_grad_()
    LOSSES[name](x, Y).backward()
    assert x.grad.isfinite().all() and LOSSES[name](Y + 0.01 * X, Y) < LOSSES[name](Y + 0.1 * X, Y)
    y = Y.clone().requires_grad_()
    LOSSES[name](y, Y).backward()
    assert y.grad.isfinite().all()


def test_the_loss_is_summed_over_all_stages_and_scales():
    loss, logged = RestorationLoss("l1+0.1*fft", crop=16)(Stages(), {"image": X, "target": Y})
    small, whole = (0.5 * shrink_image(X, 2), shrink_image(Y, 2)), (0.9 * X, Y)
    expected = sum(LOSSES["l1"](*pair) + 0.1 * LOSSES["fft"](*pair) for pair in (small, whole))
    assert loss == pytest.approx(float(expected))
    assert logged.keys() == {"l1_loss", "fft_loss"} and logged["l1_loss"] == LOSSES["l1"](*whole)


@pytest.mark.parametrize(
    "text, words",
    [
        ("charbonier", "loss is 'charbonier'; did you mean 'charbonnier'"),
        ("l1+l1", "which has l1 twice"),
        ("x*l1", "the weight of l1 must be a number above 0"),
        ("0*l1", "the weight of l1 must be a number above 0"),
        ("l1+", "loss is ''"),
    ],
)
def test_wrong_losses_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_loss(text)


def test_ssim_refuses_crops_smaller_than_its_window():
    with pytest.raises(ValueError, match="ssim window is 11 x 11 pixels, but crop is 8: give a larger --crop"):
        RestorationLoss("ssim", crop=8)
