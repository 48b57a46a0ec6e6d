"""Enlarge or restore images with WaveMix (arXiv 2205.14375, 2307.00430).

    wavemixsr       y <- Conv1x1(Conv3x3(Blocks(Conv3x3(Conv3x3(upsampled y)))))      luminance; Cb and Cr are upsampled
    wavemix_sisr    Conv1x1(TransposedConv4x4(Blocks(Conv3x3(Conv3x3(x)))))           RGB, twice the height and width

A block is x + WaveMix(x), with no norm before the mixer. There is no activation outside the blocks and no skip
connection from the input. In evaluation, H and W may be any numbers of at least 1.

Two options are ours. `residual` adds the upsampled image to the result, so that a small model learns only the
difference. `scale=1` lets wavemix_sisr restore images without enlarging them: it first folds 2 x 2 pixels into
channels.

Departures: the authors' WaveMixSR takes three channels of YCbCr; ours can also take only the luminance. The authors'
training script and one version of their code upsample bilinearly, another version bicubically; here `mode` sets the
interpolation.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import Conv2d, GradCheckpointing, is_exporting
from metamix.layers.image_inference import check_multiples, run_padded
from metamix.mixers import WaveMix
from metamix.utils.checks import check_choice, check_counts

from .metaformer import Block
from .official import ModelAndLayout, official
from .wavemix import strided_stem, wavemix_layout

MODES = ("bilinear", "bicubic")


def wave_blocks(dim: int, depth: int, **options) -> nn.Sequential:
    """Build `depth` blocks x + mixer(x) of `dim` channels; `options` are options of the mixer."""
    mixers = (WaveMix(dim, size=(1, 1), **options) for _ in range(depth))
    return nn.Sequential(*(Block(dim, mixer, norm1=nn.Identity, mlp_ratio=0, layer_scale=0) for mixer in mixers))


class WaveMixSR(GradCheckpointing):
    """Enlarge images: (B, 1, H, W) luminance or (B, 3, H, W) YCbCr -> (B, 1 or 3, scale H, scale W).

    In training the result is a list that holds only the enlarged luminance.

    Args:
        scale: factor by which height and width are enlarged, a whole number.
        dim, depth: number of channels, number of blocks.
        mult: hidden width of a block's MLP as a multiple of `dim`.
        ff_channel: output width of the MLP; 0 for `dim`.
        proj_drop: dropout rate in the blocks.
        mode: interpolation, "bilinear" or "bicubic".
        residual: add the upsampled luminance to the result.
    """

    in_chans = 1
    multiple = (1, 1)

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 144,
        depth: int = 4,
        mult: int = 1,
        ff_channel: int = 0,
        proj_drop: float = 0.3,
        mode: str = "bilinear",
        residual: bool = False,
    ):
        super().__init__()
        check_counts(1, scale=scale, dim=dim, depth=depth)
        check_choice("mode", mode, MODES)
        self.scale, self.mode, self.residual = scale, mode, residual
        self.stem = strided_stem(1, dim, stride=1)
        self.blocks = wave_blocks(dim, depth, mult=mult, ff_channel=ff_channel, proj_drop=proj_drop)
        self.head = nn.Sequential(Conv2d(dim, dim // 2, 3, padding=1), nn.Conv2d(dim // 2, 1, 1))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images have {images.shape[1]} channels; WaveMixSR takes 1 (luminance) or 3 (YCbCr).")
        x = F.interpolate(images, scale_factor=self.scale, mode=self.mode, align_corners=False)
        y = self.head(self.blocks(self.stem(x[:, :1])))  # (B, 1, scale H, scale W)
        y = y + x[:, :1] if self.residual else y
        if self.training:
            return [y]
        return torch.cat([y, x[:, 1:]], dim=1)


class WaveMixSisr(GradCheckpointing):
    """Double the size of images, or restore them: (B, in_chans, H, W) -> (B, in_chans, scale H, scale W).

    In training the result is a list that holds only the restored images. With `scale=1`, training and exported graphs
    take only even H and W.

    Args:
        scale: 2 to double the size; 1 to keep it and fold 2 x 2 pixels into channels before the stem.
        level: levels of the wavelet transform, 1 to 4.
        dim, depth, mult, ff_channel, proj_drop: as in `WaveMixSR`.
        residual: add the image, bilinearly enlarged to the result's size, to the result.
    """

    def __init__(
        self,
        in_chans: int = 3,
        *,
        scale: int = 2,
        dim: int = 144,
        depth: int = 4,
        level: int = 1,
        mult: int = 2,
        ff_channel: int = 0,
        proj_drop: float = 0.0,
        residual: bool = False,
    ):
        super().__init__()
        if scale not in (1, 2):
            raise ValueError(f"scale is {scale!r}, but WaveMixSisr doubles the image size or keeps it: give 1 or 2.")
        check_counts(1, in_chans=in_chans, dim=dim, depth=depth)
        self.in_chans, self.scale, self.residual = in_chans, scale, residual
        self.fold = 2 // scale
        self.multiple = self.fold, self.fold
        self.stem = strided_stem(in_chans * self.fold**2, dim, stride=1)
        self.blocks = wave_blocks(dim, depth, level=level, mult=mult, ff_channel=ff_channel, proj_drop=proj_drop)
        self.head = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 4, stride=2, padding=1), nn.Conv2d(dim // 2, in_chans, 1)
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        if self.training:
            check_multiples(images, self.multiple, self)
            return [self.restore(images)]
        if self.fold == 1 or is_exporting():  # exported graphs take only multiples of `multiple`
            return self.restore(images)
        return run_padded(self.restore, images, self.multiple)

    def restore(self, images: Tensor) -> Tensor:
        """Restore images whose sides are multiples of `multiple`."""
        x = F.pixel_unshuffle(images, self.fold)  # (B, in_chans fold^2, H / fold, W / fold)
        y = self.head(self.blocks(self.stem(x)))  # (B, in_chans, scale H, scale W)
        if not self.residual:
            return y.to(images.dtype)  # under autocast, y has a lower precision
        return y + F.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)


# Checkpoints of the authors' wavemix/sisr.py, and of WaveMixSR in github.com/pranavphoenix/WaveMixSR

SISR_NAMES = ((r"^head\.", "expand."), (r"^stem\.", "conv."), (r"^blocks\.(\d+)\.mixer\.", r"layers.\1."))
WAVEMIXSR = wavemix_layout(
    (r"^head\.", "final."),
    (r"^stem\.0\.", "path1.1."),
    (r"^stem\.1\.", "path1.2."),
    (r"^blocks\.(\d+)\.mixer\.", r"layers.\1."),
    level=1,
)

RENAMED = dict(final_dim="dim", dropout="proj_drop")
FF_CHANNEL = dict(ff_channel=144)  # the authors' default for every `final_dim`


@official("wavemix_superresolution", same=("depth", "mult", "ff_channel"), renamed=RENAMED, defaults=FF_CHANNEL)
def wavemix_superresolution(state: Mapping[str, Tensor], *, level: int = 1, **arguments: Any) -> ModelAndLayout:
    """Build our model for the arguments of the authors' super-resolution `WaveMix`."""
    return WaveMixSisr(level=level, **arguments), wavemix_layout(*SISR_NAMES, level=level)


@official("wavemixsr", same=("depth", "mult", "ff_channel", "mode"), renamed=RENAMED, defaults=FF_CHANNEL)
def wavemixsr(state: Mapping[str, Tensor], *, scale_factor: int = 2, **arguments: Any) -> ModelAndLayout:
    """Build our model for the arguments of the authors' `WaveMixSR`.

    The authors' constructor takes neither `scale_factor` nor `mode`: their code sets both in its nn.Upsample.
    """
    return WaveMixSR(scale_factor, **arguments), WAVEMIXSR
