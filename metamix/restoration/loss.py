"""Compute restoration losses and weighted sums of them: `RestorationLoss("charbonnier+0.1*fft")`.

If a model returns several images in training, one for each stage and scale, the loss is the sum over all of them.
For an image of a smaller scale, the target is shrunk as MAXIM shrinks its inputs.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from metamix.layers.image_inference import shrink_image
from metamix.training.task import Batch
from metamix.utils.checks import parse_weighted_sum

from .metric import WINDOW, ssim

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # functions of output and target, (B, C, H, W)
    "charbonnier": lambda x, y: ((x - y).square() + 1e-6).sqrt().mean(),
    "l1": lambda x, y: (x - y).abs().mean(),
    "mse": lambda x, y: (x - y).square().mean(),
    "psnr": lambda x, y: 10 * ((x - y).square().mean((1, 2, 3)) + 1e-8).log10().mean(),  # -PSNR of each image in dB
    "ssim": lambda x, y: 1 - ssim(x, y).mean(),
    "fft": lambda x, y: torch.view_as_real(torch.fft.rfft2(x - y, norm="ortho")).abs().mean(),
}


parse_loss = partial(parse_weighted_sum, names=LOSSES)


class RestorationLoss:
    """Sum weighted losses over all images that the model returns; `crop` is the side of the target crops."""

    def __init__(self, text: str, crop: int):
        self.weights = parse_loss(text)
        if "ssim" in self.weights and crop < WINDOW:
            raise ValueError(f"the ssim window is {WINDOW} x {WINDOW} pixels, but crop is {crop}: give a larger --crop")

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss in float32; also return the terms of the last image, without their weights."""
        outputs, target = model(batch["image"]), batch["target"]
        outputs = outputs if isinstance(outputs, list) else [outputs]
        with torch.autocast(target.device.type, enabled=False):
            targets = [shrink_image(target, target.shape[-1] // output.shape[-1]) for output in outputs]
            terms = [self.terms(output.float(), smaller) for output, smaller in zip(outputs, targets)]
        total = sum(self.weights[name] * value for term in terms for name, value in term.items())
        return total, {f"{name}_loss": value for name, value in terms[-1].items()}  # type: ignore[return-value]

    def terms(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute each term for outputs of one size. Leave SSIM out if they are smaller than its window."""
        small = min(output.shape[-2:]) < WINDOW
        return {name: LOSSES[name](output, target) for name in self.weights if not (small and name == "ssim")}
