"""Make an image, and a small model whose outputs depend on nearby pixels."""

import torch
import torch.nn.functional as F
from torch import nn


def image(h, w, channels=2, batch=1):
    return torch.arange(batch * channels * h * w, dtype=torch.float64).view(batch, channels, h, w).sin()


class Blur(nn.Module):
    """Convolve 3 x 3 pixels, from two channels to three, and enlarge `scale` times."""

    def __init__(self, scale=1):
        super().__init__()
        self.scale, self.batches = scale, []
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate").double()

    def forward(self, x):
        self.batches.append(len(x))
        return F.interpolate(self.conv(x), scale_factor=self.scale) if self.scale > 1 else self.conv(x)
