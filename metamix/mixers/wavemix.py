"""The wavelet mixer of WaveMix: "WaveMix: A Resource-efficient Neural Network for Image Analysis" (arXiv 2205.14375;
first version 2203.03689).

    a_0 = Conv1x1(x)                                            C -> C / 4
    a_l, d_l = DWT(a_(l-1))              l = 1 ... level        half the size: approximation, three detail bands
    y_L = Up(MLP(concat(a_L, d_L)))                             from the deepest level
    y_l = Up(MLP(concat(a_l, d_l, y_(l+1))))                    to the finest
    y   = y_1

    MLP = Conv1x1, GELU, dropout, Conv1x1
    Up  = transposed convolution k4 s2 p1, or bilinear upsampling; then a norm

The block of the paper is this mixer and its residual, with no norm before it and no channel MLP after it.

Any size: an odd map is padded by the transform (mode "zero") and cropped after upsampling; a filter longer than Haar's
two taps gives bands larger than half, cropped to the centre. Cost is linear in the number of tokens; the transposed
convolution's 4 C_ff multiply-adds per value are most of it.

Departure from the authors' code: their detail channels lie channel by channel (c0-LH, c0-HL, c0-HH, c1-LH ...), ours
band by band; a checkpoint of theirs has the first convolution of each MLP permuted on loading. Their code fails on odd
maps.
"""

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import GELU, Dropout, GroupNorm1, crop_to, pad_to
from metamix.utils.text import nearest

from .registry import register_mixer

UPSAMPLE = ("transposed", "bilinear")
NORMS = {"batch": nn.BatchNorm2d, "group": GroupNorm1}


@register_mixer("wavemix")
class WaveMix(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Args:
        level: levels of the transform, 1 (WaveMix-Lite) to 4.
        wavelet: any discrete wavelet of PyWavelets.
        mult: hidden width of the MLP over C.
        ff_channel: width after the MLP, 0 for C; a bilinear `upsample` has no use for it.
        upsample: "transposed", as WaveMix, or "bilinear", as the smallest models of WaveMix-Lite.
        norm: "batch", as the authors, or "group" (one group), for small batches and detection from scratch.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        level: int = 1,
        wavelet: str = "haar",
        mult: int = 2,
        ff_channel: int = 0,
        upsample: str = "transposed",
        norm: str = "batch",
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % 4:
            raise ValueError(f"wavemix splits its channels in four: {dim} is no multiple of 4.")
        if level not in (1, 2, 3, 4):
            raise ValueError(f"level is {level}; the transform has 1, 2, 3 or 4 levels.")
        if wavelet not in pywt.wavelist(kind="discrete"):
            raise ValueError(
                f"{wavelet!r} is no discrete wavelet of PyWavelets{nearest(wavelet, pywt.wavelist(kind='discrete'))} "
                f"`pywt.wavelist(kind='discrete')` lists them."
            )
        if upsample not in UPSAMPLE:
            raise ValueError(f"upsample is {upsample!r}{nearest(upsample, UPSAMPLE)} Accepted: {', '.join(UPSAMPLE)}.")
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}{nearest(norm, NORMS)} Accepted: {', '.join(NORMS)}.")
        if upsample == "bilinear" and ff_channel:
            raise ValueError(
                f"ff_channel is {ff_channel}, the width that a transposed convolution starts from: give 0 with "
                f"upsample='bilinear'."
            )
        self.filters = pywt.Wavelet(wavelet).filter_bank[:2]
        self.reduce = nn.Conv2d(dim, dim // 4, 1)
        # From the finest level to the deepest; all but that one also see what the next sends up, dim / 2 channels.
        self.levels = nn.ModuleList(
            BandMlp(
                dim if i == level - 1 else dim + dim // 2,
                mult * dim,
                ff_channel or dim,
                dim if i == 0 else dim // 2,
                upsample=upsample,
                norm=norm,
                drop=proj_drop,
            )
            for i in range(level)
        )

    def forward(self, x: Tensor) -> Tensor:
        sizes, bands, low = [], [], self.reduce(x)
        for _ in self.levels:
            sizes.append(low.shape[-2:])
            bands.append(dwt2(low, self.filters))
            low = bands[-1].chunk(4, dim=1)[0]
        y = None
        for size, band, mlp in zip(reversed(sizes), reversed(bands), reversed(self.levels)):
            y = crop_to(mlp(band if y is None else torch.cat([band, y], dim=1)), size, centre=True)
        return y


class BandMlp(nn.Module):
    """The bands of one level, (B, C_in, h, w) -> (B, C_out, 2h, 2w)."""

    def __init__(self, dim_in: int, hidden: int, ff: int, dim_out: int, *, upsample: str, norm: str, drop: float):
        super().__init__()
        transposed = upsample == "transposed"
        self.fc1 = nn.Conv2d(dim_in, hidden, 1)
        self.act = GELU()
        self.drop = Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, ff if transposed else dim_out, 1)
        self.up = (
            nn.ConvTranspose2d(ff, dim_out, 4, stride=2, padding=1)
            if transposed
            else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        )
        self.norm = NORMS[norm](dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(self.fc2(self.drop(self.act(self.fc1(x))))))


def dwt2(x: Tensor, filters: tuple[list[float], list[float]]) -> Tensor:
    """One level of the 2-D discrete wavelet transform, mode "zero", as `pywt.dwt2`; `filters` are the wavelet's low and
    high pass, `pywt.Wavelet(name).filter_bank[:2]`.

    (B, C, H, W) -> (B, 4 C, h, w): all channels of the approximation, then of the details LH (low along the width, high
    along the height; cH of PyWavelets), HL (cV) and HH (cD). h = floor((H + L - 1) / 2) for a filter of L taps.
    """
    if len(filters[0]) == 2:  # Haar, under any of its names
        return haar2(x)
    low, high = (torch.tensor(f[::-1], dtype=x.dtype, device=x.device) for f in filters)
    bands = torch.stack([torch.outer(a, b) for a, b in ((low, low), (high, low), (low, high), (high, high))])
    channels, (h, w), taps = x.shape[1], x.shape[-2:], len(low)
    # Every second value is kept, from the second one on; past an odd end there is one zero more.
    x = F.pad(x, (taps - 2, taps - 2 + w % 2, taps - 2, taps - 2 + h % 2))
    kernel = bands[:, None].repeat_interleave(channels, dim=0)
    return F.conv2d(x.repeat(1, 4, 1, 1), kernel, stride=2, groups=4 * channels)


def haar2(x: Tensor) -> Tensor:
    """`dwt2` for Haar: sums and differences of the four values of each 2 x 2 cell."""
    # Channels come last, so that the gradient, which unbind's backward pass lays out anew, is in channels_last.
    x = pad_to(x, (2, 2)).movedim(1, -1) * 0.5
    top, bottom = x.unflatten(1, (-1, 2)).unbind(2)
    s, d = top + bottom, top - bottom  # low and high along the height
    (a, b), (c, e) = (rows.unflatten(2, (-1, 2)).unbind(3) for rows in (s, d))
    return torch.cat([band.movedim(-1, 1) for band in (a + b, c + e, a - b, c - e)], dim=1)
