"""An image, and a small model whose output depends on few pixels around each."""

import torch
import torch.nn.functional as F
from torch import nn


def image(h, w, channels=2, batch=1):
    return torch.arange(batch * channels * h * w, dtype=torch.float64).view(batch, channels, h, w).sin()


class Blur(nn.Module):
    """Depends on a 3 x 3 neighbourhood, enlarges `scale` times and turns two channels into three."""

    def __init__(self, scale=1):
        super().__init__()
        self.scale, self.batches = scale, []
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate").double()

    def forward(self, x):
        self.batches.append(len(x))
        return F.interpolate(self.conv(x), scale_factor=self.scale) if self.scale > 1 else self.conv(x)
